"""`specport adapt`: let a draft learn from its user's own texts, on this machine."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specport.cli import options, terminal
from specport.errors import InvalidInput
from specport.outside.places import expanded

if TYPE_CHECKING:
    from specport.quantize.adapt.judging import Replayed
    from specport.quantize.adapt.result import Adapted
    from specport.traffic.log import TrafficLog

EXAMPLES = """\
examples:
  specport adapt on --draft draft       record texts of the draft's target from now on, on this machine
  specport adapt status                 what is recorded, where, and what adapting gave
  specport adapt --budget 10m           learn from them; keep the new draft only where it is better
  specport adapt --idle --budget 1h     the same, whenever nobody else uses the machine
  specport adapt --undo                 take the previous version of the draft
  specport adapt off                    record no more; clear deletes what was recorded

Nothing is recorded unless it is on. The log has the token ids of your prompts and answers: your text. It is
bounded, stays in the cache folder and is readable by you alone. The draft only proposes: answers stay those
of the target. The same command resumes an adaptation that was stopped.
"""
ADAPT_OPTIONS = ("model", "budget_s", "learning_rate", "device", "threads", "trust_remote_code")
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
_BYTES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "adapt", help="let a draft learn from your own texts", epilog=EXAMPLES,
        description="Train a draft on your own texts, which are recorded on this machine where you allow it.",
    )  # fmt: skip
    actions = parser.add_subparsers(dest="action", metavar="ACTION", title="actions (without one: adapt)")
    on = actions.add_parser("on", help="record texts from now on")
    on.add_argument("--limit", metavar="SIZE", help="most that is kept, as in 64MB (default: 64MB)")
    off = actions.add_parser("off", help="record no more")
    status = actions.add_parser("status", help="show what is recorded and what adapting gave")
    clear = actions.add_parser("clear", help="delete what was recorded")
    status.add_argument("--json", action="store_true", dest="as_json", default=argparse.SUPPRESS)
    for action in (on, off, status, clear):
        action.add_argument("--draft", type=Path, metavar="DIR", default=argparse.SUPPRESS,
                            help="the draft (default: the only one)")  # fmt: skip
    add = parser.add_argument
    add("--draft", type=Path, metavar="DIR", help="the draft, of specport quantize (default: the only one)")
    add(
        "--model", metavar="MODEL",
        help="the draft's target, as for specport run; loaded where no text of its build is left",
    )  # fmt: skip
    add("--budget", dest="budget_s", type=_seconds, metavar="TIME", help="as in 10m or 1h (default: 10m)")
    add("--learning-rate", type=float, metavar="X", help="of the training (default: 2e-5)")
    add("--idle", action="store_true", help="work only while nobody else uses the machine")
    add("--undo", action="store_true", help="exchange the draft and its previous version")
    options.add_device_options(parser)
    add("--json", action="store_true", dest="as_json", help="print one JSON object")
    add("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    if args.action is not None:
        return ACTIONS[args.action](args)
    draft = _draft(args.draft)
    if args.undo:
        return _undo(args, draft)
    from specport.quantize.adapt.adapt import BUDGET_S, adapt
    from specport.quantize.adapt.idle import Pace, low_priority

    given = options.given(args, ADAPT_OPTIONS)
    pace = Pace(given.get("budget_s", BUDGET_S), idle=args.idle)
    with low_priority(), terminal.progress(args.quiet) as progress:
        result = adapt(draft, progress=progress, pace=pace, **given)
    if args.as_json:
        terminal.write(json.dumps(result.as_dict()) + "\n")
    else:
        _show(result)
    return 0


def _show(result: Adapted) -> None:
    from specport.quantize.adapt.judging import BOUND, MARGIN
    from specport.quantize.adapt.result import KEPT, STOPPED

    for note in result.notes:
        terminal.say(f"note: {note}")
    if result.state == STOPPED:
        terminal.say("the time is over; the same command goes on where it stopped")
        return
    judged = result.judgement
    if judged is not None:
        for name, before, after, wanted in (
            ("own texts", judged.own_before, judged.own_after, f"has to rise by {MARGIN:.0%}"),
            ("old text", judged.old_before, judged.old_after, f"may fall by {BOUND:.0%}"),
        ):
            terminal.write(f"{name:>10}  {_change(before, after)}; {wanted}\n")
    learned = f"{result.own_tokens} tokens of your answers and {result.old_tokens} of old text"
    if result.state == KEPT:
        terminal.say(f"kept: {result.draft} learned from {learned}; specport adapt --undo takes that back")
    elif judged is None:
        terminal.say(f"not kept: training on {learned} did not make the draft better; it stays as it was")
    else:
        terminal.say(f"not kept: the draft stays as it was (trained on {learned})")


def _change(before: Replayed, after: Replayed) -> str:
    change = after.tokens_per_step / before.tokens_per_step - 1 if before.tokens_per_step else 0.0
    steps = f"{before.tokens_per_step:.2f} to {after.tokens_per_step:.2f} tokens a step ({change:+.1%})"
    return f"{steps} on {after.tokens} held-out tokens"


def _undo(args: argparse.Namespace, draft: Path) -> int:
    from specport.quantize.adapt import swapping

    swapping.undo(draft)
    if args.as_json:
        previous = swapping.previous_of(draft)
        terminal.write(json.dumps({"state": "undone", "draft": str(draft), "previous": str(previous)}) + "\n")
    else:
        terminal.say(f"{draft} is the previous version again; specport adapt --undo takes the other one")
    return 0


def _on(args: argparse.Namespace) -> int:
    from specport.models import bundle
    from specport.traffic.log import MAX_BYTES, Settings, TrafficLog

    draft = _draft(args.draft)
    about = bundle.read(draft)
    bundle.check_is_model(about, draft)
    log = TrafficLog(about.target_fingerprint)
    limit = MAX_BYTES if args.limit is None else _size(args.limit)
    settings = log.settings() or Settings(True, str(draft), about.target)
    log.save(replace(settings, on=True, draft=str(draft), target=about.target, max_bytes=limit))
    terminal.say(
        f"texts of {about.target} are recorded from now on, at most {_mb(limit)}, in {log.folder}; "
        "specport adapt off ends that, specport adapt clear deletes them"
    )
    return 0


def _off(args: argparse.Namespace) -> int:
    logs = _logs(args)
    for log in logs:
        log.note(on=False)
    terminal.say("nothing is recorded any more" if logs else "nothing was recorded")
    return 0


def _clear(args: argparse.Namespace) -> int:
    freed = [log.clear() for log in _logs(args)]
    count, size = (sum(part) for part in zip(*freed, strict=True)) if freed else (0, 0)
    terminal.say(f"deleted {count} texts, {_mb(size)}")
    return 0


def _status(args: argparse.Namespace) -> int:
    found = [_facts(log) for log in _logs(args)]
    if args.as_json:
        terminal.write(json.dumps(found, indent=1) + "\n")
        return 0
    if not found:
        terminal.say("nothing is recorded; specport adapt on --draft DIR begins")
    for facts in found:
        lines = [
            ("target", f"{facts['target']}, {'on' if facts['on'] else 'off'}"),
            ("log", f"{facts['texts']} texts, {_mb(facts['bytes'])} of {_mb(facts['max_bytes'])}"),
            ("folder", facts["folder"]),
            ("draft", facts["draft"] + (", with a previous version" if facts["previous"] else "")),
        ]
        if last := facts["last"]:
            lines.append(("last", _last(last)))
        if facts["half_done"]:
            lines.append(("half done", "specport adapt goes on with it"))
        for name, text in lines:
            terminal.write(f"{name:>10}  {text}\n")
    return 0


def _last(last: dict[str, Any]) -> str:
    text = f"{last.get('date')}, {last.get('state')}"
    if own := last.get("own"):
        text += f": {own[0]:.2f} to {own[1]:.2f} tokens a step on own texts"
    if old := last.get("old"):
        text += f", {old[0]:.2f} to {old[1]:.2f} on old text"
    return text


def _facts(log: TrafficLog) -> dict[str, Any]:
    from specport.quantize.adapt.swapping import previous_of

    settings = log.settings()
    assert settings is not None  # `_logs` returns such logs only
    files = log.files()
    return {
        "target": settings.target,
        "on": settings.on,
        "texts": len(files),
        "bytes": log.size(),
        "max_bytes": settings.max_bytes,
        "folder": str(log.folder),
        "draft": settings.draft,
        "previous": previous_of(Path(settings.draft)).is_dir(),
        "half_done": log.work.is_dir() and any(log.work.iterdir()),
        "last": settings.last,
    }


def _logs(args: argparse.Namespace) -> list[TrafficLog]:
    """Return the logs with settings: of the draft that was named, else all."""
    from specport.models import bundle
    from specport.traffic.log import TrafficLog, all_logs

    if args.draft is None:
        return [log for log in all_logs() if log.settings() is not None]
    log = TrafficLog(bundle.read(_draft(args.draft)).target_fingerprint)
    return [log] if log.settings() is not None else []


def _draft(given: Path | None) -> Path:
    """Return the folder of the draft: the one that was named, the only recorded one, or the only built one.

    Raises InvalidInput where none or several come into question, or the folder is no draft.
    """
    from specport.models import bundle
    from specport.quantize.adapt.swapping import previous_of
    from specport.traffic.log import all_logs

    if given is None:
        settings = [found for log in all_logs() if (found := log.settings()) is not None]
        known = {*(s.draft for s in settings if s.on)} or {*(s.draft for s in settings)}
        known = known or {str(folder) for folder in bundle.all_registered()}
        if not known:
            raise InvalidInput("no draft is known", "name one with --draft DIR; specport quantize makes one")
        if len(known) > 1:
            listed = ", ".join(sorted(known))
            raise InvalidInput(f"several drafts come into question: {listed}", "name one with --draft DIR")
        given = Path(known.pop())
    draft = expanded(given).resolve()
    if not (draft / bundle.BUNDLE_FILE).is_file() and not previous_of(draft).is_dir():
        raise InvalidInput(f"{given} is not a draft bundle", "specport quantize --out DIR makes one")
    return draft


def _seconds(text: str) -> float:
    """Return the seconds of a text like 90s, 10m or 1h."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip().lower())
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write it as in 90s, 10m or 1h")
    return seconds


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?b?)", text.strip().lower())
    size = int(float(match[1]) * _BYTES.get(match[2] if match[2] != "b" else "", 0)) if match else 0
    if size < 10**5:
        raise InvalidInput(f"{text!r} is no limit", "give 100KB or more, as in --limit 64MB")
    return size


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


ACTIONS = {"on": _on, "off": _off, "status": _status, "clear": _clear}
