"""What `specport transcribe` shows and writes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import terminal
from specport.errors import InvalidInput
from specport.outside.shown import visible

if TYPE_CHECKING:
    from specport.speech.transcriber import Talk, Transcriber
    from specport.speech.transcript import Transcript

FORMATS = ("txt", "json", "srt", "vtt", "tsv", "rttm")


def chosen_formats(text: str | None) -> list[str]:
    """Return the formats that `--format` names. Raises InvalidInput."""
    if text == "all":
        return [form for form in FORMATS if form != "rttm"]
    found = [*dict.fromkeys((text or "txt").replace("text", "txt").split(","))]
    for form in found:
        if form not in FORMATS:
            raise InvalidInput(f"unknown format {form!r}", f"formats: {', '.join(FORMATS)}, all")
    return found


def stem(name: str) -> str:
    """Return the name of an audio's outputs without their ending."""
    return {"-": "stdin"}.get(name, Path(name).stem)


def introduction(transcriber: Transcriber) -> Iterator[str]:
    """Yield lines that say what was loaded."""
    yield f"{transcriber.model_name} on {transcriber.device_name}, draft {transcriber.draft_name}"
    yield from (f"note: {note}" for note in transcriber.notes)


def plain_terminal(args: argparse.Namespace, formats: list[str], diarize: bool) -> bool:
    """Return whether segments are printed as they come."""
    return args.output is None and formats == ["txt"] and not diarize


def print_as_heard(args: argparse.Namespace, talk: Talk) -> None:
    """Print segments as they come; on a terminal, also what was understood of the current window."""
    from specport.speech.formats import rows

    live = sys.stderr.isatty() and not args.quiet
    shown = 0

    def erase() -> None:
        nonlocal shown
        if shown:
            sys.stderr.write("\r" + " " * shown + "\r")
            shown = 0

    for step in talk.steps():
        erase()
        if step.partial is not None:
            if live:
                line = visible(" ".join(step.partial.split()))[-78:]
                terminal.tell(line)
                shown = len(line)
            continue
        lines = rows(step.segments) if args.timestamps else [s.text.strip() for s in step.segments]
        for line in lines:
            terminal.write(f"{line}\n")
    erase()


def write(
    args: argparse.Namespace, name: str, found: Transcript, formats: list[str], *, printed: bool
) -> None:
    """Write the outputs to their files, or to stdout unless they are `printed` already."""
    from specport.models.atomic import write_atomically
    from specport.speech import formats as writers

    for form in formats:
        text = writers.rttm(found, stem(name)) if form == "rttm" else writers.FORMATS[form](found)
        if args.output is None:
            if not printed:
                terminal.write(text)
            continue
        path = args.output / f"{stem(name)}.{form}"
        try:
            write_atomically(path, text)
        except OSError as error:
            raise InvalidInput(f"cannot write {path}: {error.strerror}") from error
        if not args.quiet:
            terminal.say(f"written: {path}")


def summary(found: Transcript) -> None:
    """Say how long it took, and what should be known of it."""
    counts = found.counts
    speed = f", {found.duration / found.seconds:.1f} times as fast as speech" if found.seconds else ""
    accepted = f", {counts.accepted} of {counts.drafted} draft tokens accepted" if counts.drafted else ""
    who = f", {len(found.speakers)} speakers" if found.turns else ""
    terminal.say(
        f"{found.duration:.0f} s of {found.language or 'audio'}{who} in {found.seconds:.1f} s{speed}; "
        f"encoder {counts.encoder_seconds:.1f} s, decoder {counts.decoder_seconds:.1f} s for "
        f"{counts.tokens} tokens in {counts.rounds} steps{accepted}"
    )
    for note in found.notes:
        terminal.say(f"note: {note}")
