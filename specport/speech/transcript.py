"""What was said: words, segments and the whole, as plain data that JSON can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace


@dataclass(frozen=True)
class Word:
    """Hold a word with its time in seconds. text begins with a space where the word does.

    speaker: who said it; None where that is not known.
    """

    start: float
    end: float
    text: str
    speaker: str | None = None


@dataclass(frozen=True)
class Segment:
    """Hold a piece of text with its time in seconds, and what Whisper says of its quality.

    temperature, avg_logprob, compression_ratio, no_speech_prob: of the window that it comes from.
    """

    start: float
    end: float
    text: str
    ids: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    words: tuple[Word, ...] = ()
    speaker: str | None = None


@dataclass(frozen=True)
class Turn:
    """Hold who spoke when, in seconds. overlap: whether somebody else spoke at the same time."""

    start: float
    end: float
    speaker: str
    overlap: bool = False


@dataclass(frozen=True)
class Counts:
    """Hold what transcribing took.

    tokens: ids that were decoded; rounds, drafted, accepted: see `specport.speech.ports.Decoded`.
    windows, fallbacks: decoded windows, and those that were decoded again at a higher temperature.
    """

    tokens: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    windows: int = 0
    fallbacks: int = 0
    encoder_seconds: float = 0.0
    decoder_seconds: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        mine, its = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + its[name] for name in mine})


@dataclass(frozen=True)
class Transcript:
    """Hold an audio's text.

    duration: seconds of audio that were heard. complete: False where it was stopped before the end.
    turns:    who spoke when; empty where nobody asked.
    notes:    what the user should know.
    """

    language: str
    duration: float
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...] = ()
    counts: Counts = Counts()
    seconds: float = 0.0
    complete: bool = True
    task: str = "transcribe"
    notes: tuple[str, ...] = field(default=())

    @property
    def text(self) -> str:
        """Return the whole text."""
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def speakers(self) -> tuple[str, ...]:
        """Return the speakers in the order in which they begin."""
        return tuple(dict.fromkeys(turn.speaker for turn in self.turns))

    def with_segments(self, segments: Sequence[Segment], turns: Sequence[Turn]) -> Transcript:
        """Return this with other segments and turns."""
        return replace(self, segments=tuple(segments), turns=tuple(turns))
