"""`specport bench`: compare drafting methods, plain decoding and peers on a prompt file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specport.cli import options, terminal
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from specport.bench.run import Report

EXAMPLES = """\
examples:
  specport bench --prompts questions.jsonl --out results
  specport bench --prompts spec_bench.jsonl --per-category 10 --model DIR --draft DRAFT_DIR \\
      --method 'ngram|draft' --method ngram@fixed=4 --method genai:plain --method genai:draft --out results

  specport bench --speech clips.jsonl --draft tiny.en --method draft --method suffix --out results
  specport bench --prompts questions.jsonl --draft DRAFT_DIR --record rounds.json
  specport bench --replay rounds.json

A method is DRAFT, DRAFT@POLICY or DRAFT@POLICY=N, where DRAFT is auto, ngram, suffix, draft or several, as in
'ngram|draft'. The default policy is planned. DRAFT@fixed=3:2,2 drafts trees. The drafter suffix reads
--history and --datastore but does not change them: nothing is learnt between prompts. Peers: genai:plain,
genai:lookup, genai:draft and genai:draft-dynamic are openvino-genai on the same model; transformers:plain,
transformers:lookup and transformers:draft are PyTorch on the weights before conversion; llama.cpp:plain,
llama.cpp:lookup, llama.cpp:lookup-10 and llama.cpp:draft are llama.cpp on the GGUF file before conversion.
For speech a method is a draft expression of specport transcribe, or transformers:plain, transformers:draft,
genai:plain (with --peer-model genai=DIR, as optimum-cli exports it) or faster-whisper:plain.
Plain decoding is always measured: of text before and after the other methods, of speech as the first one. The
same command resumes a benchmark of text that was stopped.
"""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "bench", help="compare drafting methods, plain decoding and peers", epilog=EXAMPLES,
        description="Decode speed by method and category, on a prompt file, in one interleaved run.",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE",
        help='one JSON object per line: {"id": 1, "category": "qa", "turns": ["Why?"]}',
    )  # fmt: skip
    parser.add_argument(
        "--speech", type=Path, metavar="FILE",
        help='transcribe instead; one JSON object per line: {"audio": "a.wav", "text": "What is said", '
        '"language": "en", "rttm": "a.rttm"}',
    )  # fmt: skip
    parser.add_argument(
        "--peer-model", action="append", metavar="SYSTEM=DIR", default=[],
        help="with --speech: the model's folder in the format of another system; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, metavar="N", help="with --speech: windows that are decoded together"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for report.md, .html, .json and rows")
    add = parser.add_argument
    add(
        "--method",
        action="append",
        dest="methods",
        metavar="METHOD",
        help="method to measure, see below; repeatable",
    )
    add("--per-category", type=int, metavar="N", help="at most N prompts of each category")
    add(
        "--category",
        action="append",
        dest="categories",
        metavar="NAME",
        help="measure this category only; repeatable",
    )
    add("--max-new-tokens", type=int, metavar="N", help="most tokens of each answer (default: 128)")
    add("--runs", type=int, metavar="N", help="runs of each method on each prompt (default: 1)")
    options.add_target_options(parser)
    draft = parser.add_argument_group("drafting")
    draft.add_argument("--draft", metavar="MODEL", help="the model that the name `draft` means in a method")
    options.add_precision(
        draft, "--draft-precision", "weight format of the draft model (default: the device's)"
    )
    options.add_retrieval_options(draft)
    rounds = parser.add_argument_group("recorded rounds")
    rounds.add_argument(
        "--record", type=Path, metavar="FILE",
        help="record what --draft proposes at each position of the answers, instead of timing methods",
    )  # fmt: skip
    rounds.add_argument(
        "--replay", type=Path, metavar="FILE", action="append",
        help="compare the planner with fixed lengths on recorded rounds, without a model; repeatable",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


BENCH_OPTIONS = (
    "model", "draft", "methods", "device", "precision", "draft_precision", "history", "datastore", "exact",
    "threads", "max_new_tokens", "per_category", "categories", "runs", "trust_remote_code",
)  # fmt: skip
RECORD_OPTIONS = (
    "model", "draft", "device", "precision", "draft_precision", "threads", "max_new_tokens", "per_category",
    "categories", "trust_remote_code",
)  # fmt: skip

SPEECH_OPTIONS = (
    "model", "draft", "methods", "device", "precision", "draft_precision", "exact", "threads", "batch",
    "runs",
)  # fmt: skip
_FLAGS = {"exact": "--exact or --fast", "methods": "--method", "categories": "--category"}


def _given(args: argparse.Namespace, known: tuple[str, ...], mode: str) -> dict[str, Any]:
    """Return the options of a mode that were given. Raises InvalidInput for one that it would ignore."""
    others = {*BENCH_OPTIONS, *RECORD_OPTIONS, *SPEECH_OPTIONS} - {*known}
    given = [*options.given(args, (*sorted(others),))]
    if args.peer_model and known is not SPEECH_OPTIONS:
        given.append("peer_model")
    for name in given:
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        raise InvalidInput(f"{flag} means nothing {mode}", "leave it out")
    return options.given(args, known)


def run(args: argparse.Namespace) -> int:
    if args.replay:
        _given(args, (), "with --replay")
        return _replay(args.replay)
    if args.speech is not None:
        return _speech(args)
    if args.prompts is None:
        raise InvalidInput("no prompts are given", "add --prompts FILE")
    if args.record:
        return _record(args)
    if args.out is None:
        raise InvalidInput("no folder for the report is given", "add --out DIR")
    from specport.bench.run import bench

    given = _given(args, BENCH_OPTIONS, "without --speech")
    with terminal.progress(args.quiet) as progress:
        report = bench(args.prompts, args.out, **given, progress=progress)
    _table(report)
    terminal.say(f"written: {report.folder / 'report.md'}, report.html, report.json")
    return 0


def _speech(args: argparse.Namespace) -> int:
    from specport.bench.speech import bench_speech
    from specport.bench.speech_report import table

    if args.out is None:
        raise InvalidInput("no folder for the report is given", "add --out DIR")
    given = _given(args, SPEECH_OPTIONS, "with --speech")
    peers = dict(each.partition("=")[::2] for each in args.peer_model)
    with terminal.progress(args.quiet) as progress:
        report = bench_speech(args.speech, args.out, **given, peer_models=peers, progress=progress)
    rows = table(report)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        terminal.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + "\n")
    terminal.say(f"written: {report.folder / 'report.md'}, report.json")
    return 0


def _record(args: argparse.Namespace) -> int:
    from specport.bench.rounds import record_rounds

    if args.draft is None:
        raise InvalidInput("no draft model to record is given", "add --draft MODEL")
    given = _given(args, RECORD_OPTIONS, "with --record")
    with terminal.progress(args.quiet) as progress:
        recording = record_rounds(args.prompts, args.record, **given, progress=progress)
    tokens = sum(len(text.tokens) for text in recording.texts)
    terminal.say(f"written: {args.record}, {tokens} tokens of {len(recording.texts)} answers")
    terminal.say(f"next: specport bench --replay {args.record}")
    return 0


def _replay(paths: Sequence[Path]) -> int:
    from specport.bench.recording import Recording
    from specport.bench.replay import compare

    for path in paths:
        recording = Recording.load(path)
        for device in recording.costs:
            terminal.write(f"{path.name}: {recording.about.get('draft')} on {device}, simulated\n")
            terminal.write(f"{'':12}{'plain ms':>10}{'best fixed':>16}{'planned':>10}{'ngram|draft':>13}\n")
            for row in compare(recording, device):
                best = f"{row.best_speedup:.2f} ({row.best})"
                terminal.write(
                    f"{row.category[:12]:12}{1e3 * row.plain_s:10.1f}{best:>16}"
                    f"{row.planned:10.2f}{row.with_ngram:13.2f}\n"
                )
    return 0


def _table(report: Report) -> None:
    """Print the speed-ups by method and category."""
    categories = [*dict.fromkeys(c for groups in report.table.values() for c in groups)]
    width = max(len(name) for name in report.table)
    terminal.write(f"{'decode speed-up':{width}} " + "".join(f"{c[:13]:>14}" for c in categories))
    terminal.write("   end to end  same text\n")
    for name, groups in report.table.items():
        cells = (groups[c].decode if c in groups else None for c in categories)
        shown = "".join(f"{'' if cell is None else f'{cell:.2f}':>14}" for cell in cells)
        whole = groups["all"]
        terminal.write(f"{name:{width}} {shown}{whole.end_to_end:13.2f}  {whole.same}/{whole.prompts}\n")
