"""Training of block-diffusion models: which masks there are, what the copies see, and what is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.errors import InvalidInput, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from specport.quantize.convert import diffusion  # noqa: E402
from specport.quantize.text import passages, turns, writer  # noqa: E402
from specport.quantize.text.dialogues import Dialogue, save_shard  # noqa: E402
from specport.quantize.train import batches  # noqa: E402
from specport.quantize.train.diffusion import about, training  # noqa: E402
from specport.quantize.train.diffusion.build import check_decoder, name_of, with_block  # noqa: E402
from specport.quantize.train.diffusion.recipe import Recipe  # noqa: E402
from specport.quantize.train.diffusion.rows import noise, pack  # noqa: E402
from specport.quantize.train.diffusion.student import DiffusionStudent, examine  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

from specport.cli import main  # noqa: E402
from specport.models.kinds.diffusion import DiffusionFacts, find_facts  # noqa: E402

VOCAB = len(tiny_models.vocabulary())
BLOCK, MASK, END = 4, VOCAB, 2


def dialogues(count: int, seed: int) -> list[Dialogue]:
    """Texts that count up or down from a random letter, and end: what a mask hides is known from the rest."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        length, way = int(rng.integers(14, 20)), int(rng.choice([1, 2]))
        text = 20 + (int(rng.integers(40)) + way * np.arange(length)) % 60
        tokens = np.append(text, END).astype(np.int32)
        top = tokens[5:, None]
        found.append(Dialogue(tokens, 5, top, np.full(top.shape, 0.9, dtype=np.float32)))
    return found


def test_every_token_of_the_answer_is_masked_once_in_blocks_that_are_whole() -> None:
    rng, shares = np.random.default_rng(0), np.zeros(BLOCK + 1)
    starts = set()
    for length in range(12, 20):
        for ended in (True, False):
            tokens = np.arange(100, 100 + length)
            text = noise(tokens, 6, BLOCK, [int(tokens[-1])] if ended else [], rng)
            size = len(text.tokens) - text.noised
            assert size % BLOCK == 0 and 6 - BLOCK < text.noised <= 6
            starts.add(text.noised)
            assert (len(text.tokens) >= length) == ended or len(text.tokens) == length
            assert (text.tokens[length:] == tokens[-1]).all() and (
                text.real == (np.arange(text.noised, text.noised + size) < length)
            ).all()
            assert (text.masked.sum(axis=0) == (np.arange(text.noised, len(text.tokens)) >= 6)).all()
            assert np.array_equal(text.blocks, (np.arange(len(text.tokens)) - text.noised) // BLOCK)
    assert starts == {3, 4, 5, 6}  # a block begins anywhere
    for _ in range(400):
        text = noise(np.arange(60), 8, BLOCK, (), rng)
        own = text.blocks[text.noised :]
        np.add.at(shares, np.bincount(own, weights=text.masked[0]).astype(int)[1:], 1)
    assert np.abs(shares / shares.sum() - 0.2).max() < 0.02  # no mask to four masks, all alike


def test_a_noised_copy_sees_what_a_model_sees_that_denoises_the_block() -> None:
    model = tiny_models.hf_model("llama", 2, vocab_size=VOCAB + 1)
    student = DiffusionStudent(model, MASK, [END], Recipe(block=BLOCK)).eval()
    texts = dialogues(3, 1)
    with torch.no_grad():
        packed = student.packed(batches.batch(texts, "cpu"), np.random.default_rng(5))
        found = student.outputs(packed)
    assert len(packed.answers) == int((packed.weights > 0).sum()) > 20
    checked = 0
    for row in range(len(texts)):
        for copy in (1, 2):
            own = (packed.copies[row] == copy).numpy()
            clean = (packed.copies[row] == 0).numpy()
            for block in range(int(packed.blocks[row][own].max()) + 1):
                before = clean & (packed.blocks[row].numpy() < block)
                now = own & (packed.blocks[row].numpy() == block)
                which = np.flatnonzero(before | now)
                order = which[np.argsort(packed.positions[row].numpy()[which], kind="stable")]
                blocks = packed.blocks[row][order]
                assert np.array_equal(packed.positions[row][order], np.arange(len(order)))
                seen = (blocks[None, :] <= blocks[:, None])[None, None]
                with torch.no_grad():
                    native = model.model(
                        input_ids=packed.ids[row][order][None], use_cache=False,
                        attention_mask=torch.where(seen, 0.0, -torch.inf),
                        position_ids=torch.arange(len(order))[None],
                    ).last_hidden_state[0]  # fmt: skip
                for place in np.flatnonzero(now & (packed.ids[row] == MASK).numpy()):
                    (at,) = np.flatnonzero((packed.texts == row).numpy() & (packed.places == place).numpy())
                    mine = native[int(np.flatnonzero(order == place)[0])]
                    torch.testing.assert_close(found[at], mine, atol=2e-4, rtol=2e-4)
                    checked += 1
    assert checked == len(packed.answers)


def test_weights_are_one_over_the_share_of_masks() -> None:
    text = noise(np.arange(40), 8, BLOCK, (), np.random.default_rng(3))
    packed = pack([text], 99, "cpu")
    total = np.bincount(packed.blocks[0][packed.places])  # predictions of each block, of both copies
    wanted = {
        (int(n), float(total[b] / n))
        for n, b in zip(packed.counts, packed.blocks[0][packed.places], strict=True)
    }
    assert {(int(n), float(w)) for n, w in zip(packed.counts, packed.weights, strict=True)} == wanted
    assert packed.weights.max() > 1.0


def test_what_was_added_behind_the_end_is_no_answer() -> None:
    """A model that knows only that: nothing is right, and the bound of the perplexity is no lower for it."""

    class KnowsTheEnd(DiffusionStudent):
        def scores(self, packed: Any) -> Any:
            right = packed.answers
            chosen = torch.where(packed.real, 3 + (right == 3), right)  # any other token
            log_q = torch.log_softmax(20.0 * torch.nn.functional.one_hot(chosen, VOCAB + 1).float(), dim=1)
            return log_q.gather(1, right[:, None])[:, 0], log_q.amax(dim=1)

    recipe = Recipe(block=8)
    model = tiny_models.hf_model("llama", 1, vocab_size=VOCAB + 1)
    found = examine(KnowsTheEnd(model, MASK, [END], recipe), dialogues(8, 0), recipe, torch.device("cpu"))
    assert found["accuracy"] == [0.0] * 8
    assert found["perplexity"] >= np.exp(19.9)


def test_a_model_that_goes_on_keeps_its_block(tmp_path: Path) -> None:
    for block, given, wanted in ((6, 0, 6), (6, 3, 3), (None, 0, 4), (None, 8, 8)):
        config = {"model_type": "sdar", "vocab_size": 200_000}
        folder = tmp_path / f"{block}-{given}"
        folder.mkdir()
        if block is None:
            config = {"model_type": "llama"}
        else:
            config["block_size"] = block
        (folder / "config.json").write_text(json.dumps(config))
        assert with_block(Recipe(block=given), folder).block == wanted
    assert with_block(Recipe(), tmp_path / "tiny.gguf").block == 4


def test_the_name_of_a_model_that_is_trained_further(tmp_path: Path) -> None:
    folder = tmp_path / "SmolLM2-1.7B"
    folder.mkdir()
    (tmp_path / "tiny.gguf").touch()
    assert name_of(str(folder), folder) == "SmolLM2-1.7B"
    assert name_of("org/SmolLM2-1.7B@main", tmp_path / "0123abcd") == "SmolLM2-1.7B"
    assert name_of(str(tmp_path / "tiny.gguf"), tmp_path / "tiny.gguf") == "tiny"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a decoder of three layers, and text to train it on."""
    folder = tmp_path_factory.mktemp("training")
    for i, count in enumerate((8, 40)):
        save_shard(folder / f"{i}.npz", dialogues(count, i))
    tiny_models.save_hf(folder / "source", "llama", 3)
    return folder


def make(
    room: Path, source: str, out: str, layers: int | None = None, progress: Any = lambda what, share: None,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    recipe = {"block": BLOCK, "epochs": 3.0, "learning_rate": 2e-3, "batch_tokens": 100, **changes}
    (room / f"{out}-work").mkdir(exist_ok=True)
    return training.make(
        str(room / source), str(room / f"{out}-work"), str(room / out),
        [str(room / f"{i}.npz") for i in range(2)], recipe, layers, VOCAB, [END], False, progress,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(room: Path) -> dict[str, Any]:
    return make(room, "source", "made")


def test_a_decoder_learns_to_fill_in_masks(room: Path, made: dict[str, Any]) -> None:
    assert made["mask"] == VOCAB and made["layers"] == 3 and made["steps"] > 20
    assert made["after"]["perplexity"] < 0.5 * made["before"]["perplexity"]
    # So few steps teach more of how texts end than of what stands in them.
    assert np.mean(made["after"]["loss"]) < np.mean(made["before"]["loss"])
    model = diffusion.read(room / "made", torch.float32)
    assert model.get_input_embeddings().weight.shape[0] == VOCAB + 1
    # What is written is what was trained, and can be trained further.
    again = make(room, "made", "again", epochs=0.1)
    assert again["before"] == made["after"] and again["mask"] == VOCAB


def test_a_stopped_training_resumes_to_the_same_model(room: Path, made: dict[str, Any]) -> None:
    def stop(what: str, share: float) -> None:
        if "masks" in what and share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(room, "source", "stopped", progress=stop)
    resumed = make(room, "source", "stopped")
    assert (resumed["before"], resumed["after"]) == (made["before"], made["after"])
    whole, parts = (diffusion.read(room / name, torch.float32).state_dict() for name in ("made", "stopped"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_layers_that_change_least_are_dropped() -> None:
    model = tiny_models.hf_model("llama", 4)
    with torch.no_grad():
        for part in (model.model.layers[2].self_attn.o_proj, model.model.layers[2].mlp.down_proj):
            part.weight.mul_(1e-3)
    assert training.dropped_layers(model, 3, dialogues(3, 0)) == (2,)
    assert training.dropped_layers(model, 4, dialogues(3, 0)) == ()
    assert 0 not in training.dropped_layers(model, 1, dialogues(3, 0))


def test_what_cannot_be_trained_is_said(room: Path) -> None:
    with pytest.raises(InvalidInput, match="3 layers, not 5"):
        make(room, "source", "wrong", layers=5)
    with pytest.raises(InvalidInput, match="block of 1"):
        Recipe(block=1)
    (room / "sdar").mkdir()
    (room / "sdar" / "config.json").write_text('{"model_type": "sdar", "vocab_size": 200000}')
    with pytest.raises(ModelError, match="diffusion model already"):
        make(room, "sdar", "wrong")


@pytest.mark.parametrize(
    "config",
    [{"model_type": "sdar"}, {"model_type": "gpt2"}, {"model_type": "qwen2", "use_sliding_window": True},
     {"model_type": "block_diffusion", "base_model_type": "gpt2"}],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused_before_any_text(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        check_decoder(config)
    check_decoder({"model_type": "block_diffusion", "base_model_type": "llama"})


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(turns, "OPENINGS", {5: ("Why", "How")})
    monkeypatch.setattr(passages, "turn", lambda rng: "What is d?")
    monkeypatch.setattr(turns, "SHARD", 4)
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 12)
    tiny_models.save_hf(tmp_path / "tiny", "llama", 3)
    return str(tmp_path / "tiny")


def test_the_command_from_end_to_end(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    command = ["quantize", "diffusion", "--target", target, "--tokens", "40", "--device", "torch-cpu"]
    command += ["--epochs", "0.5", "--layers", "2", "--quiet"]
    assert main([*command, "--out", str(out)]) == 0
    table = capsys.readouterr().out
    assert "2 layers of tiny fill in masks" in table and table.count("%") == 2 * BLOCK
    found = about.read(out)
    assert found.layers == 2 and found.steps > 0 and found.versions["torch"]
    assert main(["quantize", "inspect", str(out)]) == 0
    assert capsys.readouterr().out == table
    assert find_facts(out) == DiffusionFacts(VOCAB, BLOCK)
    assert main([*command, "--out", str(out)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["quantize", "diffusion", "--out", str(tmp_path / "x"), "--block", "1"]) == 2
    assert "block of 1" in capsys.readouterr().err
    assert main(["quantize", "diffusion"]) == 2
