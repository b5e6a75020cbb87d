"""`specport matrix`: run the conformance suite on every device, or all architectures; print one table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specport.cli import options, terminal
from specport.errors import InvalidInput
from specport.progress import progress_bar

TORCH = "torch-cpu"
EXAMPLES = """\
examples:
  specport matrix                               every available device
  specport matrix --device xeon --out results   one device; matrix.json, .md and .html
  specport matrix --device ./mine.toml          a backend of your own
  specport matrix --list --json                 rows for a CI, for GitHub's fromJSON
  specport matrix --collect A B --out all       join the results of several machines
  specport matrix --architectures               which decoders run, on OpenVINO and torch (half an hour)
  specport matrix --architectures llama gemma3_text --device xeon
exit code: 1 where a check failed
"""


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "matrix", help="run the conformance suite on every device", epilog=EXAMPLES,
        description="Check the contract that every backend must meet, on each device. Needs specport[test].",
    )  # fmt: skip
    parser.add_argument(
        "--device", action="append", metavar="DEVICE",
        help="a name from `specport devices` or a profile file; repeatable",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="MODEL", help="model, as for specport run (default: a tiny random llama)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR",
        help="write matrix.json, matrix.md, matrix.html; or architectures.json, architectures.md",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--list", action="store_true", help="list the rows for a CI; run nothing")
    actions.add_argument(
        "--collect",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="join the results in these folders; run nothing",
    )
    actions.add_argument(
        "--architectures", nargs="*", metavar="NAME",
        help="try tiny random models of these architectures (default: all that are known) on --device "
        "(default: the detected device and torch-cpu)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from specport.conformance.tables import matrix, results, table
    from specport.runtime.devices.profiles import list_profiles

    if args.list or args.collect:
        wrong = [name for name in ("device", "model") if getattr(args, name)]
        wrong += ["out"] if args.list and args.out else []
        if wrong:
            raise InvalidInput(f"--{wrong[0]} cannot be combined with --{'list' if args.list else 'collect'}")
    if args.architectures is not None:
        return _architectures(args)
    if args.list:
        _list(matrix.ci_rows(), args.json)
        return 0
    if args.collect:
        emulated = {profile.name: profile.emulated for profile in list_profiles()}
        found = results.join([results.read(path) for path in results.find(args.collect)], emulated)
    else:
        found = matrix.run(args.device or (), args.model, lambda line: terminal.say(f"specport: {line}"))
    if args.out:
        matrix.write(found, args.out)
    terminal.write(found.as_json() if args.json else table.text(found))
    return 1 if found.failed else 0


def _architectures(args: argparse.Namespace) -> int:
    from specport.conformance.tables import matrix, survey, survey_table
    from specport.runtime.devices.profiles import detect

    if args.model:
        raise InvalidInput("--model cannot be combined with --architectures")
    devices = args.device or [*dict.fromkeys((detect().name, TORCH))]
    with progress_bar() as progress:
        table = survey.survey(devices, args.architectures, progress)
    machine = matrix.provenance()
    if args.out:
        survey_table.write(table, machine, args.out)
    terminal.write(survey_table.as_json(table, machine) if args.json else survey_table.text(table))
    return 1 if any(cell.state == "failed" for row in table.values() for cell in row.values()) else 0


def _list(rows: dict[str, list[dict[str, object]]], as_json: bool) -> None:
    if as_json:
        terminal.write(json.dumps(rows) + "\n")  # one line, since a CI job passes it on as an output
        return
    for row in rows["include"]:
        runner = row["runner"]
        where = ", ".join(runner) if isinstance(runner, list) else str(runner)
        label = f"  with the label {row['label']}" if row["label"] else ""
        terminal.write(f"{row['device']:18} {where}{label}\n")
