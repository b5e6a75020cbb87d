"""Diffusion: rows of SimSD's verifying step. A drafted token must not reach the logits that judge it.

Needed of a device on which diffusion models are to decode; any model with layers shows it, whatever it was
trained for. The mask that the paper's code was released with leaks, which is shown too: without that, these
tests would see nothing.
"""

from __future__ import annotations

import numpy as np
import pytest

from specport.conformance.steps import Array, Probe
from specport.core.ports import Row
from specport.diffusion.context import Context
from specport.diffusion.layout import denoising, verifying
from specport.diffusion.options import LayoutKind
from specport.diffusion.ports import DiffusionModel
from specport.models.kinds.diffusion import DiffusionFacts

pytestmark = pytest.mark.needs("gather", visibility="any")
MASK = 2
TIMES = {"by-confidence": (2, 0, 3, 1), "two-at-a-time": (0, 1, 0, 1)}
# Without exact numerics another token elsewhere may change roundings: a leak moves logits by much more.
LEAK = 1e-3


def judged(
    probe: Probe, past: list[int], kind: LayoutKind, block: list[int], times: tuple[int, ...]
) -> Array:
    """Return the logits of each position's slot, [block, vocab], behind a text of complete blocks."""
    handle = probe.opened(past)
    layout = verifying(kind, block, times, MASK)
    (logits,) = probe.step(Row(handle, layout.block))
    probe.model.close(handle)
    return logits[[layout.slots[place] for place in range(len(block))]]


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("kind", ["same-step", "grouped", "released"])
def test_flip(any_probe: Probe, ids: list[int], kind: LayoutKind, times: tuple[int, ...]) -> None:
    """Each drafted token is changed; the logits of its own slot move under the released mask alone."""
    past, block = ids[:21], ids[21:25]
    before = judged(any_probe, past, kind, block, times)
    spread = float(before.std())
    moved = []
    for place in range(4):
        if times[place] == max(times):
            continue  # nothing attends to what was revealed last
        flipped = [30 + token if i == place else token for i, token in enumerate(block)]
        after = judged(any_probe, past, kind, flipped, times)
        later = [i for i in range(4) if times[i] > times[place]]
        assert np.abs(after - before)[later].max() > LEAK * spread, "a token has no effect on those after it"
        moved.append(float(np.abs(after - before)[place].max()) / spread)
    if kind == "released":
        assert min(moved) > LEAK, "the released mask does not leak here: what does this test see?"
    else:
        assert max(moved) < LEAK, "a drafted token reaches the logits that judge it"


def test_the_cache_gives_what_the_whole_text_gives(any_probe: Probe, ids: list[int]) -> None:
    """Blocks in the cache, the last of them read with the masks behind it: as one uncached read."""
    model = DiffusionModel(any_probe.model, DiffusionFacts(MASK, 4))
    contexts = [Context(model, cached) for cached in (True, False)]
    for context in contexts:
        context.start(ids[:24], True, 4)
    masks = denoising([ids[24], MASK, MASK, ids[25]])
    for more in ([], ids[30:34], ids[34:36]):
        for context in contexts:
            context.extend(more)
        any_probe.check_close(*(context.step(masks) for context in contexts))
    for context in contexts:
        context.close()
