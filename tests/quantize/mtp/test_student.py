"""Training of an MTP head: what it computes, what it learns from, that it learns, and that it resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import InvalidInput
from specport.models.kinds import mtp

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("openvino")

from specport.quantize.mtp import acceptance  # noqa: E402
from specport.quantize.mtp.request import LOSSES, Recipe, Request  # noqa: E402
from specport.quantize.mtp.start import fitted  # noqa: E402
from specport.quantize.mtp.student import MtpStudent, states_of  # noqa: E402
from specport.quantize.mtp.train import read_student, survival, write_student  # noqa: E402
from specport.quantize.text.dialogues import Dialogue  # noqa: E402
from specport.quantize.train import batches, trainer  # noqa: E402
from specport.quantize.train.losses import CHAIN_LOSSES  # noqa: E402
from support.tiny import tiny_mtp  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other take ten times as long where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the folder of a tiny target's module, the module, and the target's embeddings and head."""
    from safetensors.torch import load_file

    root = tmp_path_factory.mktemp("mtp")
    module = tiny_mtp.save(root / "target", "qwen")
    found = mtp.find(root / "target")
    assert found is not None
    (root / "module").mkdir()
    mtp.write(found, root / "module")
    table = load_file(root / "target" / "model.safetensors")["model.embed_tokens.weight"].numpy()
    config = json.loads((root / "target" / "config.json").read_text())
    return root / "module", module, table, config


def texts(table: Any, count: int, seed: int, vocab: int = 24) -> list[Dialogue]:
    """Return texts of a fixed rule, whose states tell the next token as a target's do."""
    rule, rng = np.random.default_rng(9).permutation(vocab), np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = [int(rng.integers(vocab))]
        while len(tokens) < rng.integers(12, 20):
            tokens.append(int(rule[tokens[-1]]) if rng.random() < 0.8 else int(rng.integers(vocab)))
        ids = np.asarray(tokens, dtype=np.int32)
        p = np.full((len(ids) - 1, vocab), 0.2 / vocab)
        p[np.arange(len(p)), rule[ids[:-1]]] += 0.8
        # States whose logits with the target's head are log p, up to a constant.
        states = np.linalg.lstsq(table[:vocab].astype(np.float64), np.log(p).T, rcond=None)[0].T
        order = np.argsort(-p, axis=1)[:, :4].astype(np.int32)
        top = np.take_along_axis(p, order, axis=1).astype(np.float32)
        found.append(Dialogue(ids, 3, order[2:], top[2:], hidden=states.astype(np.float16)))
    return found


def student_of(tiny: Any, columns: Any = None, **recipe: Any) -> MtpStudent:
    folder, _, table, _ = tiny
    columns = range(len(table)) if columns is None else columns
    return read_student(folder, table, table[[*columns]], columns, Recipe(**recipe))


def test_it_computes_what_the_module_computes_at_run_time(tiny: Any) -> None:
    """Each depth against the formulas in float64, read afresh with its own states behind the text's."""
    _, module, table, config = tiny
    expected = tiny_mtp.Reference(module, table, table, config)
    student = student_of(tiny, depth=3)
    some = [replace(text, hidden=RNG.normal(size=(len(text.tokens) - 1, 64)).astype(np.float16))
            for text in texts(table, 3, 1)]  # fmt: skip
    batch = batches.batch(some, "cpu")
    with torch.no_grad():
        levels = [*student.levels(batch)]
    assert [level.depth for level in levels] == [1, 2, 3]
    starts = np.cumsum([0, *(len(t.tokens) - t.start for t in some)])
    seen = 0
    for level in levels:
        for row, logits in zip(level.rows.tolist(), level.logits.numpy(), strict=True):
            number = int(np.searchsorted(starts, row, side="right")) - 1
            text = some[number]
            predicted = text.start + row - starts[number]  # place of the token
            known = predicted - level.depth  # tokens of which the target has read all, less the first unknown
            tokens = text.tokens.tolist()
            wanted = expected.chain(
                np.asarray(text.hidden)[:known], tokens[1 : known + 1], tokens[known + 1 : predicted]
            )[-1]
            assert np.allclose(logits, wanted, rtol=1e-3, atol=2e-3), (level.depth, row)
            seen += 1
    assert seen == sum(sum(max(0, len(t.tokens) - t.start - d) for d in (1, 2, 3)) for t in some)


def test_chains_that_are_whole_lie_inside_the_answer(tiny: Any) -> None:
    student = student_of(tiny, depth=4)
    some = texts(tiny[2], 4, 2)
    batch = batches.batch(some, "cpu")
    levels = [*student.levels(batch, whole=True)]
    assert len({len(level.rows) for level in levels}) == 1
    assert len(levels[0].rows) == sum(max(0, len(t.tokens) - t.start - 4) for t in some)
    # All rows of a chain belong to one text.
    owner = batch["rows"]
    for first, last in zip(levels[0].rows, levels[-1].rows, strict=True):
        assert owner[first - 1] == owner[last] and last == first + 3


def test_the_teacher_is_the_targets_distribution_on_the_columns(tiny: Any) -> None:
    table = tiny[2]
    columns = [i for i in range(len(table)) if i % 5]
    some = texts(table, 2, 3)
    batch = batches.batch(some, "cpu")
    logits = states_of(batch)[batch["rows"], batch["columns"]] @ torch.from_numpy(table).T
    wanted = torch.softmax(logits, dim=1)
    # The stored probabilities are those of the target over all ids.
    batch["top_ids"], batch["top_probs"] = wanted.topk(4).indices, wanted.topk(4).values
    student = student_of(tiny, columns)
    assert torch.allclose(student.teacher(batch), wanted[:, columns], atol=1e-4)
    top = student_of(tiny, columns, top=2).teacher(batch)
    assert ((top > 0).sum(dim=1) <= 2).all() and torch.allclose(
        top.max(dim=1).values, wanted[:, columns].max(dim=1).values, atol=1e-4
    )


def train(tiny: Any, work: Path, progress: Any = lambda *_: None, **changes: Any) -> tuple[Any, MtpStudent]:
    table = tiny[2]
    recipe = Recipe(**{"depth": 3, "epochs": 6.0, "learning_rate": 6e-3, "batch_tokens": 128, **changes})
    student = read_student(tiny[0], table, table[:24], range(24), recipe)
    learnt, held_out = texts(table, 40, 4), texts(table, 10, 5)
    run, _ = trainer.train(
        student, learnt, recipe, trainer.identity(learnt, student, repr(recipe).encode()),
        work / trainer.CHECKPOINT, lambda s, _: survival(s, held_out, recipe), "", progress,
    )  # fmt: skip
    return run, student


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_raises_what_is_accepted_at_every_depth(loss: str, tiny: Any, tmp_path: Path) -> None:
    run, _ = train(tiny, tmp_path, loss=loss)
    assert len(run.after) == 3
    assert all(after > before + 0.1 for before, after in zip(run.before, run.after, strict=True))
    assert run.after[0] > 0.6


def test_a_resumed_training_gives_the_same_head(tiny: Any, tmp_path: Path) -> None:
    whole, first = train(tiny, tmp_path / "whole", epochs=3.0, loss="e2e-tv")

    def stop(stage: str, share: float) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tiny, tmp_path / "parts", stop, epochs=3.0, loss="e2e-tv")
    shares: list[float] = []
    parts, second = train(
        tiny, tmp_path / "parts", lambda _, share: shares.append(share), epochs=3.0, loss="e2e-tv"
    )
    assert min(shares) > 0.4 and whole.losses == parts.losses
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_written_head_is_read_again(tiny: Any, tmp_path: Path) -> None:
    student = student_of(tiny, depth=2)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    write_student(tmp_path, student, tiny[3])
    table = tiny[2]
    again = read_student(tmp_path, table, table, range(len(table)), Recipe(depth=2))
    batch = batches.batch(texts(table, 2, 7), "cpu")
    with torch.no_grad():
        for one, other in zip(student.levels(batch), again.levels(batch), strict=True):
            assert torch.allclose(one.logits, other.logits, rtol=1e-2, atol=2e-2)


def test_the_command_knows_the_losses_that_there_are() -> None:
    assert {*LOSSES} == {*CHAIN_LOSSES}


@pytest.mark.parametrize(
    "changes",
    [{"loss": "mse"}, {"epochs": 0.0}, {"learning_rate": 0.0}, {"depth": 0}, {"depth": 99},
     {"teacher_top": -1}, {"distil_tokens": 0}, {"head_tokens": -1}],
)  # fmt: skip
def test_requests_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Request(**changes)


def test_acceptance_by_depth_and_entropy_is_counted_from_both_distributions(tiny: Any) -> None:
    table = tiny[2]
    columns = [i for i in range(len(table)) if i % 7]
    student, some = student_of(tiny, columns, depth=3), texts(table, 4, 8)
    found = acceptance.measure(student, some, table, columns)
    assert found.alpha.shape == found.likeliest.shape == found.entropy.shape == (len(found.text), 3)
    batch = batches.batch(some[1:2], "cpu")
    with torch.no_grad():
        second = [*student.levels(batch, whole=True)][1]
        p = torch.softmax(
            states_of(batch)[batch["rows"], batch["columns"]] @ torch.from_numpy(table).T, dim=1
        )[second.rows]
        q = torch.zeros_like(p)
        q[:, columns] = torch.softmax(second.logits, dim=1)
    own = found.text == 1
    assert np.allclose(found.alpha[own, 1], torch.minimum(p, q).sum(dim=1), atol=1e-5)
    assert np.allclose(found.likeliest[own, 1], p.gather(1, q.argmax(dim=1, keepdim=True))[:, 0], atol=1e-5)
    assert np.allclose(found.entropy[own, 1], -(p * p.log()).sum(dim=1), atol=1e-4)
    lengths = found.alpha[:, 0] + found.alpha[:, 0] * found.alpha[:, 1]
    assert np.allclose(found.lengths("rejection", 2), lengths)
    assert acceptance.gain(found, found, "rejection", 2) == (0.0, 0.0, 0.0)
    better = replace(found, alpha=found.alpha + 0.1)
    mean, low, high = acceptance.gain(better, found, "rejection", 1)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
    counted = acceptance.bins(found, "rejection", 3, (0.0, 1.0, 9.0))
    assert sum(each["chains"] for each in counted) == len(found.text)
    with pytest.raises(ValueError, match="no answer is longer"):
        acceptance.measure(student_of(tiny, columns, depth=16), some, table, columns)
    x = np.arange(5.0)
    assert acceptance.slope(x, 3.0 - 0.5 * x) == pytest.approx(-0.5) and acceptance.slope(0 * x, x) == 0.0


def test_a_new_head_starts_from_the_map_to_the_next_state() -> None:
    rng, width, vocab = np.random.default_rng(4), 12, 30
    table = rng.normal(size=(vocab, width)).astype(np.float16)
    norm = rng.uniform(0.5, 4.0, width).astype(np.float16)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]

    def some(noise: float) -> list[Dialogue]:
        found = []
        for _ in range(40):
            tokens, states = rng.integers(vocab, size=20).astype(np.int32), np.zeros((19, width))
            for i in range(19):
                state = turn @ (states[i - 1] / norm) + table[tokens[i]] + noise * rng.normal(size=width)
                states[i] = norm * state / np.sqrt(np.square(state).mean())
            found.append(Dialogue(tokens, 3, None, None, hidden=states.astype(np.float16)))  # type: ignore[arg-type]
        return found

    def said(text: Dialogue, join: mtp.Join, gains: Any) -> Any:
        parts = [table[text.tokens[1:19]].astype(np.float32), text.hidden[:-1].astype(np.float32)]  # type: ignore[index]
        normed = [p / np.sqrt(np.square(p).mean(axis=1, keepdims=True)) for p in parts]
        out = (
            np.concatenate([normed[0] * join.token_gain, normed[1] * join.state_gain], axis=1) @ join.weight.T
        )
        return out / np.sqrt(np.square(out).mean(axis=1, keepdims=True)) * gains

    texts = some(0.0)
    gains, join = fitted(texts[:-1], table, norm)
    wanted = texts[-1].hidden[1:].astype(np.float32)  # type: ignore[index]
    off = said(texts[-1], join, gains) / norm - wanted / norm
    assert np.square(off).mean() < 0.05  # of 1; what is left is that states are normed
    unsure, _ = fitted(some(4.0), table, norm)
    assert (unsure < 0.8 * gains).all()
