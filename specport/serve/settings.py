"""Limits of the server, and how requests generate that do not say so. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from specport.core.sampling.params import SamplingParams
from specport.core.scheduler import MAX_RUNNING
from specport.errors import InvalidInput


@dataclass(frozen=True)
class Limits:
    """Hold what bounds the memory and the time that clients can take.

    max_running, max_queue: sequences in the engine, and sequences that wait for it.
    max_choices:     sequences of one request (prompts times `n`).
    max_body, max_bodies: bytes of one request, and of all requests that are being read.
    max_audio, max_talks: bytes of an audio file, and audio files that are being read, wait or run.
    max_depth:       nesting of a request's JSON.
    max_stop, max_stop_length: stop strings, and characters of each. max_bias: entries of `logit_bias`.
    max_connections: open connections.
    request_seconds: from a request's arrival to its last token.
    header_seconds, body_seconds, audio_seconds: for a client to send the head and the body of its request,
                     and an audio file.
    send_seconds:    for a client to take a piece of the answer.
    shutdown_seconds: for running requests to finish once the server was told to end.
    beat_seconds:    a stream says that it is alive after as long without text.
    """

    max_running: int = MAX_RUNNING
    max_queue: int = 256
    max_choices: int = 16
    max_body: int = 16 << 20
    max_bodies: int = 128 << 20
    max_audio: int = 256 << 20
    max_talks: int = 16
    max_depth: int = 64
    max_stop: int = 16
    max_stop_length: int = 256
    max_bias: int = 1024
    max_connections: int = 1024
    request_seconds: float = 600.0
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    audio_seconds: float = 300.0
    send_seconds: float = 60.0
    shutdown_seconds: float = 60.0
    beat_seconds: float = 15.0

    @property
    def choices(self) -> int:
        """Return the most sequences of a request: they run at once."""
        return min(self.max_choices, self.max_running)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "max_queue" else 1 if isinstance(value, int) else 0.0
            if not value >= least:
                raise InvalidInput(f"{name} is {value}; it must be {least} or more")


@dataclass(frozen=True)
class Sampling:
    """Hold the sampling of requests that do not say how. The first two defaults are those of OpenAI's API.

    Raises InvalidInput when a value is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        SamplingParams(**vars(self))
