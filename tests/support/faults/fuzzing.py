"""Run a check on many damaged inputs: a fixed few, or for as long as `--fuzz-seconds` says."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.faults import hostile

LONGEST_S = 10.0  # that reading one input may take


@dataclass
class Case:
    """A file, what it holds when it is whole, and a function that reads it and all that is shown of it.

    whole: a value for JSON, or bytes. write: puts damaged bytes in the place of the file.
    """

    whole: Any
    read: Callable[[], object]
    write: Callable[[bytes], object]

    def read_whole(self) -> None:
        """Write the whole file, and read it."""
        self.write(self.whole if isinstance(self.whole, bytes) else json.dumps(self.whole).encode())
        self.read()


def of_file(path: Path, read: Callable[[], object], value: Any = None) -> Case:
    """Return the case of a file that is there. value: what it holds; None = JSON, which is read."""
    whole = json.loads(path.read_bytes()) if value is None else value
    return Case(whole, read, path.write_bytes)


def fuzz_case(config: pytest.Config, case: Case, allowed: tuple[type[Exception], ...]) -> None:
    """Read a file whole, and damaged in many ways: `allowed` may be raised, and nothing else."""
    case.read_whole()

    def check(data: bytes) -> None:
        case.write(data)
        case.read()

    made = damaged if isinstance(case.whole, bytes) else damaged_json
    fuzz(config, made(case.whole), check, allowed)


def fuzz(
    config: pytest.Config,
    inputs: st.SearchStrategy[Any],
    check: Callable[[Any], object],
    allowed: tuple[type[Exception], ...],
    examples: int = 40,
) -> None:
    """Call `check` with inputs of a strategy: it may raise what is allowed, and nothing else."""

    count, longest = 0, 0.0

    def checked(value: Any) -> None:
        nonlocal count, longest
        began = time.monotonic()
        with suppress(*allowed):
            check(value)
        count, longest = count + 1, max(longest, time.monotonic() - began)
        assert time.monotonic() - began < LONGEST_S

    seconds = config.getoption("--fuzz-seconds")
    run = settings(
        max_examples=examples, deadline=None, database=None, derandomize=not seconds,
        suppress_health_check=[*HealthCheck],
    )(given(inputs)(checked))  # fmt: skip
    end = time.monotonic() + seconds
    run()
    while time.monotonic() < end:
        run()
    print(f"{count} inputs, {longest:.2f} s for the slowest")


def damaged(good: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of files like this one with some bytes changed, gone or added."""

    def damage(seed: int) -> bytes:
        rng, data = random.Random(seed), bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(len(data) + 1)
            kind = rng.randrange(4)
            if kind == 0:
                del data[at:]
            elif kind == 1:
                del data[at : at + rng.randrange(1, 20)]
            elif kind == 2:
                data[at:at] = rng.choice(
                    (b"[", b"{", b'"', b"\x00", b"\xff", b"9" * 400, b"-", b"\n", b"e99")
                )
            elif at < len(data):
                data[at] = rng.randrange(256)
        return bytes(data)

    return st.integers(0, 1 << 32).map(damage)


def damaged_json(good: Any) -> st.SearchStrategy[bytes]:
    """Return a strategy of JSON texts like this value: one part of another kind, or the text damaged."""
    return st.one_of(
        st.sampled_from([*hostile.changed(good)]).map(hostile.dumped),
        st.sampled_from([*hostile.JSON_TEXTS.values()]),
        damaged(hostile.dumped(good)),
    )
