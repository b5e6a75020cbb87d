"""Checks on the spot that logits do not depend on how tokens are split over steps and sequences.

The kernels' invariance was found by measurement, not promised by any runtime. So a few small steps
are compared bit for bit once for each runtime version, processor, model and settings; the answer is
kept. Knows any backend by its `Model` port, and nothing of what to do when the answer is no.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from specport.core.model_kinds import EarlyExitModel
from specport.core.ports import CacheHandle, Model, Row
from specport.core.sampling.sampler import to_host
from specport.core.tree import TokenTree
from specport.models.atomic import write_json
from specport.models.cache import cache_root

CHECK = 4  # raise when the check or a model's layout changes: old answers are then asked anew
_PAST, _NEW = 37, 11  # a part-filled second block of OpenVINO's cache, so that forks copy one
NARROW, _WIDE = 64, 200  # without AVX-512, OpenVINO's products round otherwise from about 96 rows on


def is_invariant(model: Model, past: int = _PAST) -> bool:
    """Whether chains, trees, single tokens and ragged batches give bit-identical logits behind a prompt.

    The prompt of `past` tokens is read in one step: plain and speculative decoding read it alike. A model
    with an early exit is asked a second time, with the first tokens of each row drafted at the exit.
    """
    rng = np.random.default_rng(0)
    ids = [int(i) for i in rng.integers(0, model.vocab_size, past + _NEW)]
    prompt, rest = ids[:past], ids[past:]
    widest = max(model.capabilities.buckets, default=_NEW)
    whole = _logits(model, [prompt], [[rest[i : i + widest]] for i in range(0, _NEW, widest)])[0]
    if not np.isfinite(whole).all():
        return False
    return all(
        np.array_equal(run, whole)
        for drafted in ((0, 2) if model.capabilities.exit_layer else (0,))
        for run in _runs(model, prompt, rest, drafted)
    )


def is_wide(model: Model) -> bool:
    """Whether a step of many tokens gives the bits of narrow ones. Where not, `NARROW` tokens mostly do."""
    rng = np.random.default_rng(1)
    ids = [int(i) for i in rng.integers(0, model.vocab_size, min(_PAST + _WIDE, model.max_context))]
    prompt, rest = ids[:_PAST], ids[_PAST:]
    narrow = _logits(model, [prompt], [[rest[i : i + 40]] for i in range(0, len(rest), 40)])[0]
    return np.array_equal(_logits(model, [prompt], [[rest]])[0], narrow)


def _runs(model: Model, prompt: list[int], rest: list[int], drafted: int) -> Iterator[NDArray[np.float32]]:
    """The logits of `rest` behind `prompt`, split in different ways."""
    yield _logits(model, [prompt], [[[token]] for token in rest], drafted)[0]
    yield _logits(model, [prompt], [[rest[:2]], [rest[2:5]], [rest[5:8]], [rest[8:]]], drafted)[0]
    if model.capabilities.batch:  # two ragged neighbours, one of them with single tokens
        other = (prompt + rest)[:12]
        steps = [[rest[:1], other[5:9]], [rest[1:8], other[9:10]], [rest[8:], other[10:]]]
        yield _logits(model, [prompt, other[:5]], steps, drafted)[0]
    if model.capabilities.tree:
        yield _tree_path(model, prompt, rest, drafted)


def _logits(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steps: Sequence[Sequence[Sequence[int]]],
    drafted: int = 0,
) -> list[NDArray[np.float32]]:
    """Feed chunks behind each prompt, one list for each step and sequence; the logits of the chunks.

    drafted: first tokens of each chunk that are drafted at the model's early exit before it is stepped.
    """
    handles = [_opened(model, prompt) for prompt in prompts]
    found: list[list[NDArray[np.float32]]] = [[] for _ in handles]
    for chunks in steps:
        rows = [Row(h, TokenTree.chain(chunk)) for h, chunk in zip(handles, chunks, strict=True)]
        _draft(model, rows, drafted)
        output = model.step(rows)
        for i, row in enumerate(rows):
            found[i].append(to_host(output.logits[output.offsets[i] : output.offsets[i + 1]]).copy())
            model.commit(row.handle, range(len(row.tree)))
    for handle in handles:
        model.close(handle)
    return [np.concatenate(parts) for parts in found]


def _opened(model: Model, prompt: Sequence[int]) -> CacheHandle:
    handle = model.open()
    model.step([Row(handle, TokenTree.chain(prompt), logits="last")])
    model.commit(handle, range(len(prompt)))
    return handle


def _draft(model: Model, rows: Sequence[Row], count: int) -> None:
    """Draft the first tokens of each row, as many as it has, token by token."""
    for i in range(count):
        longer = [Row(row.handle, TokenTree.chain(row.tree.tokens[i : i + 1])) for row in rows]
        if left := [row for row in longer if len(row.tree)]:
            cast("EarlyExitModel", model).draft(left)


def _tree_path(model: Model, prompt: list[int], rest: list[int], drafted: int) -> NDArray[np.float32]:
    """Logits along `rest` in trees where each of its nodes has a rival."""
    handle = _opened(model, prompt)
    parts = []
    for chunk in (rest[:3], rest[3:7], rest[7:]):  # 5 and 7 nodes: narrower than any set of widths
        tokens, parents = [chunk[0]], [-1]
        path = [0]
        for token in chunk[1:]:
            tokens += [(token + 1) % model.vocab_size, token]
            parents += [path[-1]] * 2
            path.append(len(tokens) - 1)
        row = Row(handle, TokenTree(tuple(tokens), tuple(parents)))
        _draft(model, [row], drafted)
        output = model.step([row])
        parts.append(to_host(output.logits)[path].copy())
        model.commit(handle, path)
    model.close(handle)
    return np.concatenate(parts)


def checked(model: Model, key: str, past: int = _PAST) -> bool:
    """`is_invariant`, or what it found earlier under this key (`registry.settings_key`)."""
    return _answered(key, lambda: is_invariant(model, past))


def checked_wide(model: Model, key: str) -> bool:
    """`is_wide`, or what it found earlier under this key."""
    return _answered(f"{key}-wide", lambda: is_wide(model))


def _answered(key: str, ask: Callable[[], bool]) -> bool:
    answers = Answers(cache_root() / "exact.json")
    answer = answers.get(key)
    if answer is None:
        answer = ask()
        answers.put(key, answer)
    return answer


class Answers:
    """What earlier checks found, in one small file. A damaged file only costs a new check.

    Keys name everything that decides which kernels run (`registry.settings_key`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> bool | None:
        value = self._read().get(f"{CHECK}-{key}")
        return value if isinstance(value, bool) else None

    def put(self, key: str, answer: bool) -> None:
        """Best effort: a read-only cache folder only means that the next start checks again."""
        with suppress(OSError):
            write_json(self._path, {**self._read(), f"{CHECK}-{key}": answer})

    def _read(self) -> dict[str, object]:
        try:
            value = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}
