"""`specport bench`: compare drafting methods, plain decoding and peers on a prompt file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal

if TYPE_CHECKING:
    from specport.bench.run import Report

EXAMPLES = """\
examples:
  specport bench --prompts questions.jsonl --out results
  specport bench --prompts spec_bench.jsonl --per-category 10 --model DIR --draft DRAFT_DIR \\
      --method 'ngram|draft' --method ngram@fixed=4 --method genai:plain --method genai:draft --out results

A method is DRAFT, DRAFT@POLICY or DRAFT@POLICY=N, where DRAFT is ngram, suffix, draft or several, as in
'ngram|draft'. The default policy is planned. DRAFT@fixed=3:2,2 drafts trees. The drafter suffix reads
--history and --datastore but does not change them: nothing is learnt between prompts. Peers: genai:plain,
genai:lookup, genai:draft and genai:draft-dynamic are openvino-genai on the same model; transformers:plain,
transformers:lookup and transformers:draft are PyTorch on the weights before conversion; llama.cpp:plain,
llama.cpp:lookup, llama.cpp:lookup-10 and llama.cpp:draft are llama.cpp on the GGUF file before conversion.
Plain decoding is always measured, before and after the others. The same command resumes a benchmark that was
stopped.
"""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "bench", help="compare drafting methods, plain decoding and peers", epilog=EXAMPLES,
        description="Decode speed by method and category, on a prompt file, in one interleaved run.",
    )  # fmt: skip
    parser.add_argument(
        "--prompts", required=True, type=Path, metavar="FILE",
        help='one JSON object per line: {"id": 1, "category": "qa", "turns": ["Why?"]}',
    )  # fmt: skip
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for report.md, .html, .json and rows"
    )
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
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


BENCH_OPTIONS = (
    "model", "draft", "methods", "device", "precision", "draft_precision", "history", "datastore", "exact",
    "threads", "max_new_tokens", "per_category", "categories", "runs", "trust_remote_code",
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from specport.bench.run import bench

    with terminal.progress(args.quiet) as progress:
        report = bench(args.prompts, args.out, **options.given(args, BENCH_OPTIONS), progress=progress)
    _table(report)
    terminal.say(f"written: {report.folder / 'report.md'}, report.html, report.json")
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
