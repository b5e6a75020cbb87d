"""The rows of a verifying step: who attends to whom, and whether a token reaches the logits that judge it."""

from __future__ import annotations

import numpy as np
import pytest
from support.tiny.tiny_diffusion import tiny_diffusion

from specport.core.ports import Row
from specport.diffusion.layout import Layout, num_rows, verifying
from specport.diffusion.options import LAYOUTS, LayoutKind

MASK = 19
TOKENS = (3, 5, 7, 11)
TIMES = {"by position": (0, 1, 2, 3), "by confidence": (2, 0, 3, 1), "two at a time": (0, 1, 0, 1)}


def drawn(layout: Layout) -> list[str]:
    assert layout.block.visible is not None
    return ["".join("x" if seen else "." for seen in row) for row in layout.block.visible]


def test_released() -> None:
    layout = verifying("released", TOKENS[:3], (1, 0, 2), MASK)
    assert layout.block.tokens == (3, 5, MASK, MASK, MASK)  # the token revealed last is seen by nothing
    assert layout.block.positions == (0, 1, 1, 0, 2)
    assert layout.slots == {1: 2, 0: 3, 2: 4}
    # Keys: data 0 (time 1), data 1 (time 0), then the slots of positions 1, 0, 2 at the times 0, 1, 2.
    assert drawn(layout) == [
        "xx..x",  # data 0 sees what is revealed up to its time, and the slot that is masked still
        ".x.xx",
        "..xxx",  # slot of position 1, time 0: all masks
        ".x.xx",  # slot of position 0, time 1: data 1 and two masks
        "xx..x",
    ]


def test_same_step() -> None:
    layout = verifying("same-step", TOKENS[:3], (1, 0, 1), MASK)
    assert layout.block.tokens == (5, MASK, MASK, MASK)
    assert drawn(layout) == ["x...", ".x..", "x.xx", "x.xx"]


def test_groups_hold_what_is_masked_still() -> None:
    layout = verifying("grouped", TOKENS, (0, 1, 2, 3), MASK)
    assert len(layout.block) == 3 + 4 + 3 + 2 + 1
    assert layout.block.positions == (0, 1, 2, 0, 1, 2, 3, 1, 2, 3, 2, 3, 3)
    assert layout.slots == {0: 3, 1: 7, 2: 10, 3: 12}
    assert drawn(layout)[8] == "x......xxx..."  # position 2 in the group of time 1: data 0 and its group


def test_known_tokens_have_no_slot() -> None:
    layout = verifying("same-step", TOKENS, (0, 1, 2, 3), MASK, known=2)
    assert layout.block.tokens == (*TOKENS[:3], MASK, MASK) and layout.slots == {2: 3, 3: 4}


def test_the_last_token_of_a_block_is_judged_alone() -> None:
    layout = verifying("grouped", TOKENS, (0, 1, 2, 3), MASK, known=3)
    assert layout.block.tokens == (*TOKENS[:3], MASK) and layout.slots == {3: 3}
    assert drawn(layout)[3] == "xxxx"


@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_most_rows(kind: LayoutKind) -> None:
    for length in (1, 4, 7):
        layout = verifying(kind, range(length), range(length), MASK)
        assert len(layout.block) == num_rows(kind, length)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_flip(kind: LayoutKind, layers: int, times: tuple[int, ...]) -> None:
    """A drafted token is changed: its slot moves in the released layout alone, from 2 layers on."""
    model = tiny_diffusion(seed=4, layers=layers).model
    handle = model.open()

    def logits(tokens: tuple[int, ...]) -> np.ndarray:
        layout = verifying(kind, tokens, times, MASK)
        return np.asarray(model.step([Row(handle, layout.block)]).logits)

    layout = verifying(kind, TOKENS, times, MASK)
    before = logits(TOKENS)
    leaks = []
    for place in layout.data:
        flipped = tuple(t + 1 if i == place else t for i, t in enumerate(TOKENS))
        if np.abs(logits(flipped) - before)[layout.slots[place]].max() > 1e-9:
            leaks.append(place)
    expected = sorted(layout.data) if kind == "released" and layers > 1 else []
    assert sorted(leaks) == expected
    if layers > 1:
        assert sorted(layout.leaks()) == expected  # as the mask alone tells
