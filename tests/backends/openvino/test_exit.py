"""Early exit on OpenVINO: the split model gives the whole one's bits, whatever was drafted before a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from specport.core.block import Block
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Model, Policy, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import EarlyExitDrafter
from specport.errors import ModelError
from specport.models.source import ModelFiles
from specport.runtime import numerics
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

ov = pytest.importorskip("openvino")

from specport.backends.openvino.load import load  # noqa: E402
from specport.backends.openvino.paged import early_exit  # noqa: E402
from specport.backends.openvino.paged.early_exit import ExitModel, ExitSequence  # noqa: E402
from specport.backends.openvino.paged.segments import Segment, chain_segment  # noqa: E402
from specport.backends.openvino.request import Request  # noqa: E402
from specport.quantize.convert.openvino_core import core  # noqa: E402

pytestmark = pytest.mark.real_model

IDS = [int(i) for i in np.random.default_rng(11).integers(0, 49000, 300)]
EXIT, CONTEXT = 10, 512


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return resolve()


def split_model(files: ModelFiles, **options: object) -> ExitModel:
    given = {"exit_layer": EXIT, "max_context": CONTEXT, **options}
    loaded = load(files, LoadOptions(load_profile("xeon"), **given)).model  # type: ignore[arg-type]
    assert isinstance(loaded, ExitModel)
    return loaded


@pytest.fixture(scope="module")
def model(files: ModelFiles) -> ExitModel:
    found = split_model(files)
    assert found.capabilities.exact and found.early_exit is not None and found.early_exit.layer == EXIT
    return found


@pytest.fixture(scope="module")
def plain(files: ModelFiles) -> Model:
    """The model that is not split."""
    found = load(files, LoadOptions(load_profile("xeon"), max_context=CONTEXT)).model
    assert found.early_exit is None
    return found


@pytest.fixture(scope="module")
def whole(plain: Model) -> NDArray[np.float32]:
    """Logits of IDS on the model that is not split."""
    handle = plain.open()
    logits = np.array(plain.step([Row(handle, chain(IDS))]).logits)
    plain.close(handle)
    return logits


@pytest.fixture(scope="module")
def plain_texts(plain: Model) -> list[list[int]]:
    return texts(plain, None)


def chain(tokens: Sequence[int]) -> Block:
    return Block.chain(tokens)


def read(model: ExitModel, count: int) -> ExitSequence:
    handle = model.open()
    model.step([Row(handle, chain(IDS[:count]), logits="none")])
    model.commit(handle, range(count))
    assert isinstance(handle, ExitSequence)
    return handle


@pytest.mark.parametrize("sizes", [[1] * 20, [2, 5, 1, 8], [40], [31, 1, 33]], ids=str)
def test_a_split_model_gives_the_bits_of_the_whole(
    model: ExitModel, whole: NDArray[np.float32], sizes: list[int]
) -> None:
    handle = read(model, 30)
    for size in sizes:
        start = handle.length
        logits = model.step([Row(handle, chain(IDS[start : start + size]))]).logits
        assert np.array_equal(logits, whole[start : start + size])
        model.commit(handle, range(size))
    model.close(handle)
    assert model.cache.num_used_blocks == 0


@pytest.mark.parametrize("drafted", [[1], [1] * 5, [3, 2], [1] * 8, [9]], ids=str)
@pytest.mark.parametrize("wrong", [None, 0, 2])
@pytest.mark.parametrize("past", [30, 31])
def test_a_step_gives_the_same_bits_whatever_was_drafted(
    model: ExitModel, whole: NDArray[np.float32], drafted: list[int], wrong: int | None, past: int
) -> None:
    handle = read(model, past)
    tokens = IDS[past : past + 9]
    guessed = [token + (i == wrong) for i, token in enumerate(tokens)]
    start = 0
    for size in drafted:
        model.draft([Row(handle, chain(guessed[start : start + size]))])
        start += size
    new = tokens[:6]
    assert np.array_equal(model.step([Row(handle, chain(new))]).logits, whole[past : past + 6])
    assert not handle.drafted and not handle.stream
    model.commit(handle, range(4))
    again = model.step([Row(handle, chain(tokens[4:]))]).logits
    assert np.array_equal(again, whole[past + 4 : past + 9])
    model.close(handle)


def test_only_what_was_not_drafted_runs_the_front(model: ExitModel, monkeypatch: pytest.MonkeyPatch) -> None:
    fronts: list[int] = []
    heads: list[int] = []
    call = Request.__call__

    def noted(self: Request, inputs: dict[str, NDArray[np.generic]]) -> float:
        names = {name for port in self.compiled.inputs for name in port.names}
        if "input_ids" in names:  # which the front alone reads
            fronts.append(inputs["input_ids"].size)
        if "logits_indices" in names:
            heads.append(inputs["logits_indices"].size)
        return call(self, inputs)

    handle = read(model, 40)
    monkeypatch.setattr(Request, "__call__", noted)
    for token in IDS[40:44]:
        model.draft([Row(handle, chain([token]))])
    assert fronts == [2, 2, 2, 2]  # a lone token is padded
    fronts.clear()
    model.step([Row(handle, chain(IDS[40:45]))])
    assert fronts == [2]
    fronts.clear()
    model.draft([Row(handle, chain(IDS[40:42]))])
    heads.clear()
    output = model.step([Row(handle, chain(IDS[40:42]), logits="none")])
    assert fronts == [2]  # all of it was drafted
    assert heads == [] and output.logits.shape == (0, model.vocab_size)  # and nothing is scored
    model.close(handle)


def test_rows_of_a_batch_have_their_own_overlap(model: ExitModel, whole: NDArray[np.float32]) -> None:
    handles = [read(model, past) for past in (20, 33, 64)]
    model.draft(
        [Row(h, chain(IDS[h.length : h.length + n])) for h, n in zip(handles[:2], (3, 1), strict=True)]
    )
    model.draft([Row(handles[1], chain([5]))])
    rows = [Row(h, chain(IDS[h.length : h.length + n])) for h, n in zip(handles, (3, 4, 1), strict=True)]
    output = model.step(rows)
    for i, (handle, n) in enumerate(zip(handles, (3, 4, 1), strict=True)):
        assert np.array_equal(output.logits_of(i), whole[handle.length : handle.length + n])
        model.close(handle)


def test_a_tree_behind_a_draft(model: ExitModel, whole: NDArray[np.float32]) -> None:
    handle = read(model, 45)
    model.draft([Row(handle, chain(IDS[45:47]))])
    tree = TokenTree((IDS[45], 7, IDS[46], IDS[47]), (-1, 0, 0, 2)).as_block()
    logits = model.step([Row(handle, tree)]).logits
    assert np.array_equal(logits[[0, 2, 3]], whole[45:48])
    model.commit(handle, (0, 2, 3))
    assert np.array_equal(model.step([Row(handle, chain(IDS[48:50]))]).logits, whole[48:50])
    with pytest.raises(ValueError, match="chains only"):
        model.draft([Row(handle, tree)])
    model.close(handle)


def test_a_fork_has_no_drafts_and_both_go_on(model: ExitModel, whole: NDArray[np.float32]) -> None:
    handle = read(model, 50)
    model.draft([Row(handle, chain(IDS[50:53]))])
    other = model.fork(handle, 45)
    assert isinstance(other, ExitSequence) and not other.drafted
    model.draft([Row(other, chain([7, 8]))])
    output = model.step([Row(handle, chain(IDS[50:55])), Row(other, chain(IDS[45:50]))])
    assert np.array_equal(output.logits_of(0), whole[50:55])
    assert np.array_equal(output.logits_of(1), whole[45:50])
    model.close(handle)
    model.close(other)
    assert model.cache.num_used_blocks == 0


def test_the_exit_logits_are_those_of_the_first_layers(model: ExitModel, files: ModelFiles) -> None:
    """Of a model without the other layers; to rounding, since its last addition is fused elsewhere."""
    from specport.backends.openvino.graph import layers, surgery

    short = surgery.read_model(files.folder)
    count = len(layers.find(short))
    layers.drop(short, range(EXIT, count))
    short = surgery.to_paged(short)
    from specport.backends.openvino.paged.model import PagedModel

    compiled = core().compile_model(short, "CPU", {**load_profile("xeon").exact})
    first = PagedModel(Request(compiled), max_context=CONTEXT, exact=True)
    expected = np.array(first.step([Row(first.open(), chain(IDS[:40]))]).logits[30:])
    handle = read(model, 30)
    found = model.draft([Row(handle, chain(IDS[30:40]))]).logits
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.8
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected).mean()
    model.close(handle)


def test_limits_and_options(model: ExitModel, files: ModelFiles, whole: NDArray[np.float32]) -> None:
    handle, other = read(model, 200), read(model, 30)
    room = CONTEXT - 200
    model.draft([Row(handle, chain([5] * room))])
    output = model.draft([Row(handle, chain([5])), Row(other, chain(IDS[30:32]))])
    assert output.refused == {0: "context"} and output.offsets == (0, 0, 2)
    assert (len(handle.drafted), other.drafted) == (room, IDS[30:32])
    output = model.step([Row(handle, chain([5] * (room + 1))), Row(other, chain(IDS[30:33]))])
    assert output.refused == {0: "context"} and np.array_equal(output.logits_of(1), whole[30:33])
    assert len(handle.drafted) == room  # as it was
    model.truncate(handle, 100)
    assert not handle.drafted
    model.close(handle)
    model.close(other)
    for layer in (30, 99):
        with pytest.raises(ModelError, match="30 layers"):
            split_model(files, exit_layer=layer)
    with pytest.raises(ModelError, match="no hidden states"):
        split_model(files, hidden_layers=(3,))


def texts(model: Model, policy: Policy | None) -> list[list[int]]:
    prompts = [IDS[:20], IDS[50:53]]
    generations = [Generation([*prompt], SamplingParams(), max_new_tokens=24) for prompt in prompts]
    for _ in Engine(model, policy).run(generations):
        pass
    return [generation.tokens for generation in generations]


@pytest.mark.parametrize("layer", [1, 20])
def test_greedy_text_is_that_of_the_whole_model(
    files: ModelFiles, plain_texts: list[list[int]], layer: int
) -> None:
    target = split_model(files, exit_layer=layer)
    assert texts(target, FirstProposal([EarlyExitDrafter(target)], lambda: Fixed(4))) == plain_texts
    assert target.cache.num_used_blocks == 0


def test_the_check_of_exactness_sees_drafts_that_stand_elsewhere(
    model: ExitModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert numerics.is_invariant(model)

    def elsewhere(table: list[int], past: int, block: Block, *, pad_single: bool) -> Segment:
        segment = chain_segment(table, past, block, pad_single=pad_single)
        return replace(segment, past=past + 1)  # behind a gap

    monkeypatch.setattr(early_exit, "chain_segment", elsewhere)
    assert not numerics.is_invariant(model)
