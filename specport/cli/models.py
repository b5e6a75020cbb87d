"""`specport models`: list the cache, download and convert models, remove them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.errors import ModelError

if TYPE_CHECKING:
    from specport.models.cache import Entry

EXAMPLES = """\
examples:
  specport models                       list the cached models
  specport models pull                  download and convert the default model
  specport models pull Qwen/Qwen2.5-0.5B-Instruct --precision int4
  specport models rm NAME               remove a model by its name in the list
"""
HEADER = ("NAME", "PRECISION", "SIZE", "SOURCE")


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "models", help="list, download or remove cached models", epilog=EXAMPLES,
        description="Manage downloaded and converted models. SPECPORT_CACHE sets another folder for them.",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions")
    pull = actions.add_parser("pull", help="download and convert a model before its first run")
    pull.add_argument("model", nargs="?", metavar="MODEL", help="model, as for specport run --model")
    options.add_precision(pull, "--precision", "weight format of the converted model (default: int8)")
    options.add_trust_option(pull)
    remove = actions.add_parser("rm", help="remove a model from the cache")
    remove.add_argument("name", metavar="NAME")
    path = actions.add_parser("path", help="print the folder of a cached model")
    path.add_argument("name", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    from specport.models import cache

    if args.action == "pull":
        _pull(args)
    elif args.action == "rm":
        terminal.say(f"removed {args.name}, freed {_size(cache.remove(args.name))}")
    elif args.action == "path":
        terminal.write(f"{_folder(args.name)}\n")
    elif args.json:
        terminal.write(json.dumps([_as_dict(entry) for entry in cache.entries()], indent=1) + "\n")
    else:
        _list(cache.entries())
    return 0


def _pull(args: argparse.Namespace) -> None:
    from specport.runtime.conversion import resolve

    settings = options.given(args, ("precision", "trust_remote_code"))
    with terminal.progress(quiet=False) as progress:
        found = resolve(args.model, progress=progress, speech=None, **settings)
    terminal.say(f"{found.name} ({found.precision}) is ready")
    terminal.write(f"{found.folder}\n")


def _folder(name: str) -> Path:
    from specport.models import cache

    entry = cache.find(name)
    if damage := entry.about.get("damage"):
        raise ModelError(f"{name} is damaged: {damage}", f"specport models rm {name}")
    return entry.folder


def _list(entries: list[Entry]) -> None:
    if not entries:
        terminal.say("no models yet; `specport models pull` or the first run downloads the default model")
        return
    rows = [HEADER, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        terminal.write("  ".join(cells).rstrip() + "\n")


def _row(entry: Entry) -> tuple[str, ...]:
    damage = entry.about.get("damage")
    source = f"damaged: {damage}" if damage else str(entry.about.get("source", "?"))
    return (entry.name, str(entry.about.get("precision", "?")), _size(entry.size), source)


def _as_dict(entry: Entry) -> dict[str, object]:
    about = entry.about
    return {
        "name": entry.name,
        "precision": about.get("precision"),
        "size": entry.size,
        "source": about.get("source"),
        "damage": about.get("damage"),
        "path": str(entry.folder),
    }


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
