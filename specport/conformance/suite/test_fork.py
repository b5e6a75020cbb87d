"""Forks: two sequences have a common beginning, may share its memory, and do not see each other's writes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe
from specport.core.ports import Block, CacheHandle, Row
from specport.core.tree import TokenTree

LENGTH = 70  # tokens of the sequence that is forked
# At the beginning and the end, and around the borders of blocks of 16 and of 32 tokens.
CUTS = [0, 1, 15, 16, 17, 31, 32, 33, 64, 70]
SOME = [0, 31, 32, 33]
NEW = 40  # tokens that a side writes: over the next border


@pytest.fixture
def origin(any_probe: Probe, ids: list[int]) -> Iterator[CacheHandle]:
    handle = any_probe.opened(ids[:LENGTH])
    yield handle
    any_probe.model.close(handle)


def alone(probe: Probe, tokens: list[int], rest: list[int]) -> Array:
    """Return the logits of `rest` behind `tokens`, in a sequence that shares nothing."""
    handle = probe.opened(tokens)
    logits = probe.feed(handle, [rest])
    probe.model.close(handle)
    return logits


def goes_on(probe: Probe, handle: CacheHandle, text: list[int], rest: list[int]) -> None:
    """Check that a sequence holds `text`, by the logits of what follows."""
    assert handle.length == len(text)
    probe.check(probe.feed(handle, [rest]), alone(probe, text, rest))


@pytest.mark.parametrize("cut", CUTS)
def test_both_sides_write_behind_the_cut(
    any_probe: Probe, origin: CacheHandle, ids: list[int], cut: int
) -> None:
    """The fork first, then the origin, which was there before; then both once more."""
    other = ids[200 : 200 + NEW]
    fork = any_probe.model.fork(origin, cut)
    assert fork.length == cut
    goes_on(any_probe, fork, ids[:cut], other)
    goes_on(any_probe, origin, ids[:LENGTH], ids[LENGTH : LENGTH + NEW])
    goes_on(any_probe, fork, [*ids[:cut], *other], ids[300:305])
    goes_on(any_probe, origin, ids[: LENGTH + NEW], ids[400:405])
    any_probe.model.close(fork)


@pytest.mark.parametrize("cut", CUTS)
def test_a_step_that_is_not_committed_shows_nowhere_else(
    any_probe: Probe, origin: CacheHandle, ids: list[int], cut: int
) -> None:
    model = any_probe.model
    fork = model.fork(origin, cut)
    any_probe.step(Row(fork, Block.chain(ids[200:208])))
    goes_on(any_probe, origin, ids[:LENGTH], ids[LENGTH : LENGTH + 3])
    any_probe.step(Row(origin, Block.chain(ids[210:218])))
    model.commit(fork, [0, 1, 2])
    goes_on(any_probe, fork, [*ids[:cut], *ids[200:203]], ids[300:305])
    model.close(fork)


@pytest.mark.parametrize("back", [0, 20, 31, 32, 33])
@pytest.mark.parametrize("side", ["fork", "origin"])
def test_a_side_that_goes_back_into_what_is_shared(
    any_probe: Probe, origin: CacheHandle, ids: list[int], side: str, back: int
) -> None:
    """It writes over tokens that the other still has."""
    fork = any_probe.model.fork(origin, 65)
    going, staying = (fork, origin) if side == "fork" else (origin, fork)
    text = ids[: staying.length]
    any_probe.model.truncate(going, back)
    goes_on(any_probe, going, ids[:back], ids[200 : 200 + NEW])
    goes_on(any_probe, staying, text, ids[300:303])
    goes_on(any_probe, going, [*ids[:back], *ids[200 : 200 + NEW]], ids[310:313])
    any_probe.model.close(fork)


@pytest.mark.parametrize("cut", SOME)
def test_a_fork_outlives_its_origin(any_probe: Probe, ids: list[int], cut: int) -> None:
    """And what takes the origin's place does not take the fork's."""
    model = any_probe.model
    origin = any_probe.opened(ids[:LENGTH])
    fork = model.fork(origin, cut)
    second = model.fork(fork, cut // 2)
    model.close(origin)
    stranger = any_probe.opened(ids[500:600])
    model.close(fork) if cut % 2 else goes_on(any_probe, fork, ids[:cut], ids[200:203])
    goes_on(any_probe, second, ids[: cut // 2], ids[210:213])
    for handle in (fork, second, stranger):
        model.close(handle)


def test_a_closed_fork_takes_nothing_with_it(any_probe: Probe, origin: CacheHandle, ids: list[int]) -> None:
    for cut in CUTS:
        fork = any_probe.model.fork(origin, cut)
        any_probe.model.close(fork)
        any_probe.model.close(fork)
    stranger = any_probe.opened(ids[500:600])
    goes_on(any_probe, origin, ids[:LENGTH], ids[LENGTH : LENGTH + 5])
    any_probe.model.close(stranger)


@pytest.mark.needs("batch")
@pytest.mark.parametrize("cut", SOME)
def test_parallel_samples_share_a_step(
    any_probe: Probe, origin: CacheHandle, ids: list[int], cut: int
) -> None:
    """Several texts behind one prompt, token by token in the same steps."""
    model = any_probe.model
    handles = [origin, *(model.fork(origin, cut) for _ in range(3))]
    model.truncate(origin, cut)
    texts = [ids[200 + 50 * i : 210 + 50 * i] for i in range(4)]
    found: list[list[Array]] = [[] for _ in handles]
    for i in range(10):
        logits = any_probe.step(
            *(Row(h, Block.chain([text[i]])) for h, text in zip(handles, texts, strict=True))
        )
        for handle, parts, row in zip(handles, found, logits, strict=True):
            parts.append(row)
            model.commit(handle, [0])
    for parts, text in zip(found, texts, strict=True):
        any_probe.check(np.concatenate(parts), alone(any_probe, ids[:cut], text))
    for handle in handles[1:]:
        model.close(handle)


@pytest.mark.needs("tree")
@pytest.mark.parametrize("cut", SOME)
def test_trees_on_both_sides(any_probe: Probe, origin: CacheHandle, ids: list[int], cut: int) -> None:
    model = any_probe.model
    tree = TokenTree((ids[200], 7, 8, 9, ids[201]), (-1, 0, -1, 2, 0)).as_block()
    fork = model.fork(origin, cut)
    for handle in (fork, origin):
        any_probe.step(Row(handle, tree))
    model.commit(fork, [0, 4])
    model.commit(origin, [2, 3])
    goes_on(any_probe, origin, [*ids[:LENGTH], 8, 9], ids[300:303])
    goes_on(any_probe, fork, [*ids[:cut], *ids[200:202]], ids[310:313])
    model.close(fork)


def test_a_fork_between_step_and_commit(any_probe: Probe, origin: CacheHandle, ids: list[int]) -> None:
    """It begins with what is committed; the origin's step can be committed all the same."""
    model = any_probe.model
    any_probe.step(Row(origin, Block.chain(ids[LENGTH : LENGTH + 6])))
    fork = model.fork(origin, LENGTH)
    goes_on(any_probe, fork, ids[:LENGTH], ids[200 : 200 + NEW])
    model.commit(origin, range(6))
    goes_on(any_probe, origin, ids[: LENGTH + 6], ids[300:303])
    model.close(fork)


@pytest.mark.parametrize("length", [-1, LENGTH + 1, LENGTH + 3])
def test_forking_what_is_not_committed_is_refused(
    any_probe: Probe, origin: CacheHandle, ids: list[int], length: int
) -> None:
    any_probe.step(Row(origin, Block.chain(ids[LENGTH : LENGTH + 3])))
    with pytest.raises(ValueError, match=r"\w"):
        any_probe.model.fork(origin, length)
    any_probe.model.commit(origin, range(3))
    goes_on(any_probe, origin, ids[: LENGTH + 3], ids[LENGTH + 3 : LENGTH + 6])
