"""Kill every long command at random moments: 100 kills, or --kills N; writes a table in Markdown.

python tests/benchmarks/trust/kills.py --out kills.md
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.modules["torchvision"] = None  # type: ignore[assignment]  # tests need none: see conftest.py

from support.faults.kills import Findings, kill_often  # noqa: E402
from support.faults.long_commands import COMMANDS, prepared  # noqa: E402

# Those that write more, or replace what the user has, are killed more often.
WEIGHTS = {"datastore": 14, "transcribe": 14, "adapt": 10, "quantize": 10, "bench --record": 12}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", action="append", choices=[*COMMANDS])
    parser.add_argument("--chain", type=int, default=1, help="kills before each run to the end (default: 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--template", type=Path, help="keep models and prompts in this folder for other runs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    names = args.only or [*COMMANDS]
    weights = {name: WEIGHTS.get(name, 8) for name in names}
    shares = {
        name: max(1, round(args.kills * weight / sum(weights.values()))) for name, weight in weights.items()
    }
    found = []
    with tempfile.TemporaryDirectory() as folder:
        template = prepared(args.template or Path(folder, "template"), names, whole=bool(args.template))
        for name in names:
            try:
                found.append(
                    kill_often(
                        COMMANDS[name],
                        template,
                        Path(folder),
                        shares[name],
                        args.seed,
                        args.chain,
                        known=args.template and args.template.with_suffix(".json"),
                    )
                )
            except Exception as error:  # the other commands are killed all the same
                found.append(Findings(name, problems=[f"the harness: {error!r}"]))
            print(row(found[-1]), *found[-1].problems, *sorted(found[-1].left), sep="\n    ", flush=True)
            if args.out is not None:
                args.out.write_text("\n".join([HEAD, *map(row, found)]) + "\n", encoding="utf-8")
    sys.exit(any(each.problems for each in found))


HEAD = "| command | kills | moments (s after the start) | problems | left behind |\n|---|---|---|---|---|"


def row(found: Findings) -> str:
    """Return a row of the table."""
    moments = ", ".join(f"{moment:.1f}" for moment in sorted(found.moments))
    return f"| {found.name} | {found.kills} | {moments} | {len(found.problems)} | {len(found.left)} |"


if __name__ == "__main__":
    main()
