"""`specport bench --speech`: word errors, speed, speakers, for drafts and other systems, on audio files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from specport import speech
from specport.bench.clips import Clip, read_clips
from specport.bench.peers.speech import PEERS, make, normalizer
from specport.bench.speech_report import SpeechReport, write
from specport.drafters.spec import parse
from specport.errors import InvalidInput, SpecportError
from specport.outside.places import expanded
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import cpu_name, usable_cores
from specport.runtime.versions import installed
from specport.speech.audio.read import RATE, Samples, read_all
from specport.speech.audio.source import Source
from specport.speech.packaged import named
from specport.speech.speakers.diarize import Diarizer
from specport.speech.speakers.merge import MERGES
from specport.speech.speakers.score import diarization_error, read_rttm, right_speaker_share
from specport.speech.transcriber import Transcriber
from specport.speech.transcript import Counts

PLAIN = "none"
_WARM_S = 5  # seconds of audio that each method hears before it is timed
PACKAGES = ("openvino", "openvino-genai", "transformers", "torch", "faster-whisper", "ctranslate2", "numpy")


@dataclass(frozen=True)
class Said:
    """Hold what a method makes of a clip. ids: of each segment; None = of another system."""

    text: str
    counts: Counts = field(default_factory=Counts)
    ids: tuple[tuple[int, ...], ...] | None = None


@dataclass
class MethodRun:
    """Hold what one method made of all clips, by clip. seconds, counts: of its fastest run."""

    method: str
    texts: dict[str, str] = field(default_factory=dict)
    ids: dict[str, tuple[tuple[int, ...], ...] | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)

    def add(self, clip: str, said: Said, seconds: float) -> None:
        """Add what was made of a clip."""
        self.texts[clip], self.ids[clip] = said.text, said.ids
        if seconds < self.seconds.get(clip, math.inf):
            self.seconds[clip], self.counts[clip] = seconds, said.counts


@dataclass(frozen=True)
class _Method:
    """A system that hears clips.

    forget: makes it hear a clip as if for the first time. A window's encoding, and texts that can be drafted
            from, would make a second run of the same clip faster than any first one.
    """

    hear: Callable[[Samples, Clip], Said]
    forget: Callable[[], None] = lambda: None


def bench_speech(
    clips_file: Path,
    out: Path,
    *,
    model: str | None = None,
    draft: str | None = None,
    methods: Sequence[str] = (),
    peer_models: Mapping[str, str] | None = None,
    device: str | None = None,
    precision: str | None = None,
    draft_precision: str | None = None,
    exact: bool = True,
    threads: int | None = None,
    batch: int = 1,
    runs: int = 1,
    progress: Progress = silent,
) -> SpeechReport:
    """Run all methods on all clips, clip by clip, and write report.md and report.json into `out`.

    methods: draft expressions, in which "draft" is the model that `draft` names, and names of PEERS. Plain
             decoding is always measured, first. peer_models: system -> folder, where it needs another format.
    batch:   windows that specport decodes together.
    runs:    of all clips; each begins without what was heard in the one before. The fastest of a clip counts.
    """
    clips = read_clips(clips_file)
    _check(clips, runs, peer_models or {})
    chosen = [*dict.fromkeys((PLAIN, *(methods or (("auto", "draft") if draft else ("auto",)))))]
    own = {name: parse(name) for name in chosen if name not in PEERS}
    drafted = [name for name, spec in own.items() if "draft" in spec.models]
    drafted += [name for name in chosen if name in PEERS and name.endswith(":draft")]
    if draft is None and drafted:
        raise InvalidInput(f"the method {drafted[0]} needs a model", "give one with --draft")
    given = {
        "device": device, "precision": precision, "draft_precision": draft_precision, "threads": threads,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    made: dict[str, _Method] = {}
    transcribers: list[Transcriber] = []
    try:
        for number, name in enumerate(chosen):
            show = part(progress, 0.2 * number / len(chosen), 0.2 * (number + 1) / len(chosen))
            if name in PEERS:
                made[name] = _peer(name, model, draft, peer_models or {}, threads, show)
                continue
            # The draft itself may be an expression.
            named = own[name].with_models({"draft": draft or "draft"})
            expression = draft if name == "draft" else str(named)
            found = speech.load(
                model, draft=expression, batch=max(8, batch), exact=exact, progress=show, **options
            )
            transcribers.append(found)
            made[name] = _own(found, batch)
        rows, audio = _measured(clips, made, runs, part(progress, 0.2, 0.9))
        speakers = [
            _speakers(transcribers[0], clip, part(progress, 0.9, 1.0))
            for clip in clips
            if clip.rttm is not None
        ]
    finally:
        for each in transcribers:
            each.close()
    about = {
        "model": transcribers[0].model_name, "draft": _shown(draft), "device": transcribers[0].device_name,
        "batch": batch, "runs": runs,
        "numerics": "exact" if exact else "fast", "processor": cpu_name(), "cores": usable_cores(),
        "threads": threads, "packages": installed(PACKAGES),
    }  # fmt: skip
    report = SpeechReport([_figures(row, rows[0], clips, audio) for row in rows], speakers, about, out)
    write(report, [asdict(row) for row in rows])
    return report


def _shown(draft: str | None) -> str | None:
    """Return a draft expression with the names of folders instead of their paths."""
    if draft is None:
        return None
    spec = parse(draft)
    return str(spec.with_models({each: Path(each).name for each in spec.models if expanded(each).exists()}))


def _check(clips: Sequence[Clip], runs: int, peer_models: Mapping[str, str]) -> None:
    """Raise SpecportError for what would end the benchmark after hours of measuring."""
    if runs < 1:
        raise InvalidInput(f"runs is {runs}; it must be 1 or more")
    systems = [*dict.fromkeys(name.partition(":")[0] for name in PEERS)]
    for system, folder in peer_models.items():
        if system not in systems:
            raise InvalidInput(f"no peer is called {system!r}", f"--peer-model takes {', '.join(systems)}")
        if not folder or not expanded(folder).is_dir():
            raise InvalidInput(f"there is no folder {folder!r}", f"write --peer-model {system}=DIR")
    for clip in clips:
        if not expanded(clip.audio).is_file():
            raise InvalidInput(f"there is no file {clip.audio}")
        if clip.rttm is not None:
            read_rttm(clip.rttm)
    # Whether what the word errors need is there.
    word_error_rate(("", clip.text, clip.language) for clip in clips)


def _own(transcriber: Transcriber, batch: int) -> _Method:
    def run(samples: Samples, clip: Clip) -> Said:
        language = clip.language if transcriber.model.tokens.multilingual else None
        found = transcriber.transcribe(samples, language=language, batch=batch)
        return Said(found.text, found.counts, tuple(segment.ids for segment in found.segments))

    return _Method(run, transcriber.model.forget)


def _peer(
    name: str,
    model: str | None,
    draft: str | None,
    folders: Mapping[str, str],
    threads: int | None,
    progress: Progress,
) -> _Method:
    folder = folders.get(name.partition(":")[0]) or named(model, progress)
    assistant = Path(named(draft, progress)) if draft is not None else None
    # As many as the runtimes choose for specport: one for each core, whatever the threads of a core.
    peer = make(name, expanded(folder), assistant, threads or psutil.cpu_count(logical=False) or 1)
    return _Method(lambda samples, clip: Said(peer(samples, clip.language)))


def _measured(
    clips: Sequence[Clip], methods: Mapping[str, _Method], runs: int, progress: Progress
) -> tuple[list[MethodRun], float]:
    """Run the methods in turn on each clip, so that what slows the machine down meets all of them.

    Returns also the seconds of audio.
    """
    rows = {name: MethodRun(name) for name in methods}
    total, done, lengths = len(clips) * len(methods) * runs, 0, dict[str, int]()
    beginning = read_all(clips[0].audio)[: _WARM_S * RATE]
    for name, method in methods.items():  # graphs are compiled and weights repacked at the first window
        progress(f"warming up {name}", 0.0)
        method.hear(beginning, clips[0])
    for _ in range(runs):
        for method in methods.values():
            method.forget()
        for clip in clips:
            samples = read_all(clip.audio)  # anew in each run: all clips together may be hours
            lengths[clip.id] = len(samples)
            for name, method in methods.items():
                progress(f"{clip.id}, {name}", done / total)
                began = time.perf_counter()
                said = method.hear(samples, clip)
                rows[name].add(clip.id, said, time.perf_counter() - began)
                done += 1
    return [*rows.values()], sum(lengths.values()) / RATE


def _figures(row: MethodRun, plain: MethodRun, clips: Sequence[Clip], audio: float) -> dict[str, Any]:
    counts, seconds = sum(row.counts.values(), Counts()), sum(row.seconds.values())
    known = [clip for clip in clips if clip.text is not None]
    own = all(ids is not None for ids in row.ids.values())
    return {
        "method": row.method,
        "wer": _errors(row, known),
        "wer_by_language": {
            language: _errors(row, [clip for clip in known if clip.language == language])
            for language in dict.fromkeys(clip.language for clip in known)
        },
        "same_text": sum(row.texts[clip.id] == plain.texts[clip.id] for clip in clips),
        "same_ids": sum(row.ids[clip.id] == plain.ids[clip.id] for clip in clips) if own else None,
        "clips": len(clips),
        "seconds": seconds,
        "real_time_factor": seconds / audio if audio else None,
        "speedup": sum(plain.seconds.values()) / seconds if seconds else None,
        "encoder_seconds": counts.encoder_seconds or None,
        "decoder_seconds": counts.decoder_seconds or None,
        "tokens_per_step": counts.tokens / counts.rounds if counts.rounds else None,
        "acceptance": counts.accepted / counts.drafted if counts.drafted else None,
        "fallbacks": counts.fallbacks,
    }


def _errors(row: MethodRun, clips: Sequence[Clip]) -> float | None:
    return word_error_rate((row.texts[clip.id], clip.text, clip.language) for clip in clips)


def word_error_rate(pairs: Iterable[tuple[str, str | None, str]]) -> float | None:
    """Return the share of words that are wrong, after Whisper's normalizer: (text, reference, language)."""
    try:
        import jiwer
    except ImportError as error:
        raise SpecportError(
            "word error rates need the package jiwer", "pip install 'specport[bench]'"
        ) from error
    truths, texts = [], []
    for text, truth, language in pairs:
        normal = normalizer(language)
        wanted = normal(truth or "")
        if wanted.strip():  # jiwer refuses an empty reference
            truths.append(wanted)
            texts.append(normal(text))
    return float(jiwer.wer(truths, texts)) if truths else None


def _speakers(transcriber: Transcriber, clip: Clip, progress: Progress) -> dict[str, Any]:
    """Return the diarization error of a clip, and how many words each merge gives to the right speaker."""
    assert clip.rttm is not None
    truth = read_rttm(clip.rttm)
    given = Diarizer(clip.speakers).turns(Source(clip.audio), progress)
    estimated = Diarizer().turns(Source(clip.audio), progress)
    language = clip.language if transcriber.model.tokens.multilingual else None
    found = transcriber.transcribe(clip.audio, language=language, word_timestamps=True)
    return {
        "id": clip.id,
        "speakers": len({turn.speaker for turn in truth}),
        "estimated": len({turn.speaker for turn in estimated}),
        "der": diarization_error(truth, given).rate,
        "der_estimated": diarization_error(truth, estimated).rate,
        "missed": diarization_error(truth, given).missed,
        "false_alarm": diarization_error(truth, given).false_alarm,
        "confusion": diarization_error(truth, given).confusion,
        "right_speaker": {
            name: right_speaker_share(merge(found.segments, given), truth, given)
            for name, merge in MERGES.items()
        },
    }
