"""Training of a recurrent head: what it learns from, that it learns it, and that it can be resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import InvalidInput, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("openvino")

from specport.backends.torch.hidden_head import RecurrentCell  # noqa: E402
from specport.quantize.evaluate import quick_costs  # noqa: E402
from specport.quantize.heads.recurrent import Request  # noqa: E402
from specport.quantize.text import hidden, passages, prompts, turns, writer  # noqa: E402
from specport.quantize.text.dialogues import Dialogue, read_shard, save_shard  # noqa: E402
from specport.quantize.train import batches, trainer  # noqa: E402
from specport.quantize.train.recurrent.recipe import Recipe  # noqa: E402
from specport.quantize.train.recurrent.start import fit  # noqa: E402
from specport.quantize.train.recurrent.training import RecurrentStudent, stored, train_head  # noqa: E402
from support.tiny import tiny_models  # noqa: E402
from support.toys.toy_model import ToyModel  # noqa: E402

import specport  # noqa: E402
from specport.cli import main  # noqa: E402
from specport.models import bundle  # noqa: E402
from specport.models.kinds.recurrent import Recurrent  # noqa: E402

VOCAB, WIDTH = 24, 16
SHAPE = Recurrent((0, 2), WIDTH, 48, 1, 3)
COLUMNS = [t for t in range(VOCAB) if t % 8]  # 0, 8 and 16 cannot be drafted
RNG = np.random.default_rng(0)
RULE = RNG.permutation(np.arange(VOCAB * VOCAB) % 6).reshape(VOCAB, VOCAB)  # of the last two tokens
TABLE = RNG.normal(size=(VOCAB, WIDTH)).astype(np.float32)
STATES = RNG.normal(size=(VOCAB, 2 * WIDTH)).astype(np.float16)  # hidden states of both layers by token
HEAD = RNG.normal(size=(len(COLUMNS), WIDTH)).astype(np.float32)


def new_cell(
    shape: Recurrent, learnt: list[Dialogue], table: Any, norm: Any | None, seed: int
) -> RecurrentCell:
    """Return a cell that was fitted to texts."""
    cell = RecurrentCell(shape)
    fit(cell, learnt, table, norm, seed)
    return cell


def texts(count: int, seed: int) -> list[Dialogue]:
    """Return texts in which two tokens determine the next; a hidden state knows its own token only."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        tokens = rng.integers(VOCAB, size=2).tolist()
        while len(tokens) < rng.integers(14, 24):
            tokens.append(int(RULE[tokens[-2], tokens[-1]]))
        ids = np.asarray(tokens, dtype=np.int32)
        top = np.stack([ids[2:], (ids[2:] + 1) % VOCAB], axis=1).astype(np.int32)
        probs = np.tile(np.float32([0.9, 0.08]), (len(ids) - 2, 1))
        found.append(Dialogue(ids, 2, top, probs, hidden=STATES[ids[1:-1]]))
    return found


def train(work: Path, progress: Any = lambda *_: None, **changes: Any) -> Any:
    recipe = Recipe(**{"epochs": 30.0, "learning_rate": 5e-3, "batch_tokens": 128, **changes})
    learnt = texts(40, 1)
    cell = RecurrentCell(SHAPE)
    return train_head(
        cell, TABLE, HEAD, COLUMNS, learnt, texts(10, 2), recipe, work, progress,
        lambda: fit(cell, learnt, TABLE, np.ones(WIDTH, np.float32), recipe.seed),
    )  # fmt: skip


@pytest.mark.parametrize("loss", ["kl", "tv"])
def test_survival_rises_at_every_depth(loss: str, tmp_path: Path) -> None:
    found = train(tmp_path, loss=loss)
    # 0 is a sixth of all tokens, and no column.
    assert all(b > a + 0.2 for a, b in zip(found.survival_before, found.survival, strict=True))
    assert found.survival[0] > 0.7
    assert np.mean(found.losses[-10:]) < 0.7 * np.mean(found.losses[:10])


def test_what_is_predicted_is_the_token_behind_the_chain() -> None:
    """Rows of the student against single steps of its cell, told which token stands where."""
    learnt = texts(3, 5)
    cell = new_cell(SHAPE, learnt, TABLE, None, 0)
    student = RecurrentStudent(cell, TABLE, HEAD, COLUMNS, Recipe())
    batch = batches.batch(learnt, "cpu")
    starts = np.cumsum([0, *(len(t.tokens) - t.start for t in learnt)])
    seen = 0
    with torch.no_grad():
        for depth, rows, logits in student._levels(batch, student.head, student.column, None):
            for row, found in zip(rows.tolist(), logits, strict=True):
                text = int(np.searchsorted(starts, row, side="right")) - 1
                place = learnt[text].start + row - starts[text]  # of the token that is predicted
                before = place - depth - 1  # the last token that the target has read
                first = [
                    torch.from_numpy(part.astype(np.float32))
                    for part in np.split(STATES[learnt[text].tokens[before]], 2)
                ]
                states = cell.begin(first)
                for at in range(before + 1, place):
                    states = cell.step(states, torch.from_numpy(TABLE[learnt[text].tokens[at]]))
                wanted = cell.out(states) @ torch.from_numpy(HEAD).T
                assert torch.allclose(found, wanted, atol=1e-4)
                seen += 1
    answers = [len(t.tokens) - t.start for t in learnt]
    assert seen == sum(n - depth for n in answers for depth in (1, 2, 3))


def test_chains_that_were_wrong_are_dropped() -> None:
    learnt = texts(8, 5)
    batch = batches.batch(learnt, "cpu")
    counts = {}
    for wrong in (0.0, 1.0):
        cell = new_cell(SHAPE, learnt, TABLE, None, 0)
        student = RecurrentStudent(cell, TABLE, HEAD, COLUMNS, Recipe(wrong=wrong))
        rng = torch.Generator().manual_seed(0)
        levels = [
            (rows, logits) for _, rows, logits in student._levels(batch, student.head, student.column, rng)
        ]
        counts[wrong] = [len(rows) for rows, _ in levels]
        right = [
            int((logits.argmax(1) == student.column[batch["answer"][rows]]).sum()) for rows, logits in levels
        ]
        if not wrong:
            assert all(b <= a for a, b in zip(right, counts[wrong][1:], strict=False))
    assert counts[0.0][0] == counts[1.0][0] and sum(counts[0.0][1:2]) < counts[1.0][1]


def test_sampled_columns_stand_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of the estimated softmax sum is the sum over all columns, and the batch's tokens are in it."""
    from specport.quantize.train.recurrent import training

    monkeypatch.setattr(training, "_SAMPLED", 3)
    learnt = texts(1, 5)
    batch = batches.batch(learnt, "cpu")
    student = RecurrentStudent(new_cell(SHAPE, learnt, TABLE, None, 0), TABLE, HEAD, COLUMNS, Recipe())
    logits, rng, sums = torch.linspace(-1, 1, len(COLUMNS)), torch.Generator().manual_seed(0), []
    for _ in range(400):
        head, column, offsets = student._sampled(batch, rng)
        places = torch.stack([(student.head == row).all(1).nonzero()[0, 0] for row in head])
        assert len({*places.tolist()}) == len(places) < len(COLUMNS)
        for token in {*batch["answer"].tolist(), *batch["top_ids"].flatten().tolist()}:
            known = int(student.column[token])
            assert int(column[token]) == (-1 if known < 0 else places.tolist().index(known))
        sums.append(float((logits[places] + offsets).exp().sum()))
    assert np.mean(sums) == pytest.approx(float(logits.exp().sum()), rel=0.02)


def test_a_stopped_training_goes_on_with_the_same_result(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", epochs=4.0)

    def stop(stage: str, share: float) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stop, epochs=4.0)
    assert (tmp_path / "parts" / trainer.CHECKPOINT).is_file()
    shares: list[float] = []
    parts = train(tmp_path / "parts", lambda stage, share: shares.append(share), epochs=4.0)
    assert min(shares) > 0.4
    assert whole.losses == parts.losses and whole.survival_before == parts.survival_before
    assert all(np.array_equal(whole.weights[name], parts.weights[name]) for name in whole.weights)


def test_stored_weights_are_what_the_cell_then_has() -> None:
    cell = new_cell(SHAPE, texts(3, 5), TABLE, None, 0)
    found = stored(cell)
    join = found["join"].astype(np.float32) * found["join.scale"].astype(np.float32)
    assert np.array_equal(cell.weight("join").detach().numpy(), join)
    assert {*found} == {*SHAPE.vectors, *SHAPE.matrices, *(f"{n}.scale" for n in SHAPE.matrices)}


def test_recipes_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidInput):
        Recipe(wrong=1.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"distil_tokens": 0}, {"depth": 99}, {"head_tokens": -1}, {"inner": 0}, {"layers": (3, 1)},
        {"loss": "ce"},
    ],
)  # fmt: skip
def test_requests_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Request(**changes)


def test_states_stand_before_the_tokens_that_they_predict(tmp_path: Path) -> None:
    layers, rng = (1, 3), np.random.default_rng(0)
    model = ToyModel(hidden_layers=layers, max_context=1024)
    lengths = ((5, 2), (700, 3), (640, 600), (9, 1))  # of a text, and of its prompt; a step has 512 tokens
    shard = []
    for length, start in lengths:
        ids = rng.integers(11, size=length).astype(np.int32)
        top = np.zeros((length - start, 1), np.int32)
        shard.append(Dialogue(ids, start, top, top.astype(np.float32)))
    save_shard(tmp_path / "a.npz", shard)
    save_shard(tmp_path / "empty.npz", [])
    paths = [tmp_path / "a.npz", tmp_path / "empty.npz"]
    files = hidden.write_hidden(lambda: model, layers, paths, tmp_path / "states", lambda *_: None)
    found = hidden.with_hidden(paths[0], files[0])
    assert model.num_open == 0 and hidden.with_hidden(paths[1], files[1]) == []
    for dialogue, known in zip(found, shard, strict=True):
        assert np.array_equal(dialogue.tokens, known.tokens)
        before = known.tokens[known.start - 1 : -1]
        wanted = np.stack([np.concatenate([model.hidden_row(layer, t) for layer in layers]) for t in before])
        assert np.array_equal(np.asarray(dialogue.hidden), wanted)

    def never() -> ToyModel:
        raise AssertionError("all files exist")

    assert hidden.write_hidden(never, layers, paths, tmp_path / "states", lambda *_: None) == files
    np.save(files[0], np.zeros((3, 3), np.float16))
    with pytest.raises(ModelError, match="does not fit"):
        hidden.with_hidden(paths[0], files[0])
    files[0].write_bytes(b"no array")
    with pytest.raises(ModelError, match="damaged"):
        hidden.with_hidden(paths[0], files[0])


def test_a_head_is_built_inspected_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optimum.intel")
    asked = ("Summarize: a b c", "What is d?") * 2
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(turns, "_openings", lambda rng: [turns.Turn(text) for text in asked])
    monkeypatch.setattr(passages, "turn", lambda rng: asked[0])
    monkeypatch.setattr(turns, "SHARD", 4)
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 16)
    monkeypatch.setattr(quick_costs, "BUDGET_S", 0.5)
    monkeypatch.setattr(prompts, "HELD_OUT", ("What is d?", "When was it?"))
    tiny_models.save_hf(tmp_path / "tiny", "llama", 4)
    target, out = str(tmp_path / "tiny"), tmp_path / "head"
    command = [
        "quantize", "head", "--target", target, "--precision", "int8", "--distil", "120", "--inner", "64",
        "--depth", "3", "--head-tokens", "100", "--epochs", "30", "--learning-rate", "3e-3", "--quiet",
        "--out", str(out),
    ]  # fmt: skip
    assert main(command) == 0
    made = bundle.read(out, thorough=True)
    assert made.recurrent is not None and made.recurrent.layers == (1, 2, 3) and made.recurrent.depth == 3
    assert made.head_tokens is not None and 100 <= len(made.head_tokens) <= 104
    assert sum(made.distilled["survival"]) >= sum(made.distilled["survival_before"]) > 2.0
    assert made.measured["same_text"] == 2 and made.measured["cost"] > 0
    assert not (tmp_path / "head.partial").exists()
    capsys.readouterr()
    assert main(["quantize", "inspect", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "hidden states of layers 1, 2, 3" in shown and "survival  " in shown and "draft step  " in shown
    assert main(["quantize", "inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recurrent"]["width"] == 64
    plain = specport.load(target, draft="none", precision="int8").generate("What is d?", max_new_tokens=24)
    pipeline = specport.load(target, draft=str(out), precision="int8", policy="fixed")
    found = pipeline.generate("What is d?", max_new_tokens=24)
    assert found.token_ids == plain.token_ids and found.metrics.num_accepted_tokens > 0
    assert main(command) == 2 and "is there already" in capsys.readouterr().err


def test_shards_are_read_with_their_own_states(tmp_path: Path) -> None:
    (dialogue,) = texts(1, 0)
    save_shard(tmp_path / "a.npz", [dialogue])
    (read,) = read_shard(tmp_path / "a.npz")
    assert read.hidden is None and "hidden" not in batches.batch([read], "cpu")
    assert batches.batch([dialogue], "cpu")["hidden"].shape == (len(dialogue.tokens) - 2, 2 * WIDTH)


def test_a_new_cell_says_the_next_state_of_a_target_that_is_nearly_linear() -> None:
    rng, width = np.random.default_rng(3), 12
    shape = Recurrent((0, 2), width, 24, 1, 3)
    table = rng.normal(size=(30, width)).astype(np.float32)
    norm = rng.uniform(0.5, 4.0, width).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    found = []
    for _ in range(60):
        ids = rng.integers(30, size=22).astype(np.int32)
        states, told = np.zeros((20, width)), np.zeros((20, width))
        for i in range(20):
            # What a state adds by itself is told by the layer below one token earlier only.
            told[i] = rng.normal(size=width)
            state = turn @ states[i - 1] + table[ids[i + 1]] + (0.5 * told[i - 1] if i else 0.0)
            states[i] = state / np.sqrt(np.square(state).mean())
        hidden_states = np.concatenate([told, 7.0 * states], axis=1).astype(np.float16)
        zeros = np.zeros((20, 1), np.int32)
        found.append(Dialogue(ids, 2, zeros, zeros.astype(np.float32), hidden=hidden_states))
    cell = new_cell(shape, found[:-1], table, norm, 0)
    last = found[-1]
    assert last.hidden is not None
    begun = torch.from_numpy(last.hidden[:-1].astype(np.float32)).split(width, dim=1)
    after = cell.step(cell.begin(begun), torch.from_numpy(table[last.tokens[2:21]]))
    said = (cell.out(after) / torch.from_numpy(norm)).detach().numpy()
    wanted = last.hidden[1:, width:].astype(np.float32) / 7.0
    assert np.square(said - wanted).mean() < 0.05  # of 1; with the last layer's states alone it is 0.13
