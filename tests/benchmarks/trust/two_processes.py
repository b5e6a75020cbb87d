"""Each long command twice at once in the same folder: one is told, or both succeed, and nothing is half.

python tests/benchmarks/trust/two_processes.py
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.modules["torchvision"] = None  # type: ignore[assignment]  # tests need none: see conftest.py

from support.faults.kills import Command, changed_files, finish, half_files, start, undisturbed  # noqa: E402
from support.faults.long_commands import COMMANDS, prepared  # noqa: E402

_LATEST_S = 600.0


def twice(
    command: Command, template: Path, work: Path, known: Path | None = None
) -> tuple[list[int], list[str]]:
    """Return the exit codes of two processes, and what went wrong."""
    place = work / "place"
    expected = undisturbed(command, template, place, known)
    if expected.problem:
        return [], [expected.problem]
    shutil.copytree(template, place)
    both = []
    for number in range(2):
        with open(work / f"{number}.txt", "w", encoding="utf-8") as said:
            both.append(start(command, place, stdout=subprocess.DEVNULL, stderr=said))
    codes = [process.wait(_LATEST_S) for process in both]
    said = [(work / f"{number}.txt").read_text(encoding="utf-8", errors="replace") for number in range(2)]
    found = []
    if not {*codes} <= {0, 2} or 0 not in codes or any("Traceback" in each for each in said):
        found.append(f"they end with {codes}: {said[0][-300:]} {said[1][-300:]}")
    found += [f"{path} is half a file" for path in half_files(place)]
    found += [f"{name} of the user changed" for name in changed_files(command, template, place)]
    for name in command.made:
        path = place / name
        if path.is_dir() and command.arguments[0] == "quantize":  # it is made once only
            shutil.rmtree(path)
    code, out, after = finish(command, place, command.resume)
    if code or repr(command.result(place, out)) != expected.result:
        found.append(f"the next run ends with {code}: {after[-300:]}")
    shutil.rmtree(place)
    return codes, found


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[*COMMANDS])
    parser.add_argument("--template", type=Path, help="keep models and prompts in this folder for other runs")
    args = parser.parse_args()
    names = args.only or [name for name in COMMANDS if COMMANDS[name].during is None]
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        template = prepared(args.template or Path(folder, "template"), names, whole=bool(args.template))
        for name in names:
            known = args.template and args.template.with_suffix(".json")
            codes, problems = twice(COMMANDS[name], template, Path(folder), known)
            wrong |= bool(problems)
            print(f"| {name} | {codes} | {len(problems)} |", *problems, sep="\n    ", flush=True)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
