"""Write a transcript: text, JSON, SRT, VTT, TSV, RTTM."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from specport.speech.transcript import Segment, Transcript


def text(transcript: Transcript) -> str:
    """Return one line a segment; where speakers are known, one paragraph for each of their turns."""
    if not transcript.turns:
        return "".join(f"{segment.text.strip()}\n" for segment in transcript.segments)
    lines: list[str] = []
    before: str | None = ""
    for segment in transcript.segments:
        if segment.speaker != before:
            lines.append(f"{segment.speaker or 'unknown'}:")
            before = segment.speaker
        lines[-1] += f" {segment.text.strip()}"
    return "".join(f"{line}\n" for line in lines)


def as_data(transcript: Transcript) -> dict[str, Any]:
    """Return what the JSON format holds."""
    return {
        "text": transcript.text,
        "language": transcript.language,
        "task": transcript.task,
        "duration": round(transcript.duration, 3),
        "complete": transcript.complete,
        "segments": [_segment(i, segment) for i, segment in enumerate(transcript.segments)],
        "turns": [asdict(turn) for turn in transcript.turns],
        "counts": asdict(transcript.counts),
        "seconds": round(transcript.seconds, 3),
        "notes": list(transcript.notes),
    }


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    # A model without a token for no speech says nan, which JSON cannot hold.
    data = {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(segment).items()
    }
    return {"id": number, **data}


def to_json(transcript: Transcript) -> str:
    """Return the transcript with all that is known of it, as JSON."""
    return json.dumps(as_data(transcript), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def srt(transcript: Transcript) -> str:
    """Return subtitles in SubRip's format."""
    return "".join(
        f"{number}\n{clock(s.start, ',')} --> {clock(s.end, ',')}\n{_named(s, '{}: ')}\n\n"
        for number, s in enumerate(transcript.segments, 1)
    )


def vtt(transcript: Transcript) -> str:
    """Return subtitles in WebVTT's format; a speaker is a voice span."""
    cues = (
        f"{clock(s.start, '.')} --> {clock(s.end, '.')}\n{_voice(s)}{_escaped(_line(s))}\n\n"
        for s in transcript.segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def tsv(transcript: Transcript) -> str:
    """Return a table of start and end in milliseconds and text, separated by tabs."""
    who = bool(transcript.turns)
    rows = [("start", "end", *(["speaker"] if who else []), "text")]
    for s in transcript.segments:
        speaker = [s.speaker or ""] if who else []
        rows.append((str(round(1000 * s.start)), str(round(1000 * s.end)), *speaker, _line(s)))
    return "".join("\t".join(row) + "\n" for row in rows)


def rttm(transcript: Transcript, name: str = "audio") -> str:
    """Return who spoke when, in NIST's format. name: of the audio; spaces become underscores."""
    label = "_".join(name.split()) or "audio"
    return "".join(
        f"SPEAKER {label} 1 {turn.start:.3f} {turn.end - turn.start:.3f} <NA> <NA> {turn.speaker} <NA> <NA>\n"
        for turn in transcript.turns
    )


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": text, "json": to_json, "srt": srt, "vtt": vtt, "tsv": tsv, "rttm": rttm,
}  # fmt: skip


def clock(seconds: float, mark: str) -> str:
    """Return a time as in 01:02:03,456. mark: before the milliseconds."""
    milliseconds = max(0, round(1000 * seconds))
    minutes, milliseconds = divmod(milliseconds, 60000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{mark}{milliseconds % 1000:03}"


def rows(segments: Iterable[Segment]) -> list[str]:
    """Return segments as lines for a terminal."""
    return [f"[{clock(s.start, '.')} --> {clock(s.end, '.')}] {_named(s, '{}: ')}" for s in segments]


def _line(segment: Segment) -> str:
    # An empty line or an arrow would end or begin a cue; what a model writes is untrusted.
    return " ".join(segment.text.split()).replace("-->", "->")


def _named(segment: Segment, form: str) -> str:
    return (form.format(segment.speaker) if segment.speaker else "") + _line(segment)


def _voice(segment: Segment) -> str:
    return f"<v {_escaped(segment.speaker)}>" if segment.speaker else ""


def _escaped(line: str) -> str:
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
