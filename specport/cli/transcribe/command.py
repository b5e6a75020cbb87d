"""`specport transcribe`: what was said in audio files, and by whom."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specport.cli import options, terminal
from specport.cli.transcribe import output
from specport.errors import InvalidInput, SpecportError
from specport.outside.places import expanded

if TYPE_CHECKING:
    from specport.speech.checkpoint import Checkpoint
    from specport.speech.transcriber import Transcriber

EXAMPLES = """\
examples:
  specport transcribe talk.mp3                         text on the screen, as it is understood
  specport transcribe *.mp3 --format srt,json --output subtitles
  specport transcribe meeting.wav --diarize --speakers 3
  specport transcribe lecture.flac --batch 8 --language de --word-timestamps --format json
  specport transcribe --model ./whisper-large-v3 --draft ./distil-large-v3 talk.mp3
  specport transcribe microphone                       until Ctrl-C
  arecord -f S16_LE -r 16000 | specport transcribe -

Models: base (the default, 99 languages) and tiny.en (English) come through packages; else a folder of Hugging
Face's or CTranslate2's format, or a hub id. Without --output, the text goes to stdout. Ctrl-C keeps what was
understood; the same command with --resume goes on from there.
"""
OPTIONS = (
    "language", "task", "word_timestamps", "batch", "initial_prompt", "condition_on_previous_text",
    "temperature", "compression_ratio_threshold", "logprob_threshold", "no_speech_threshold", "seed",
)  # fmt: skip
LOAD_OPTIONS = (
    "draft", "device", "draft_device", "precision", "draft_precision", "exact", "history", "threads",
)  # fmt: skip
SPEAKER_OPTIONS = ("speakers", "max_speakers", "merge", "rttm")
STATE = ".specport-state.json"
LIVE = ("-", "microphone")


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "transcribe", help="write down what is said in audio", epilog=EXAMPLES,
        description="Transcribe audio or video files of any format and length with Whisper and a draft.",
    )  # fmt: skip
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="audio or video files; - for stdin; microphone to record")
    add("--language", metavar="LANGUAGE", help="as in en or English (default: found in the first 30 s)")
    add("--task", metavar="{transcribe,translate}", help="translate = to English (default: transcribe)")
    add("--word-timestamps", action="store_true", default=None, help="find the time of each word")
    add(
        "--batch", type=int, metavar="N",
        help="decode N windows together, cut at silences: faster, without the text before (default: 1)",
    )  # fmt: skip
    files = parser.add_argument_group("output")
    files.add_argument(
        "--format", default=None, metavar="LIST",
        help="txt, json, srt, vtt, tsv, rttm or several as in srt,json; all (default: txt)",
    )  # fmt: skip
    files.add_argument("--output", type=Path, metavar="DIR", help="folder for the files (default: stdout)")
    files.add_argument("--timestamps", action="store_true", help="print the time before each line on stdout")
    files.add_argument(
        "--resume", action="store_true", help="go on with what an earlier run left in --output"
    )
    files.add_argument("--quiet", action="store_true", help="print only the text and errors")
    who = parser.add_argument_group("speakers")
    who.add_argument("--diarize", action="store_true", help="say who speaks")
    who.add_argument("--speakers", type=int, metavar="N", help="number of speakers (default: estimated)")
    who.add_argument(
        "--max-speakers", type=int, metavar="N", help="most speakers, where it is estimated (default: 8)"
    )
    who.add_argument(
        "--rttm",
        type=Path,
        metavar="FILE",
        help="take who speaks from this file, as of pyannote, instead of finding it",
    )
    who.add_argument(
        "--merge", metavar="{words,turns}",
        help="give each word to who speaks then, or each turn the nearest lines (default: words)",
    )  # fmt: skip
    _add_model_options(parser)
    _add_decoding_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and draft")
    add = group.add_argument
    add("--model", metavar="MODEL", help="base, tiny.en, a folder or a hub id (default: base)")
    add(
        "--draft", metavar="DRAFT",
        help="a smaller Whisper, ngram, suffix, several as in 'suffix|MODEL', universal(MODEL) for another "
        "vocabulary, or none (default: auto)",
    )  # fmt: skip
    add("--draft-device", metavar="DEVICE", help="device of the draft model (default: the target's)")
    options.add_precision(group, "--precision", "weight format of the model (default: the device's)")
    options.add_precision(group, "--draft-precision", "weight format of the draft (default: the device's)")
    add(
        "--fast", action="store_false", dest="exact", default=None,
        help="allow steps that round differently, so that words may differ from plain decoding",
    )  # fmt: skip
    add("--history", metavar="DIR", help="folder where --draft suffix keeps texts for later runs")
    add("--device", metavar="DEVICE", help="a name from `specport devices` (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")


def _add_decoding_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("decoding (names as in OpenAI's Whisper)")
    add = group.add_argument
    add("--initial-prompt", metavar="TEXT", help="text before the first window, for names and spellings")
    add(
        "--no-condition-on-previous-text",
        action="store_false", dest="condition_on_previous_text", default=None,
        help="let no window see the text before it",
    )  # fmt: skip
    add(
        "--temperature", type=_numbers, metavar="LIST",
        help="tried in this order where a window fails a threshold (default: 0,0.2,0.4,0.6,0.8,1)",
    )  # fmt: skip
    for name, text in (
        ("compression-ratio", "above, a window repeats itself: failed (default: 2.4)"),
        ("logprob", "a mean log-probability below is failed (default: -1)"),
        ("no-speech", "above, a window that fails is silence (default: 0.6)"),
    ):
        add(f"--{name}-threshold", type=float, metavar="X", help=text)
    add("--seed", type=int, metavar="N", help="for temperatures above 0 (default: 0)")
    add("--raw", metavar="FORMAT", help="samples without a header, as in s16le:16000:1")


def run(args: argparse.Namespace) -> int:
    formats = output.chosen_formats(args.format)
    if args.output is None:
        _refuse(args.resume, "--resume needs --output", "add --output DIR")
        _refuse(len(formats) > 1, "several formats need --output", "add --output DIR")
    diarize = args.diarize or args.speakers is not None or args.rttm is not None
    _refuse("rttm" in formats and not diarize, "the format rttm needs --diarize", "add --diarize")
    names = [output.stem(name) for name in args.files]
    twice = sorted({name for name in names if names.count(name) > 1})
    _refuse(bool(args.output and twice), f"two files would be written as {twice and twice[0]}", "rename one")
    from specport import speech
    from specport.speech.audio.read import raw_format
    from specport.speech.decoding.options import TranscribeOptions
    from specport.speech.speakers.diarize import Diarizer, GivenTurns

    # Reject bad options and missing files now, not after a model was downloaded and converted.
    TranscribeOptions(**options.given(args, OPTIONS))
    _check_files(args.files)
    if args.raw is not None:
        raw_format(args.raw)
    if args.rttm is not None:
        GivenTurns(args.rttm)
    Diarizer(args.speakers, 8 if args.max_speakers is None else args.max_speakers)
    with terminal.progress(args.quiet) as progress:
        given = options.given(args, LOAD_OPTIONS)
        if args.batch is not None:
            given["batch"] = args.batch
        transcriber = speech.load(args.model, **given, progress=progress)
    with transcriber:
        if not args.quiet:
            for line in output.introduction(transcriber):
                terminal.say(line)
        code = 0
        for name in args.files:
            try:
                code = _transcribe(args, transcriber, name, formats, diarize) or code
            except SpecportError as error:
                if len(args.files) == 1:
                    raise
                terminal.complain(str(error))  # the other files may be good
                code = 2
            if code == 130:
                break
        return code


def _transcribe(
    args: argparse.Namespace, transcriber: Transcriber, name: str, formats: list[str], diarize: bool
) -> int:
    """Transcribe one file and write it. Return 130 if it was stopped."""
    checkpoint = _checkpoint(args, transcriber, name, diarize) if args.output is not None else None
    with terminal.progress(args.quiet or output.plain_terminal(args, formats, diarize)) as progress:
        talk = transcriber.stream(
            name, raw=args.raw, diarize=diarize, progress=progress, checkpoint=checkpoint, resume=args.resume,
            **options.given(args, (*SPEAKER_OPTIONS, *OPTIONS)),
        )  # fmt: skip
        with terminal.on_ctrl_c(talk.cancel):
            if output.plain_terminal(args, formats, diarize):
                output.print_as_heard(args, talk)
            else:
                for _ in talk:
                    pass
    found = talk.transcript
    output.write(args, name, found, formats, printed=output.plain_terminal(args, formats, diarize))
    if not args.quiet:
        output.summary(found)
    if not found.complete:
        if checkpoint is not None:
            terminal.say("stopped; the same command with --resume goes on from here")
        return 130
    if checkpoint is not None:
        checkpoint.remove()  # not before what it led to is written
    return 0


def _checkpoint(
    args: argparse.Namespace, transcriber: Transcriber, name: str, diarize: bool
) -> Checkpoint | None:
    """Return where the state of a file is kept: beside its output."""
    from specport.speech.checkpoint import Checkpoint, fingerprint
    from specport.speech.decoding.options import TranscribeOptions

    path = expanded(name)
    if name in LIVE or not path.is_file():
        _refuse(args.resume, f"{name} cannot be resumed: it is no file")
        return None
    chosen = asdict(TranscribeOptions(**options.given(args, OPTIONS)))
    chosen["temperature"] = [*chosen["temperature"]]
    key: dict[str, Any] = {
        "audio": fingerprint(path), "raw": args.raw, "model": transcriber.model_name, "options": chosen,
        "words of speakers": diarize and args.merge != "turns", **transcriber.identity,
    }  # fmt: skip
    return Checkpoint(args.output / f".{output.stem(name)}{STATE}", key)


def _check_files(names: list[str]) -> None:
    for name in names:
        _refuse(name not in LIVE and not expanded(name).exists(), f"there is no file {name}")
    _refuse(sum(map(names.count, LIVE)) > 1, "only one live source can be read")


def _refuse(wrong: bool, message: str, hint: str = "") -> None:
    if wrong:
        raise InvalidInput(message, hint)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers like 0,0.2,0.4") from None
