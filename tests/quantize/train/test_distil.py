"""Distillation: a pruned model learns the target's distribution, and resumes where it was stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import InvalidInput, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from specport.quantize.prune.prune import drop_layers  # noqa: E402
from specport.quantize.text.dialogues import Dialogue  # noqa: E402
from specport.quantize.train import batches, distil, trainer  # noqa: E402
from specport.quantize.train.distil import Student  # noqa: E402
from specport.quantize.train.recipe import LOSSES, Recipe  # noqa: E402
from support.tiny import tiny_models  # noqa: E402
from support.tiny.tiny_dialogues import VOCAB, dialogues  # noqa: E402

pytestmark = pytest.mark.stack
HEAD = range(VOCAB)


@pytest.fixture(scope="module")
def texts() -> list[Dialogue]:
    return dialogues(tiny_models.hf_model("llama", 4), 24, 0)


def student() -> Any:
    model = tiny_models.hf_model("llama", 4)
    drop_layers(model, (1, 2))
    return model


def run(
    model: Any, texts: list[Dialogue], work: Path, progress: Any = lambda *_: None, **changes: Any
) -> Any:
    recipe = Recipe(**{"epochs": 4.0, "learning_rate": 3e-3, "batch_tokens": 64, **changes})
    return distil.distil(model, HEAD, texts[4:], texts[:4], recipe, work, progress)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_falls_and_embeddings_stay(loss: str, texts: list[Dialogue], tmp_path: Path) -> None:
    model = student()
    embedding = model.get_input_embeddings().weight.detach().clone()
    result = run(model, texts, tmp_path, loss=loss, epochs=10.0)
    steps = len(result.losses) // 5
    assert np.mean(result.losses[-steps:]) < 0.9 * np.mean(result.losses[:steps])
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert result.trained == (result.after > result.before)
    assert result.num_tokens == 10 * sum(len(text.tokens) for text in texts[4:])


def test_no_passes_train_nothing(texts: list[Dialogue], tmp_path: Path) -> None:
    model, before = student(), student().state_dict()
    result = run(model, texts, tmp_path, epochs=0.0)
    assert result.writes and result.losses == () and result.before == result.after and result.num_tokens == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_training_that_does_harm_is_undone(texts: list[Dialogue], tmp_path: Path) -> None:
    model, before = student(), student().state_dict()
    result = run(model, texts, tmp_path, learning_rate=5.0)
    assert not result.trained and result.after == result.before and result.num_tokens > 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_run_that_was_stopped_gives_the_same_draft(texts: list[Dialogue], tmp_path: Path) -> None:
    whole = student()
    first = run(whole, texts, tmp_path / "whole")

    class Stop(KeyboardInterrupt):
        pass

    def stop(stage: str, share: float) -> None:
        if share > 0.5:
            raise Stop

    with pytest.raises(Stop):
        run(student(), texts, tmp_path / "part", stop)
    gone_on, seen = student(), []
    second = run(gone_on, texts, tmp_path / "part", lambda stage, share: seen.append(share))
    assert min(seen) > 0.4
    assert second.losses == first.losses and (second.before, second.after) == (first.before, first.after)
    for a, b in zip(whole.parameters(), gone_on.parameters(), strict=True):
        assert torch.equal(a, b)
    # Another recipe does not go on from there.
    run(student(), texts, tmp_path / "part", lambda stage, share: seen.append(share), seed=1)
    assert min(seen) == 0.0


def test_a_damaged_checkpoint_is_named(texts: list[Dialogue], tmp_path: Path) -> None:
    (tmp_path / trainer.CHECKPOINT).write_bytes(b"not tensors")
    with pytest.raises(ModelError, match="is damaged"):
        run(student(), texts, tmp_path)
    with pytest.raises(InvalidInput, match="too little text"):
        distil.distil(student(), HEAD, [], texts, Recipe(), tmp_path, lambda *_: None)
    for wrong in ({"loss": "mse"}, {"epochs": -1.0}, {"learning_rate": -1.0}):
        with pytest.raises(InvalidInput):
            Recipe(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_by_hand(loss: str) -> None:
    """A head of four ids gets 4 and 7 from the text; 6 occurs too late to be proposed."""
    model = tiny_models.hf_model("llama")
    ids = [3, 5, 8, 9, 4, 7]
    top = np.array([[5, 7], [6, 4]], dtype=np.int32)
    p = np.array([[0.5, 0.3], [0.6, 0.2]], dtype=np.float32)
    text = Dialogue(np.array([4, 7, 5, 6], dtype=np.int32), 2, top, p)
    other = Dialogue(
        np.array([6, 9], dtype=np.int32), 2, top[:0], p[:0]
    )  # another text's tokens do not count
    loss_, hits = Student(model, ids[:4], loss)(batches.batch([text, other], "cpu"))
    with torch.no_grad():
        logits = model(torch.tensor([[4, 7, 5]])).logits[0, 1:].numpy().astype(np.float64)[:, ids]
    q = np.exp(logits - logits.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True)
    listed = [[(0.5, q[0, 1]), (0.3, q[0, 5])], [(0.2, q[1, 4])]]
    pairs = [[*row, (1 - sum(a for a, _ in row), 1 - sum(b for _, b in row))] for row in listed]
    wanted = {
        "ce": -math.log(q[0, 1]),
        "kl": sum(a * math.log(a / b) for row in pairs for a, b in row) / 2,
        "tv": sum(0.5 * abs(a - b) for row in pairs for a, b in row) / 2,
    }
    assert loss_.item() == pytest.approx(wanted[loss], abs=1e-4)
    assert int(hits) == int(q[0].argmax() == 1)
