"""States of a target along its text."""

from __future__ import annotations

import numpy as np
import pytest
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.text.hidden import next_states

from specport.errors import InvalidInput

WIDTH = 3


def text(length: int, start: int, states: int) -> Dialogue:
    """Return a text of `length` tokens; row i of its states stands before the token that it names."""
    tokens = np.arange(100, 100 + length, dtype=np.int32)
    top = np.zeros((length - start, 1), np.int32)
    behind = np.repeat(tokens[length - states :, None], 2 * WIDTH, axis=1) + np.array(
        [0] * WIDTH + [0.5] * WIDTH
    )
    return Dialogue(tokens, start, top, top.astype(np.float32), hidden=behind.astype(np.float16))


@pytest.mark.parametrize("states", [6, 9])  # of the answer, and of the whole text
def test_each_state_goes_with_the_token_behind_it_and_the_state_behind_that(states: int) -> None:
    before, tokens, after = next_states([text(10, 4, states), text(5, 4, 1), text(10, 4, states)], WIDTH, 100)
    assert before.shape == (2 * (states - 1), 2 * WIDTH) and after.shape == (len(before), WIDTH)
    assert np.array_equal(before[:, 0], tokens) and np.array_equal(after[:, 0], tokens + 1.5)
    few = next_states([text(10, 4, states)] * 9, WIDTH, states)
    assert len(few[1]) == 2 * (states - 1)


def test_texts_of_one_state_are_too_short() -> None:
    with pytest.raises(InvalidInput, match="long enough"):
        next_states([text(5, 4, 1)], WIDTH, 10)
