"""Check on this machine that logits do not depend on how tokens are split over steps and sequences.

No runtime guarantees that its kernels round alike for any split. We therefore compare a few small steps bit
for bit, once for each runtime version, processor, model and settings, and store the answer. The module knows
a backend only by its `Model` port; the caller decides what to do when the check fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import to_host
from specport.core.ports import Block, CacheHandle, Model, Row, StepOutput, Wanted
from specport.core.tree import TokenTree
from specport.errors import ContextFull
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.outside import Format, Table
from specport.progress import Progress, part, silent

CHECK = 6  # increase when an answer's meaning or a model's layout changes; it voids stored answers
_CHECKING = "checking exact mode, once only"
_PAST, _NEW = 37, 11  # the second block of OpenVINO's cache is partly filled, so that forks copy it
# Matrix products of many rows may round differently: OpenVINO's without AVX-512 from about 96 rows on,
# torch's in bf16 with AMX from 33 on. So steps of all widths are compared with narrow ones.
_NARROW, _BETWEEN = 8, (17, 33, 54, 96)
_PIECES = (64, 32, 16)  # widths of the steps that are tried where wide ones are not alike


def is_invariant(model: Model, past: int = _PAST) -> bool:
    """Return whether chains, trees, ragged batches and forks give the bits of a single step.

    The prompt of `past` tokens is read in one step, as in plain and speculative decoding alike. A model with
    an early exit is checked a second time, with the first tokens of each row drafted at the exit.
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
        for drafted in ((0, 2) if model.early_exit else (0,))
        for run in _runs(model, prompt, rest, drafted)
    )


def is_wide(model: Model) -> bool:
    """Return whether steps of up to 200 tokens give the bits of narrow steps."""
    return _alike(model, (sum(_BETWEEN),), _BETWEEN)


def rounds_as_narrow(model: Model, width: int) -> bool:
    """Return whether steps of `width` tokens give the bits of narrow steps."""
    return _alike(model, (width,) * (-(-sum(_BETWEEN) // width)))


def _alike(model: Model, *splits: Sequence[int]) -> bool:
    """Return whether tokens in steps of these widths have the logits that they have in narrow steps."""
    rng = np.random.default_rng(1)
    count = min(_PAST + sum(_BETWEEN), model.max_context)
    ids = [int(i) for i in rng.integers(0, model.vocab_size, count)]
    prompt, rest = ids[:_PAST], ids[_PAST:]

    def logits(widths: Sequence[int]) -> NDArray[np.float32]:
        ends = np.cumsum(widths)
        steps = [[part] for end, width in zip(ends, widths, strict=True) if (part := rest[end - width : end])]
        return _logits(model, [prompt], steps)[0]

    narrow = logits([_NARROW] * (-(-len(rest) // _NARROW)))
    return all(np.array_equal(logits(widths), narrow) for widths in splits)


def _runs(model: Model, prompt: list[int], rest: list[int], drafted: int) -> Iterator[NDArray[np.float32]]:
    """Yield the logits of `rest` after `prompt`, split in different ways."""
    yield _logits(model, [prompt], [[[token]] for token in rest], drafted)[0]
    yield _logits(model, [prompt], [[rest[:2]], [rest[2:5]], [rest[5:8]], [rest[8:]]], drafted)[0]
    if model.capabilities.batch:  # two ragged sequences, one of them with single tokens
        other = (prompt + rest)[:12]
        steps = [[rest[:1], other[5:9]], [rest[1:8], other[9:10]], [rest[8:], other[10:]]]
        yield _logits(model, [prompt, other[:5]], steps, drafted)[0]
    if model.capabilities.tree:
        yield _tree_path(model, prompt, rest, drafted)
    if not drafted:
        yield _forked(model, prompt, rest)


def _logits(
    model: Model,
    prompts: Sequence[Sequence[int]],
    steps: Sequence[Sequence[Sequence[int]]],
    drafted: int = 0,
) -> list[NDArray[np.float32]]:
    """Feed chunks after each prompt, one list per step and sequence; return the logits of the chunks.

    drafted: first tokens of each chunk that are drafted at the model's early exit before the step.
    """
    handles = [_opened(model, prompt) for prompt in prompts]
    found: list[list[NDArray[np.float32]]] = [[] for _ in handles]
    for chunks in steps:
        rows = [Row(h, Block.chain(chunk)) for h, chunk in zip(handles, chunks, strict=True)]
        _draft(model, rows, drafted)
        output = _fits(model.step(rows))
        for i, row in enumerate(rows):
            found[i].append(to_host(output.logits_of(i)).copy())
            model.commit(row.handle, range(len(row.block)))
    for handle in handles:
        model.close(handle)
    return [np.concatenate(parts) for parts in found]


def _opened(model: Model, prompt: Sequence[int], logits: Wanted = "last") -> CacheHandle:
    handle = model.open()
    _fits(model.step([Row(handle, Block.chain(prompt), logits=logits)]))
    model.commit(handle, range(len(prompt)))
    return handle


def _fits(output: StepOutput) -> StepOutput:
    """Return a step's output. Raises ContextFull where a row was refused: nothing can be compared then."""
    for why in output.refused.values():
        raise ContextFull(f"the check of exact mode does not fit the model's {why}")
    return output


def _draft(model: Model, rows: Sequence[Row], count: int) -> None:
    """Draft the first tokens of each row, one per call."""
    for i in range(count):
        longer = [Row(row.handle, Block.chain(row.block.tokens[i : i + 1])) for row in rows]
        left = [row for row in longer if len(row.block)]
        if left and model.early_exit:
            _fits(model.early_exit.draft(left))


def _tree_path(model: Model, prompt: list[int], rest: list[int], drafted: int) -> NDArray[np.float32]:
    """Return the logits along `rest` in trees where each node of the path has a sibling."""
    handle = _opened(model, prompt)
    parts = []
    for chunk in (rest[:3], rest[3:7], rest[7:]):  # 5 and 7 nodes: narrower than any set of widths
        tokens, parents = [chunk[0]], [-1]
        path = [0]
        for token in chunk[1:]:
            tokens += [(token + 1) % model.vocab_size, token]
            parents += [path[-1]] * 2
            path.append(len(tokens) - 1)
        row = Row(handle, TokenTree(tuple(tokens), tuple(parents)).as_block())
        _draft(model, [row], drafted)
        parts.append(to_host(_fits(model.step([row])).logits)[path].copy())
        model.commit(handle, path)
    model.close(handle)
    return np.concatenate(parts)


def _forked(model: Model, prompt: list[int], rest: list[int]) -> NDArray[np.float32]:
    """Return the logits of `rest` in a fork while the original sequence continues with other tokens."""
    origin = _opened(model, prompt, logits="none")
    fork = model.fork(origin, len(prompt))
    widest = max(model.capabilities.buckets, default=_NEW)
    parts = []
    for start in range(0, _NEW, widest):
        chunk = rest[start : start + widest]
        for handle, tokens in ((origin, prompt[: len(chunk)]), (fork, chunk)):
            output = _fits(model.step([Row(handle, Block.chain(tokens))]))
            model.commit(handle, range(len(tokens)))
        parts.append(to_host(output.logits).copy())
    model.close(origin)
    model.close(fork)
    return np.concatenate(parts)


def checked(model: Model, key: str, past: int = _PAST, *, progress: Progress = silent) -> bool:
    """Return `is_invariant`, or the answer stored under this key (`registry.settings_key`).

    progress: told before the check, which takes minutes for a large model.
    """
    return answered(key, lambda: is_invariant(model, past), part(progress, 0.0, 0.5))


def refuted(key: str) -> bool:
    """Return whether an earlier `checked` found that a model is not invariant; it need not be loaded then."""
    return Answers(cache_root() / "exact.json").get(key) is False


def checked_wide(model: Model, key: str, *, progress: Progress = silent) -> bool:
    """Return `is_wide`, or the answer stored under this key. progress: as for `checked`."""
    return answered(f"{key}-wide", lambda: is_wide(model), part(progress, 0.5, 1.0))


def checked_width(model: Model, key: str, *, progress: Progress = silent) -> int:
    """Return the most tokens of a step that round as narrow steps do; 0 = any number.

    Answers are stored under this key. progress: as for `checked`.
    """
    if checked_wide(model, key, progress=progress):
        return 0
    for width in _PIECES:
        found = answered(
            f"{key}-steps-of-{width}", partial(rounds_as_narrow, model, width), part(progress, 0.5, 1.0)
        )
        if found:
            return width
    return _NARROW


def answered(key: str, ask: Callable[[], bool], progress: Progress = silent) -> bool:
    """Return the answer stored under this key, or ask, and store that. progress: told before it is asked."""
    answers = Answers(cache_root() / "exact.json")
    answer = answers.get(key)
    if answer is None:
        progress(_CHECKING, 0.0)
        answer = ask()
        progress(_CHECKING, 1.0)
        answers.put(key, answer)
    return answer


_ANSWERS = Format(Table, "the answers of earlier checks")


class Answers:
    """Hold the answers of earlier checks in one small file. A damaged file only causes a new check.

    Keys name everything that decides which kernels run (`registry.settings_key`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def get(self, key: str) -> bool | None:
        value = self._read().get(f"{CHECK}-{key}")
        return value if isinstance(value, bool) else None

    def put(self, key: str, answer: bool) -> None:
        """Store an answer. With a read-only cache folder, the next start checks again."""
        with suppress(OSError):
            write_json(self._path, {**self._read(), f"{CHECK}-{key}": answer})

    def _read(self) -> Table:
        return _ANSWERS.find(self._path) or {}
