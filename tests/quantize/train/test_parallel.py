"""Training of parallel drafts: which rows there are, what they see, what they weigh, and what is learnt."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.drafters.model.head import DraftHead
from specport.errors import InvalidInput

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from specport.quantize.text.dialogues import Dialogue  # noqa: E402
from specport.quantize.train import batches, log_probabilities  # noqa: E402
from specport.quantize.train.parallel import bigrams, temperature  # noqa: E402
from specport.quantize.train.parallel.chains import FLOOR, KEPT, all_chains, pack, sample_chains  # noqa: E402
from specport.quantize.train.parallel.examination import predictions  # noqa: E402
from specport.quantize.train.parallel.training import ParallelStudent, add_mask, train_parallel  # noqa: E402
from specport.quantize.train.recipe import Recipe  # noqa: E402
from support.tiny import tiny_models  # noqa: E402
from support.tiny.tiny_parallel import FIRST, VOCAB, dialogues  # noqa: E402

DEPTH, MASK = 4, VOCAB


@pytest.fixture(scope="module")
def texts() -> list[Dialogue]:
    return dialogues(40, 0)


def model(kind: str = "llama", **changes: Any) -> Any:
    return tiny_models.hf_model(kind, 2, **changes)


def packed(texts: list[Dialogue], rows: list[Any]) -> Any:
    return pack(batches.batch(texts, "cpu"), rows, MASK)


def test_chains_thin_out_with_depth_and_are_whole() -> None:
    length, start, depth, rng = 220, 20, 6, np.random.default_rng(0)
    seen = np.zeros((depth, length))
    for _ in range(50):
        anchor, d = sample_chains(length, start, depth, rng)
        rows = {*zip(anchor.tolist(), d.tolist(), strict=True)}
        assert len(rows) == len(anchor)
        for a, level in rows:
            assert level < 2 or (a, level - 1) in rows  # the MASKs in between exist
            assert level == 0 or start <= a + level + 1 < length  # it predicts a token of the answer
        assert np.array_equal(anchor[d == 0], np.arange(length))
        counts = np.bincount(d, minlength=depth)[1:]
        wanted = (length - start) * np.maximum(KEPT ** np.arange(1, depth), FLOOR)
        assert (np.abs(counts - wanted) <= 1 + 0.05 * wanted).all()
        seen[d, anchor] += 1
    assert (
        2.7
        < sum(map(len, [sample_chains(length, start, depth, rng)[0] for _ in range(50)])) / 50 / length
        < 3
    )
    # Every anchor of the answer is as likely as any other.
    inner = seen[3, start : length - depth] / 50
    assert abs(inner.mean() - KEPT**3) < 0.03 and inner.std() < 0.1


@pytest.mark.parametrize(("length", "start"), [(2, 1), (5, 4), (6, 2), (3, 3), (9, 1)])
def test_short_texts_have_rows_for_what_they_hold(length: int, start: int) -> None:
    for anchor, depth in (
        sample_chains(length, start, DEPTH, np.random.default_rng(0)),
        all_chains(length, start, DEPTH),
    ):
        masks = depth > 0
        assert (anchor + depth + 1 < length)[masks].all() and (anchor >= 0).all()
    anchor, depth = all_chains(length, start, DEPTH)
    wanted = {(a, d) for d in range(1, DEPTH) for a in range(start, length) if a + d + 1 < length}
    assert {(int(a), int(d)) for a, d in zip(anchor, depth, strict=True) if d} == wanted


def test_what_a_row_sees(texts: list[Dialogue]) -> None:
    """The text up to its anchor, and the MASKs before it behind the same anchor; nothing of another text."""
    chosen = [texts[0], texts[1]]
    rng = np.random.default_rng(1)
    rows = [sample_chains(len(t.tokens), t.start, DEPTH, rng) for t in chosen]
    found = packed(chosen, rows)
    visible = found.visible().numpy()
    for i, (anchor, depth) in enumerate(rows):
        n = len(anchor)
        assert not visible[i, :n, n:].any()
        assert visible[i].diagonal().all()  # padding sees itself, or its softmax is not a number
        for q in range(n):
            wanted = [
                (depth[k] == 0 and anchor[k] <= anchor[q])
                or (anchor[k] == anchor[q] and depth[k] <= depth[q])
                for k in range(n)
            ]
            assert visible[i, q, :n].tolist() == wanted
        assert found.positions[i, :n].tolist() == (anchor + depth).tolist()
        ids = np.where(depth == 0, chosen[i].tokens[anchor], MASK)
        assert found.ids[i, :n].tolist() == ids.tolist()


def test_labels_teachers_and_weights_by_hand() -> None:
    tokens = np.array([5, 6, 7, 8, 9], dtype=np.int32)
    top = np.array([[7, 1], [8, 1], [2, 9]], dtype=np.int32)
    probs = np.array([[0.5, 0.2], [0.4, 0.2], [0.9, 0.01]], dtype=np.float32)
    text = Dialogue(tokens, 2, top, probs)
    anchor = np.array([0, 1, 2, 3, 4, 1, 2, 1])
    depth = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    found = packed([dialogues(1, 5)[0], text], [all_chains(14, 3, 1), (anchor, depth)])
    mine = found.texts == 1
    predicted = [
        (1, 0),
        (2, 0),
        (3, 0),
        (1, 1),
        (2, 1),
        (1, 2),
    ]  # the first row and the last predict no answer
    places = [1, 2, 3, 5, 6, 7]
    assert found.places[mine].tolist() == places
    assert found.facts["answer"][mine].tolist() == [tokens[a + d + 1] for a, d in predicted]
    assert found.facts["top_ids"][mine].tolist() == [top[a + d + 1 - 2].tolist() for a, d in predicted]
    assert found.facts["columns"][mine].tolist() == [a for a, _ in predicted]
    # p of the tokens in between: x[2] = 7 with 0.5, x[3] = 8 with 0.4.
    assert found.weights[mine].tolist() == pytest.approx([1, 1, 1, 0.5, 0.4, 0.2])
    rare = Dialogue(tokens, 2, top, np.full_like(probs, 1e-3))
    weights = packed([rare], [(anchor, depth)]).weights
    assert weights.tolist() == pytest.approx([1, 1, 1, 0.05, 0.05, 0.05])


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_packed_row_gives_what_the_model_gives_alone(kind: str) -> None:
    """Each chain stepped alone, as at run time: text, then MASKs. Past a sliding window, too."""
    whole = model(kind, sliding_window=8) if kind == "gemma3_text" else model(kind)
    mask = add_mask(whole, VOCAB, [])
    chosen = dialogues(2, 7)
    student = ParallelStudent(whole, range(VOCAB), Recipe(parallel=DEPTH), mask).eval()
    rows = [all_chains(len(t.tokens), t.start, DEPTH) for t in chosen]
    with torch.no_grad():
        found = packed(chosen, rows)
        outputs = student.outputs(found)
        for i, (text, place) in enumerate(zip(found.texts.tolist(), found.places.tolist(), strict=True)):
            anchor, depth = (int(array[text, place]) for array in (found.anchors, found.depths))
            ids = [*chosen[text].tokens[: anchor + 1].tolist(), *[mask] * depth]
            alone = whole.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            assert torch.allclose(outputs[i], alone, atol=2e-4 * float(alone.abs().max()))


def test_a_token_joins_a_cut_head_up_to_the_anchor() -> None:
    """A token that first occurs where MASKs stand cannot be proposed by them, as at run time."""
    tokens = np.array([50, 51, 52, 53, 54, 60, 54, 60], dtype=np.int32)
    top = tokens[2:, None]
    text = Dialogue(tokens, 2, top, np.ones(top.shape, dtype=np.float32))
    head = [t for t in range(VOCAB) if t not in (54, 60)]
    whole = model()
    student = ParallelStudent(whole, head, Recipe(parallel=DEPTH), add_mask(whole, VOCAB, [text]))
    found = packed([text], [all_chains(8, 2, DEPTH)])
    with torch.no_grad():
        ((log_q, _, column),) = [*student.pieces(student.outputs(found), found)]
    for i, place in enumerate(found.places.tolist()):
        anchor = int(found.anchors[0, place])
        for token in (54, 60):
            known = token in tokens[: anchor + 1]
            assert bool(log_q[i, column[token]].isfinite()) == known, (anchor, token)
    batch = batches.batch([text], "cpu")
    assert math.isfinite(student(batch, 0)[0].item())  # labels that cannot be proposed


def test_mask_is_an_id_that_no_text_has(texts: list[Dialogue]) -> None:
    whole = model(vocab_size=VOCAB + 4)
    first = texts[0]
    odd = Dialogue(np.append(first.tokens[:-1], np.int32(VOCAB)), first.start, first.top_ids, first.top_probs)
    before = whole.get_input_embeddings().weight.detach().clone()
    assert add_mask(whole, VOCAB, [odd]) == VOCAB + 1
    after = whole.get_input_embeddings().weight
    assert after.shape == before.shape
    assert torch.allclose(after[VOCAB + 1], before[:VOCAB].mean(dim=0))
    assert torch.equal(after[: VOCAB + 1], before[: VOCAB + 1])
    appended = model()
    assert add_mask(appended, VOCAB, texts) == VOCAB == appended.config.vocab_size - 1
    appended.config.pard_token = VOCAB
    row = appended.get_input_embeddings().weight[VOCAB].detach().clone().mul_(2)
    with torch.no_grad():
        appended.get_input_embeddings().weight[VOCAB] = row
    assert add_mask(appended, VOCAB, texts) == VOCAB  # trained before: kept as it is
    assert torch.equal(appended.get_input_embeddings().weight[VOCAB], row)


def run(
    whole: Any, texts: list[Dialogue], work: Path, progress: Any = lambda *_: None, **changes: Any
) -> Any:
    recipe = Recipe(
        **{"epochs": 6.0, "learning_rate": 3e-3, "batch_tokens": 128, "parallel": DEPTH, **changes}
    )
    mask = add_mask(whole, VOCAB, texts)
    return train_parallel(whole, range(VOCAB), mask, texts[8:], texts[:8], recipe, work, progress)


@pytest.mark.parametrize("precision", ["fp32", "int4:asym"])
def test_survival_rises_and_other_embeddings_stay(
    precision: str, texts: list[Dialogue], tmp_path: Path
) -> None:
    whole = model()
    before = whole.get_input_embeddings().weight.detach().clone()
    found = run(whole, texts, tmp_path, epochs=30.0, precision=precision)
    assert found.distillation.trained and len(found.survival) == DEPTH
    assert found.survival_before[1] < 0.1 and found.survival[1] > 0.5
    assert [*found.survival] == sorted(found.survival, reverse=True)
    assert found.distillation.after == found.survival[0] > 0.8  # token by token it drafts, too
    losses = found.distillation.losses
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    after = whole.get_input_embeddings().weight
    assert torch.equal(after[:VOCAB], before) and not torch.equal(after[VOCAB], before.mean(dim=0))


def test_training_that_does_harm_is_undone(texts: list[Dialogue], tmp_path: Path) -> None:
    whole = model()
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    found = run(whole, texts, tmp_path, epochs=1.0, learning_rate=1e-9)
    assert not found.distillation.trained and found.survival == found.survival_before
    for name, tensor in before.items():
        assert torch.equal(whole.state_dict()[name][: len(tensor)], tensor)


def test_a_run_that_was_stopped_gives_the_same_draft(texts: list[Dialogue], tmp_path: Path) -> None:
    whole, gone_on = model(), model()
    first = run(whole, texts, tmp_path / "whole")

    def stop(stage: str, share: float) -> None:
        assert stage.startswith("training parallel drafts (loss ")
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model(), texts, tmp_path / "part", stop)
    shares: list[float] = []
    second = run(gone_on, texts, tmp_path / "part", lambda stage, share: shares.append(share))
    assert min(shares) > 0.4 and second.distillation.losses == first.distillation.losses
    assert (second.survival, second.temperatures) == (first.survival, first.temperatures)
    for a, b in zip(whole.parameters(), gone_on.parameters(), strict=True):
        assert torch.equal(a, b)
    run(model(), texts, tmp_path / "part", lambda stage, share: shares.append(share), parallel=DEPTH - 1)
    assert min(shares) == 0.0  # another depth is another job


@pytest.mark.parametrize("loss", ["kl", "tv", "ce"])
def test_the_gradient_by_blocks_is_that_of_the_whole(
    loss: str, texts: list[Dialogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for rows, columns in ((7, 13), (10_000, 10_000)):
        monkeypatch.setattr(log_probabilities, "_ROWS", rows)
        monkeypatch.setattr(log_probabilities, "_COLUMNS", columns)
        whole = model()
        mask = add_mask(whole, VOCAB, texts)
        head = [t for t in range(VOCAB) if t != FIRST + 3]
        student = ParallelStudent(whole, head, Recipe(parallel=DEPTH, loss=loss), mask)
        value, hits = student(batches.batch(texts[:4], "cpu"), 3)
        value.backward()
        found.append(
            (value.item(), int(hits), student.mask.grad, student.body.layers[0].mlp.up_proj.weight.grad)
        )
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-5)
    for a, b in zip(found[0][2:], found[1][2:], strict=True):
        assert a.abs().max() > 0 and torch.allclose(a, b, atol=1e-5 * float(b.abs().max()))


def test_pairs_are_counted_within_texts_by_hand() -> None:
    top = np.zeros((1, 1), dtype=np.int32), np.ones((1, 1), dtype=np.float32)
    texts = [Dialogue(np.array(ids, dtype=np.int32), len(ids) - 1, *top) for ids in ([3, 4, 3, 4], [3, 5])]
    found = bigrams.count(texts, strength=2.0, weight=0.5)
    chance = {3: 4 / 7, 4: 3 / 7, 5: 2 / 7}  # of six tokens, each id seen once more than it was
    seen = {(3, 4): 2, (3, 5): 1, (4, 3): 1}  # 4, 3 across the texts does not count
    wanted = [(a, b, 0.5 * math.log(1 + n / (2.0 * chance[b]))) for (a, b), n in seen.items()]
    for pair, expected in zip(found.pairs.tolist(), wanted, strict=True):
        assert pair == pytest.approx(expected)


def test_ranked_predictions_by_the_drafter_that_uses_them(texts: list[Dialogue]) -> None:
    """The examination ranks as `ParallelDrafter` does, behind the target's tokens."""
    whole = model()
    mask = add_mask(whole, VOCAB, texts)
    head = [t for t in range(VOCAB) if t != FIRST + 3]  # joins it where a text has it
    student = ParallelStudent(whole, head, Recipe(parallel=DEPTH), mask).eval()
    pairs = bigrams.count(texts, strength=0.5)
    compared = 0
    with torch.no_grad():
        for found in predictions(student, texts[:3], DEPTH, 128, "cpu"):
            before = found.log_q.clone()
            ids = torch.full((before.shape[1],), -1)
            ids[found.column[found.column >= 0]] = torch.nonzero(found.column >= 0)[:, 0]
            drafts = DraftHead(VOCAB, ids.numpy())
            found.rank(pairs)
            for i, (depth, token) in enumerate(zip(found.depths, found.befores, strict=True)):
                row = before[i].numpy()
                wanted = drafts.raised(row, *pairs.behind(int(token))) if depth else row
                assert np.allclose(found.log_q[i].numpy(), wanted)
                compared += int(depth and not np.array_equal(wanted, row))
    assert compared > 50


def test_bigrams_are_kept_where_they_help(texts: list[Dialogue], tmp_path: Path) -> None:
    """In these texts, the token before says which one follows. Too little training leaves room for that."""
    found = run(model(), texts, tmp_path, epochs=4.0)
    assert found.bigrams is not None and sum(found.survival) > sum(found.unranked)
    assert found.distillation.after == found.unranked[0] == found.survival[0]


def test_temperatures_make_the_prefixes_honest() -> None:
    """Confidences come from logits that are 2 times too large at the second depth, and right at the first."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 2, 8)) * 2
    chance = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    drafted = logits.argmax(axis=-1)
    hit = rng.random((4000, 2)) < np.take_along_axis(chance, drafted[..., None], axis=-1)[..., 0]
    seen = logits * np.array([1.0, 2.0])[:, None]
    shifted = seen - seen.max(axis=-1, keepdims=True)
    grid = np.array(temperature.GRID)
    confidence = 1.0 / np.exp(shifted[:, :, None] / grid[:, None]).sum(axis=-1)
    accepted = np.logical_and.accumulate(hit, axis=1)
    first, second = temperature.fit(confidence, accepted)
    assert first == pytest.approx(1.0, rel=0.2) and second == pytest.approx(2.0, rel=0.2)
    confidence[:, 1] = np.nan  # no draft is that deep: as the depth before
    assert temperature.fit(confidence, accepted) == (first, first)


def test_confidences_by_temperature_are_those_of_a_softmax() -> None:
    log_q = torch.log_softmax(5 * torch.randn(9, 4000), dim=-1)
    log_q[:, 7] = -math.inf  # a token that is not in a cut head yet
    wanted = [torch.softmax(log_q / t, dim=-1).amax(dim=-1) for t in temperature.GRID]
    found = temperature.confidences(log_q.clone())
    assert torch.allclose(found, torch.stack(wanted, dim=1), rtol=1e-2)


def test_depths_out_of_range_are_refused() -> None:
    for wrong in (1, 17, -3):
        with pytest.raises(InvalidInput, match="must be from 2 to 16"):
            Recipe(parallel=wrong)
