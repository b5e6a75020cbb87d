"""Hybrid models: parity with transformers at every width, rollback to any token, trees, forks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from specport.conformance.steps import Probe
from specport.core.block import Block
from specport.core.engine import Engine
from specport.core.ports import Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation, KeptCache
from specport.core.tree import TokenTree
from specport.errors import ModelError
from specport.models.source import ModelFiles
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

ov = pytest.importorskip("openvino")

from specport.backends.openvino.load import load  # noqa: E402
from specport.backends.openvino.paged import hybrid  # noqa: E402
from specport.backends.openvino.paged.hybrid import HybridModel  # noqa: E402
from support.laws.hybrid_texts import Texts  # noqa: E402
from support.tiny import hybrids  # noqa: E402

LENGTH = 72
IDS = [int(i) for i in np.random.default_rng(5).integers(3, 250, 400)]
Logits = NDArray[np.float32]


@pytest.fixture(scope="module", params=hybrids.KINDS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFiles]:
    root = tmp_path_factory.mktemp("hybrid")
    with hybrids.exported(root, request.param) as (target, _):
        yield target


@pytest.fixture(scope="module")
def source(files: ModelFiles, request: pytest.FixtureRequest) -> Path:
    return next(files.folder.parents[1].parent.glob("*/tiny"))


def loaded(files: ModelFiles, **options: object) -> HybridModel:
    model = load(files, LoadOptions(load_profile("xeon"), **options)).model  # type: ignore[arg-type]
    assert isinstance(model, HybridModel)
    return model


@pytest.fixture(scope="module")
def model(files: ModelFiles) -> HybridModel:
    return loaded(files)


@pytest.fixture(scope="module")
def probe(model: HybridModel) -> Probe:
    assert model.capabilities.exact
    return Probe(model)


@pytest.fixture(scope="module")
def reference(source: Path) -> Logits:
    """[LENGTH, vocab] logits of transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        found: Logits = model(torch.tensor([IDS[:LENGTH]])).logits[0].numpy()
    return found


@pytest.fixture(scope="module")
def whole(probe: Probe) -> Logits:
    """[len(IDS), vocab] logits of one step."""
    handle = probe.model.open()
    logits = probe.feed(handle, [IDS])
    probe.model.close(handle)
    return logits


@pytest.mark.parametrize("width", range(1, 25))
def test_logits_are_those_of_transformers_at_every_width(probe: Probe, reference: Logits, width: int) -> None:
    handle = probe.model.open()
    found = probe.feed(handle, [IDS[i : min(i + width, LENGTH)] for i in range(0, LENGTH, width)])
    probe.model.close(handle)
    assert np.abs(found - reference).max() < 1e-3 * reference.std()


def test_sequences_in_a_step_have_their_own_positions(probe: Probe, reference: Logits) -> None:
    """Ragged ones, at different lengths, each behind another past."""
    model, pasts = probe.model, (0, 5, 33, 60)
    handles = [probe.opened(IDS[:past]) for past in pasts]
    counts = (3, 1, 24, 12)
    rows = [Row(h, Block.chain(IDS[p : p + n])) for h, p, n in zip(handles, pasts, counts, strict=True)]
    for past, count, logits in zip(pasts, counts, probe.step(*rows), strict=True):
        assert np.abs(logits - reference[past : past + count]).max() < 1e-3 * reference.std()
    for handle in handles:
        model.close(handle)


@pytest.mark.parametrize("drafted", [1, 2, 7, 24])
def test_going_back_to_every_token(probe: Probe, whole: Logits, drafted: int) -> None:
    """A step's tokens are right up to somewhere, and wrong from there: nothing of them may stay."""
    handle = probe.opened(IDS[:9])
    for kept in [*range(drafted + 1), 0, drafted]:
        start = handle.length
        wrong = [(token + 1) % 250 for token in IDS[start + kept : start + drafted]]
        (logits,) = probe.step(Row(handle, Block.chain([*IDS[start : start + kept], *wrong])))
        probe.check(logits[:kept], whole[start : start + kept])
        probe.model.commit(handle, range(kept))
        if handle.length > 300:
            probe.model.truncate(handle, 9 + kept)
    start = handle.length
    probe.check(probe.feed(handle, [IDS[start : start + 5]]), whole[start : start + 5])
    probe.model.close(handle)


def test_a_verify_step_leaves_nothing_to_compute_again(model: HybridModel, probe: Probe) -> None:
    handle = probe.opened(IDS[:40])
    for kept in (1, 3, 8):
        probe.step(Row(handle, Block.chain(IDS[:8])))
        model.commit(handle, range(kept))
        assert handle.history.known == handle.length  # type: ignore[attr-defined]
    tree = TokenTree((5, 6, 7, 8, 9), (-1, 0, 0, 2, 2)).as_block()
    for path in ([0], [0, 1], [0, 2, 3], [0, 2, 4]):
        used = model.states.num_used
        probe.step(Row(handle, tree))
        assert model.states.num_used == used + len(tree)  # one for each node, however many paths it is on
        model.commit(handle, path)
        assert handle.history.known == handle.length  # type: ignore[attr-defined]
    model.close(handle)


@pytest.mark.parametrize("bounded", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_random_use(
    files: ModelFiles, model: HybridModel, seed: int, bounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains, trees, commits, cuts, forks and closings of several sequences in shared steps.

    bounded: with so few states that some steps keep none of them, or are refused.
    """
    if bounded:
        monkeypatch.setattr(hybrid, "_MOST_STATES", 12)
    used = loaded(files)
    assert (used.states.max_blocks == 12) is bounded
    texts = Texts(used, model, seed)
    for number in range(60):
        texts.step()
        texts.change()
        if number % 4 == 0:
            texts.check(number % 3)
    for i, handle in enumerate(texts.handles):
        texts.check(i)
        used.close(handle)
    assert used.states.num_used == used.cache.num_used_blocks == 0
    assert texts.num_refused == 0 or bounded


@pytest.mark.parametrize("rewritten", [0, 3, 30])
def test_a_later_turn_goes_on_from_what_was_kept(model: HybridModel, rewritten: int) -> None:
    """Also where a chat template writes the end of the last answer in another way."""
    kept, prompt = KeptCache(), IDS[:90]
    texts = []
    for cache in (kept, None):
        first = Generation(prompt[:], SamplingParams(), 40, kept=cache)
        for _ in Engine(model).run([first]):
            pass
        again = [*first.tokens[: len(first.tokens) - rewritten], *IDS[200:220]]
        second = Generation(again, SamplingParams(), 12, kept=cache)
        for _ in Engine(model).run([second]):
            pass
        texts.append(second.tokens)
    assert texts[0] == texts[1]
    assert kept.handle is not None
    model.close(kept.handle)


def test_the_memory_of_states_counts(files: ModelFiles, model: HybridModel) -> None:
    budget = 40 * model.states.bytes_for(1) + 40 * model.cache.bytes_for(1)
    small = loaded(files, cache_bytes=budget)
    total = small.states.bytes_for(small.states.max_blocks) + small.cache.bytes_for(small.cache.max_blocks)
    assert budget // 2 < total <= budget


@pytest.mark.parametrize(
    ("profile", "options"),
    [("core-ultra-npu-emulated", {}), ("xeon", {"exit_layer": 1})],
    ids=["fixed shapes", "early exit"],
)
def test_what_hybrids_cannot_do_is_said_in_one_line(
    files: ModelFiles, profile: str, options: dict[str, int]
) -> None:
    with pytest.raises(ModelError, match="recurrent layers") as error:
        load(files, LoadOptions(load_profile(profile), **options))  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
