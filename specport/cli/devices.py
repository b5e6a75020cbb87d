"""`specport devices`: list the devices of this machine, and how to make the others available."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from importlib.util import find_spec

from specport.cli import options, terminal
from specport.errors import ModelError
from specport.jobs import worker
from specport.quantize.convert import package_faults
from specport.runtime.versions import installed

GREEN, YELLOW = "32", "33"  # ANSI codes
TORCHVISION = worker.Job("specport.quantize.convert.package_faults:torchvision_problem")


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "devices",
        help="list the devices of this machine, and what is missing",
        description="List every device profile: available, or the reason why not and the fix.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def run(args: argparse.Namespace) -> int:
    from specport.runtime.devices.profiles import cpu_flags, cpu_name, detect, list_profiles, usable_cores
    from specport.runtime.devices.registry import statuses

    profiles = list_profiles()
    found = statuses(profiles)
    chosen = detect().name
    versions = installed(("openvino", "torch", "transformers", "optimum-intel", "optimum-habana"))
    problems = _problems()
    machine = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "instructions": sorted(cpu_flags()),
        "versions": versions,
        "auto": chosen,
        "problems": problems,
    }
    if args.json:
        devices = [{"description": p.description, **asdict(s)} for s, p in zip(found, profiles, strict=True)]
        terminal.write(json.dumps({**machine, "devices": devices}, indent=2) + "\n")
        return 0
    width = max(len(profile.name) for profile in profiles)
    for status, profile in zip(found, profiles, strict=True):
        mark = f"{'available' if status.available else 'not here':9}"
        if terminal.coloured(sys.stdout):
            mark = terminal.paint(mark, GREEN if status.available else YELLOW)
        auto = "  <- auto" if status.profile == chosen and status.available else ""
        terminal.write(f"{mark}  {status.profile:{width}} {profile.description}{auto}\n")
        for line in (
            status.facts.get("name"),
            status.reason,
            status.remedy and f"fix: {status.remedy}",
        ):
            if line:
                terminal.write(f"{'':{width + 11}} {line}\n")
    instructions = ", ".join(sorted(cpu_flags())) or "instruction sets unknown"
    terminal.write(f"\n{machine['cpu']}, {machine['cores']} cores; {instructions}\n")
    terminal.write(", ".join(f"{name} {number}" for name, number in versions.items()) + "\n")
    for problem in problems:
        terminal.write(f"{problem['reason']}; fix: {problem['remedy']}\n")
    return 0


def _problems() -> list[dict[str, str]]:
    """Return what is wrong with the installed packages, with the command that mends it."""
    if find_spec("torch") is None or find_spec("torchvision") is None:
        return []
    # A process of its own: torch takes seconds to import, and a failed import leaves traces.
    try:
        why = worker.run(TORCHVISION, {}, "it ends its process")
    except ModelError as error:
        why = error.message
    number = installed(("torchvision",)).get("torchvision", "of an unknown version")
    reason = f"torchvision {number} does not import here ({why}); specport hides it from transformers"
    return [{"reason": reason, "remedy": package_faults.REMEDY}] if why else []
