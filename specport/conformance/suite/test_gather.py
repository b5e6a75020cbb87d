"""Gathering: any tokens of a block can be kept, and those that were dropped were never there.

Positions count on from the kept ones: behind n committed tokens, the next one's position is n, whatever
positions the kept ones had in their block.
"""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe
from specport.core.ports import Block, CacheHandle, Row
from specport.core.tree import TokenTree

pytestmark = pytest.mark.needs("gather")
PASTS = [0, 27, 31, 62]  # blocks of a cache end within what is kept, and within what is dropped
KEPT = [[0, 2, 3], [1], [1, 4], [2, 3, 4], [0, 1, 2, 4]]


def _joined(kept: list[int]) -> str:
    return ",".join(map(str, kept))


def keep(probe: Probe, past: list[int], block: Block, kept: list[int]) -> CacheHandle:
    """Return a new sequence that holds `past` and these tokens of a block."""
    handle = probe.opened(past)
    probe.step(Row(handle, block))
    probe.model.commit(handle, kept)
    assert handle.length == len(past) + len(kept)
    return handle


@pytest.mark.needs("gather", visibility="any")
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("places", [[0, 2, 4], [3, 4, 5], [2]], ids=_joined)
def test_the_text_goes_on_as_if_the_others_had_never_been(
    any_probe: Probe, ids: list[int], past: int, places: list[int]
) -> None:
    """The true tokens stand among others that they do not see, and that see everything."""
    count = len(places)
    tokens, positions = [7, 11, 13, 17, 19, 23], [0, 5, 2, 1, 4, 3]
    visible = np.ones((6, 6), dtype=np.bool_)
    for i, place in enumerate(places):
        tokens[place], positions[place] = ids[past + i], i
        visible[place] = False
        visible[place, places[: i + 1]] = True
    plain = any_probe.opened(ids[:past])
    handle = any_probe.opened(ids[:past])
    (logits,) = any_probe.step(Row(handle, Block(tuple(tokens), tuple(positions), visible)))
    any_probe.check(logits[places], any_probe.feed(plain, [ids[past : past + count]]))
    any_probe.model.commit(handle, places)
    assert handle.length == past + count
    rest = ids[past + count : past + count + 6]
    any_probe.check(any_probe.feed(handle, [rest[:1], rest[1:]]), any_probe.feed(plain, [rest]))
    for each in (handle, plain):
        any_probe.model.close(each)


@pytest.mark.needs("gather", visibility="any")
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("kept", KEPT, ids=_joined)
def test_kept_tokens_are_what_a_mask_shows(
    any_probe: Probe, ids: list[int], past: int, kept: list[int]
) -> None:
    """A chain with gaps: what follows sees what it would see in one block whose mask leaves the gaps out."""
    chain, rest = ids[past : past + 5], ids[past + 5 : past + 7]
    visible = np.tri(7, dtype=np.bool_)
    visible[5:, :5] = False
    visible[5:, kept] = True
    block = Block((*chain, *rest), (0, 1, 2, 3, 4, len(kept), len(kept) + 1), visible)
    whole = any_probe.opened(ids[:past])
    (expected,) = any_probe.step(Row(whole, block))
    handle = keep(any_probe, ids[:past], Block.chain(chain), kept)
    any_probe.check(any_probe.feed(handle, [rest]), expected[5:])
    for each in (handle, whole):
        any_probe.model.close(each)


@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("kept", KEPT, ids=_joined)
def test_what_is_dropped_behind_the_kept_tokens_has_no_effect(
    any_probe: Probe, ids: list[int], past: int, kept: list[int]
) -> None:
    """For devices that gather and see chains only: the dropped end of a chain differs, what follows does not.

    The kept tokens have an effect of their own: without the last of them the logits are others.
    """
    chain, rest = ids[past : past + 5], ids[past + 5 : past + 9]
    found: list[Array] = []
    for end in (ids[300:303], ids[310:313]):
        handle = keep(any_probe, ids[:past], Block.chain([*chain, *end]), kept)
        found.append(any_probe.feed(handle, [rest[:1], rest[1:]]))
        any_probe.model.close(handle)
    any_probe.check(found[0], found[1])
    handle = keep(any_probe, ids[:past], Block.chain(chain), kept[:-1])
    assert np.abs(any_probe.feed(handle, [rest]) - found[0]).max() > 0
    any_probe.model.close(handle)


@pytest.mark.needs("gather", "tree")
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("kept", [[0, 1, 2], [1, 2], [0, 2, 3]], ids=_joined)
def test_tokens_of_several_branches(any_probe: Probe, ids: list[int], past: int, kept: list[int]) -> None:
    """Two siblings or more are kept; a branch that is dropped has no effect."""
    rest, found = ids[past + 5 : past + 8], []
    for other in (40, 90):
        tree = TokenTree((ids[past], 7, 8, 9, other, other), (-1, 0, 0, 1, 0, 4))
        handle = keep(any_probe, ids[:past], tree.as_block(), kept)
        found.append(any_probe.feed(handle, [rest]))
        any_probe.model.close(handle)
    any_probe.check(found[0], found[1])


@pytest.mark.parametrize("past", PASTS)
def test_gathering_again_and_again(any_probe: Probe, ids: list[int], past: int) -> None:
    """Two sequences that gather alike stay alike, and going back behind a gap is going back."""
    model = any_probe.model
    one, other = any_probe.opened(ids[:past]), any_probe.opened(ids[:past])
    for kept in ([1, 3], [0, 4], [2], [0, 1, 4]):
        for handle, end in ((one, 50), (other, 60)):
            any_probe.step(Row(handle, Block.chain([*ids[70:75], end])))
            model.commit(handle, kept)
    rest = ids[80:84]
    any_probe.check(any_probe.feed(one, [rest]), any_probe.feed(other, [rest[:1], rest[1:]]))
    for handle in (one, other):
        model.truncate(handle, past)
    plain = any_probe.opened(ids[:past])
    any_probe.check(any_probe.feed(one, [rest]), any_probe.feed(plain, [rest]))
    for handle in (one, other, plain):
        model.close(handle)


@pytest.mark.needs("gather", "batch")
def test_rows_gather_each_in_its_own_way(any_probe: Probe, ids: list[int]) -> None:
    model = any_probe.model
    pasts, kepts = (31, 3, 40, 64), ([0, 2], [1, 4], [3], [0, 1, 2])
    alone = []
    for past, kept in zip(pasts, kepts, strict=True):
        handle = keep(any_probe, ids[:past], Block.chain(ids[past : past + 5]), kept)
        alone.append(any_probe.feed(handle, [ids[90:93]]))
        model.close(handle)
    handles = [any_probe.opened(ids[:past]) for past in pasts]
    any_probe.step(
        *(Row(h, Block.chain(ids[past : past + 5])) for h, past in zip(handles, pasts, strict=True))
    )
    for handle, kept in reversed([*zip(handles, kepts, strict=True)]):
        model.commit(handle, kept)
    for handle, expected in zip(handles, alone, strict=True):
        any_probe.check(any_probe.feed(handle, [ids[90:93]]), expected)
        model.close(handle)
