"""Run a check on many damaged inputs: a fixed few, or for as long as `--fuzz-seconds` says."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support import hostile

LONGEST_S = 10.0  # that reading one input may take


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
