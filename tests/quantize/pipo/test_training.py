"""Training of pair models: pairs by hand, both stages on a tiny model, and a training that is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import InvalidInput, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from specport.quantize.pipo import about, lora, pairing, start  # noqa: E402
from specport.quantize.pipo.build import build  # noqa: E402
from specport.quantize.pipo.network import PairNetwork  # noqa: E402
from specport.quantize.pipo.on_policy import divergence  # noqa: E402
from specport.quantize.pipo.recipe import Recipe  # noqa: E402
from specport.quantize.pipo.rollout import rollout  # noqa: E402
from specport.quantize.pipo.supervised import Supervised, examine, scores  # noqa: E402
from specport.quantize.pipo.training import ON_POLICY, train  # noqa: E402
from specport.quantize.text.dialogues import Dialogue  # noqa: E402
from specport.quantize.train import batches  # noqa: E402
from support.tiny import tiny_models, tiny_pipo  # noqa: E402
from support.tiny.tiny_dialogues import dialogues  # noqa: E402

PAD = len(tiny_models.vocabulary())
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more are slower for layers of this size
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    return dialogues(tiny_models.hf_model("llama"), 24, 0)


def recipe(**changes: Any) -> Recipe:
    return Recipe(**{**tiny_pipo.RECIPE, "epochs": 1.0, **changes})


def test_pairs_by_hand() -> None:
    found = pairing.in_pairs([5, 6, 7, 1, 2, 3, 4, 8], 3, np.array([False, True]), 99)
    assert found.first.tolist() == [5, 7, 1, 3, 4, 8]  # prompt 5 6 | 7 PAD, answer 1 2 | 3 | 4 | 8
    assert found.second.tolist() == [6, 99, 2, 99, 99, 99]
    assert found.ends.tolist() == [2, 3, 5, 6, 7, 8]
    batch = {name: tensor.tolist() for name, tensor in pairing.batch([found], "cpu").items()}
    assert batch["nexts"] == [[7, 1, 3, 4, 8, 0]]
    assert (batch["columns"], batch["answer"]) == ([1, 2, 3, 4], [1, 3, 4, 8])
    assert (batch["then"], batch["answer_then"]) == ([0, 1, 2], [2, 4, 8])


@pytest.mark.parametrize(
    "wrong",
    [{"epochs": 0.0}, {"rank": 0}, {"dropout": 1.0}, {"pad_share": -0.1}, {"distil_epochs": -1.0},
     {"learning_rate": float("inf")}, {"rollout": 0}, {"seed": -1}],
    ids=str,
)  # fmt: skip
def test_recipes_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Recipe(**wrong)


def test_a_decoder_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot be trained"):
        PairNetwork(tiny_models.hf_model("gemma3_text"), recipe())


def test_a_decoder_of_another_kind_is_refused_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And before it is converted."""
    monkeypatch.setattr("specport.models.source.resolve_with", lambda *_, **__: pytest.fail("converted"))
    tiny_models.save_hf(tmp_path / "gemma", "gemma3_text")
    with pytest.raises(ModelError, match="gemma3_text cannot be trained"):
        build(str(tmp_path / "gemma"), tmp_path / "out", recipe(), tokens=10)


def test_a_training_that_diverged_has_a_record(texts: list[Any], tmp_path: Path) -> None:
    network = PairNetwork(tiny_models.hf_model("llama"), recipe())
    with torch.no_grad():
        network.norm.weight.fill_(float("nan"))
    found = examine(network, texts[:3], 4096, "cpu")
    assert found["loss_second"] is None and found["loss_first"] > 0.0
    facts = {
        "source": "tiny", "recipe": {}, "before": found, "after": found, "tokens_read": 1, "seconds": 1.0,
        "date": "", "versions": {},
    }  # fmt: skip
    about.write(tmp_path, facts)
    assert about.read(tmp_path).after.loss_second is None


def test_single_tokens_read_as_the_original_at_first() -> None:
    """The residual and PAD's vector are 0, the updates too: training begins at the unmodified model."""
    model = tiny_models.hf_model("llama")
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        want = model(ids).logits[0]
        network = PairNetwork(model, recipe()).eval()
        states = network.states(ids, torch.full_like(ids, PAD))
        torch.testing.assert_close(network.head(states)[0], want)
        both = network.compressor(
            network.embed(ids), network.embed(ids + 1), torch.zeros_like(ids, dtype=torch.bool)
        )
        torch.testing.assert_close(both, network.embed(ids) + network.embed(ids + 1))


def test_what_the_module_is_fitted_to() -> None:
    """Behind each pair that a token follows, the original's state behind that token."""
    network = PairNetwork(tiny_models.hf_model("llama"), recipe()).eval()
    tokens = np.array([5, 6, 7, 1, 2, 3, 4, 8], np.int32)  # pairs 5 6 | 7 | 1 2 | 3 4 | 8
    text = Dialogue(tokens, 3, np.zeros((5, 1), np.int32), np.zeros((5, 1), np.float32))
    with torch.no_grad():
        network.model.model.norm.weight.mul_(2.0)
        stream = start._Stream.read(network, [text], 0, "cpu")
        plain = network.original(torch.from_numpy(tokens).long()[None])[0]
    want = plain[[2, 3, 5, 7]] / network.model.model.norm.weight
    torch.testing.assert_close(stream.wanted, want, rtol=0.05, atol=0.05)  # bf16 where there is AMX
    tokens_behind = stream.chosen(stream.tokens)
    torch.testing.assert_close(tokens_behind, network.embed(torch.tensor([7, 1, 3, 8])).detach())


def test_a_fit_finds_a_linear_map() -> None:
    inputs, right = torch.randn(3, 40, 6), torch.randn(4, 6)
    rows = [torch.arange(0, 40), torch.arange(5, 40), torch.arange(0, 20)]
    wanted = torch.cat([(x @ right.T)[r] for x, r in zip(inputs, rows, strict=True)])
    stream = start._Stream([torch.zeros(1, 40, 4)] * 3, [], rows, wanted)
    each = [x[None] for x in inputs]
    first = stream.add(each)
    assert 0.02 < float((first - right).norm() / right.norm()) < 0.3  # as the ridge says
    for _ in range(12):  # what is missing gets smaller with each map
        stream.add(each)
    torch.testing.assert_close(stream.chosen(stream.values), wanted, rtol=1e-2, atol=1e-2)


def test_a_fitted_start_is_nearer_to_the_original(texts: list[Any]) -> None:
    """On the text that it is fitted to: there is too little of it to say more of other text."""
    network = PairNetwork(tiny_models.hf_model("llama"), recipe())

    before = _missing(network, texts[0])
    start.fit(network, texts, 0)
    assert network.training and network.fc.weight.requires_grad
    assert _missing(network, texts[0]) < 0.8 < before
    short = [Dialogue(text.tokens[:2], 2, text.top_ids[:0], text.top_probs[:0]) for text in texts[:2]]
    weight = network.fc.weight.clone()
    start.fit(network, short, 0)  # nothing stands behind a pair
    assert torch.equal(network.fc.weight, weight)


def _missing(network: PairNetwork, text: Dialogue) -> float:
    """Return the share of the original's states behind a text's third, fifth ... token that is not there."""
    whole = torch.from_numpy(text.tokens[: (len(text.tokens) - 1) // 2 * 2 + 1]).long()[None]
    with torch.no_grad():
        states = network.states(whole[:, :-1:2], whole[:, 1::2])
        found = network.second_states(states, whole[:, 2::2]).float()
        wanted = network.original(whole)[:, 2::2].float()
    return float((found - wanted).square().mean() / wanted.square().mean())


def test_merged_updates_compute_the_same() -> None:
    network = tiny_pipo.network()
    first, second = torch.arange(5, 15)[None], torch.arange(25, 35)[None]
    with torch.no_grad():
        want = network.states(first, second)
        with lora.without(network.model.model.layers):
            assert not torch.allclose(network.states(first, second), want)
        lora.merge(network.model.model.layers)
        assert not any(isinstance(module, lora.Updated) for module in network.modules())
        torch.testing.assert_close(network.states(first, second), want, rtol=1e-3, atol=1e-3)


def test_what_is_trained(texts: list[Any]) -> None:
    network = PairNetwork(tiny_models.hf_model("llama"), recipe())
    batch = batches.batch(texts[:4], "cpu")
    before = {name: p.clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    student = Supervised(network, recipe())
    for step in range(12):
        loss, _ = student(batch, step, 12)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name in before if name.startswith("model.") and not name.endswith((".a", ".b"))}
    assert not changed & frozen and {*before} - frozen == changed


def test_the_confidence_gives_no_gradient_to_the_tokens(texts: list[Any]) -> None:
    network = tiny_pipo.network()
    paired = [pairing.in_pairs(t.tokens, t.start, np.zeros(20, bool), PAD) for t in texts[:3]]
    _, _, judged = scores(network, pairing.batch(paired, "cpu"))
    judged.sum().backward()
    with_gradient = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert with_gradient == {"confidence"}


def test_rollouts_are_what_the_model_says(texts: list[Any]) -> None:
    """Written with caches and padding on the left, they are those of one pass over the text."""
    network = tiny_pipo.network()
    prompts = [np.asarray(t.tokens[:n], np.int64) for t, n in zip(texts, (2, 5, 4), strict=False)]
    found = rollout(network, prompts, 6, 0.5, frozenset({0}), torch.Generator().manual_seed(1))
    widths = []
    for prompt, answer in zip(prompts, found, strict=True):
        text = answer.text
        assert text.tokens[: len(prompt)].tolist() == prompt.tolist() and text.ends[-1] == len(text.tokens)
        own = np.diff([0, *text.ends])
        widths += own[-len(answer.sampled) :].tolist()
        _, _, sure = tiny_pipo.reference(network, [*text.tokens, 0], own)
        steps = len(answer.sampled)
        for i, width in enumerate(own[-steps:], len(own) - steps - 1):
            ended = text.tokens[text.ends[i]] == 0
            assert (width == 2) == (sure[i] >= 0.5 and not ended)
            if width == 2:
                assert answer.sampled[i - (len(own) - steps - 1)] == text.tokens[text.ends[i] + 1]
    assert {*widths} == {1, 2}


def test_the_divergence_is_that_of_the_unmodified_model(texts: list[Any]) -> None:
    """For the original itself, which writes single tokens, first tokens diverge by nothing."""
    network = PairNetwork(tiny_models.hf_model("llama"), recipe()).eval()
    prompts = [np.asarray(t.tokens[:1], np.int64) for t in texts[:3]]
    answers = rollout(network, prompts, 5, 0.999, frozenset(), torch.Generator().manual_seed(1))
    assert all((a.text.second == PAD).all() for a in answers)
    network.head = _only_first(network.head)  # type: ignore[method-assign]
    loss, label = divergence(network, answers, "cpu")
    assert float(label) == 1.0 and float(loss) == pytest.approx(0.693, abs=0.4)  # of the confidence only


def _only_first(head: Any) -> Any:
    """Return a head that says the same of every second token: calls come as first ones and second ones."""
    calls = iter((True, False, True, False))  # teacher first and second, own first and second

    def same(states: Any) -> Any:
        logits = head(states)
        return logits if next(calls) else torch.zeros_like(logits)

    return same


def test_a_training_is_resumed(texts: list[Any], tmp_path: Path) -> None:
    given = recipe(epochs=2.0, distil_epochs=2.0)

    def run(work: Path, stop: int | None = None) -> tuple[Any, Any]:
        network, calls = PairNetwork(tiny_models.hf_model("llama"), given), 0

        def progress(stage: str, share: float) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt

        work.mkdir(exist_ok=True)
        return network, train(network, texts[6:], texts[:6], given, work, frozenset({0}), progress, progress)

    whole, facts = run(tmp_path / "whole")
    assert {"before", "after", "distilled"} <= {*facts} and (tmp_path / "whole" / ON_POLICY).is_file()
    # After the fit and two steps of the first stage, and then after the first of the second stage.
    for stop in (3, len(facts["losses"]) - 1):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", stop)
    resumed, again = run(tmp_path / "parts")
    assert again["losses"] == facts["losses"] and again["distil_losses"] == facts["distil_losses"]
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other)
