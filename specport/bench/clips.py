"""Audio files with what is known of them, for `specport bench --speech`: a file of one JSON object a line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from specport.errors import InvalidInput
from specport.outside import Format
from specport.speech.languages import code_of


@dataclass(frozen=True)
class Clip:
    """Hold an audio file and what is known of it. text: what is said; rttm: who speaks when."""

    id: str
    audio: Path
    text: str | None = None
    language: str = "en"
    rttm: Path | None = None
    speakers: int | None = None


class _Line(Struct):
    audio: str
    id: str | int | None = None
    text: str | None = None
    language: str = "en"
    rttm: str | None = None
    speakers: Annotated[int, Meta(ge=1, le=64)] | None = None


_LINES = Format(_Line, "an audio with its text", "", InvalidInput)


def read_clips(path: Path) -> list[Clip]:
    """Return the clips of a file: id, audio, text, language, rttm, speakers.

    Paths are relative to the file; without an id, a clip has its number. Raises InvalidInput.
    """
    found: dict[str, Clip] = {}
    for number, line in enumerate(_LINES.lines(path), 1):
        name = str(number if line.id is None else line.id)
        if name in found:
            raise InvalidInput(f"{path} has two clips named {name!r:.100}", "rename one")
        rttm = path.parent / line.rttm if line.rttm else None
        found[name] = Clip(
            name, path.parent / line.audio, line.text, code_of(line.language), rttm, line.speakers
        )
    if not found:
        raise InvalidInput(f"{path} names no audio")
    return [*found.values()]
