"""LayerSkip's training: its formulas, what it does to the exits of a tiny model, and the command itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specport.errors import InvalidInput, ModelError

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from specport.quantize.text import passages, turns, writer  # noqa: E402
from specport.quantize.train.layerskip import about as record  # noqa: E402
from specport.quantize.train.layerskip import training as layerskip  # noqa: E402
from specport.quantize.train.layerskip.build import build  # noqa: E402
from specport.quantize.train.layerskip.recipe import (  # noqa: E402
    Recipe,
    Sweep,
    dropout_rates,
    enabled_layers,
    exit_weights,
)
from specport.quantize.train.layerskip.training import ExitStudent  # noqa: E402
from support.tiny import tiny_models  # noqa: E402
from support.tiny.tiny_dialogues import dialogues  # noqa: E402

import specport  # noqa: E402
from specport.cli import main  # noqa: E402

LAYERS = 4
pytestmark = pytest.mark.filterwarnings("ignore")


def test_dropout_rises_with_depth() -> None:
    rates = dropout_rates(5, 0.2)
    assert rates[0] == 0.0 and rates[-1] == pytest.approx(0.2)
    assert rates[2] == pytest.approx(0.2 * (math.sqrt(2) - 1))  # half way: 2^(1/2) - 1
    assert dropout_rates(1, 0.2) == [0.0]


def test_weights_of_exits_by_hand() -> None:
    # L = 4, scale 0.5: e = 0, 0.5, 1.5 and for the last 3 + 0.5 (0 + 1 + 2) = 4.5.
    weights = exit_weights(4, 0.5, [0, 1, 2, 3])
    assert weights == pytest.approx({1: 0.5 / 6.5, 2: 1.5 / 6.5, 3: 4.5 / 6.5})
    assert exit_weights(4, 0.5, [3]) == {3: 1.0}
    assert exit_weights(4, 0.0, [0, 1, 2, 3]) == {3: 1.0}


def test_curricula() -> None:
    rotational = Recipe(every=3)
    assert [enabled_layers(rotational, 7, step, 100) for step in range(4)] == [
        [0, 3, 6], [1, 4, 6], [2, 5, 6], [0, 3, 6],
    ]  # fmt: skip
    gradual = Recipe(curriculum="gradual")
    assert enabled_layers(gradual, 4, 0, 80) == [3]
    assert enabled_layers(gradual, 4, 10, 80) == [2, 3]  # one more every T / (2 L) steps
    assert enabled_layers(gradual, 4, 40, 80) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "wrong",
    [{"dropout": 1.0}, {"dropout": -0.1}, {"exit_scale": -1.0}, {"every": 0}, {"curriculum": "x"},
     {"epochs": 0.0}, {"learning_rate": 0.0}, {"batch_tokens": 0}],
    ids=str,
)  # fmt: skip
def test_recipes_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        Recipe(**wrong)


@pytest.fixture(scope="module")
def texts() -> list[Any]:
    return dialogues(tiny_models.hf_model("llama", LAYERS), 24, 0)


def run(texts: list[Any], work: Path, progress: Any = lambda *_: None, **changes: Any) -> tuple[Any, Any]:
    model = tiny_models.hf_model("llama", LAYERS)
    given = {"epochs": 6.0, "learning_rate": 3e-3, "batch_tokens": 64, "every": 2, "exit_scale": 1.0}
    return model, layerskip.train(model, texts[4:], texts[:4], Recipe(**{**given, **changes}), work, progress)


def test_exits_learn_what_the_whole_model_says(texts: list[Any], tmp_path: Path) -> None:
    embedding = tiny_models.hf_model("llama", LAYERS).get_input_embeddings().weight
    # Random text teaches nothing about other random text: the exits are looked at on what they learnt.
    model = tiny_models.hf_model("llama", LAYERS)
    recipe = Recipe(epochs=20.0, learning_rate=3e-3, batch_tokens=64, every=2, exit_scale=1.0)
    found = layerskip.train(model, texts, texts[:8], recipe, tmp_path, lambda *_: None)
    steps = len(found.losses) // 5
    assert sum(found.losses[-steps:]) < 0.8 * sum(found.losses[:steps])
    assert len(found.before.agreement) == LAYERS == len(found.after.agreement)
    assert sum(found.after.agreement[:-1]) > sum(found.before.agreement[:-1]) + 0.1
    assert torch.equal(model.get_input_embeddings().weight, embedding)


def test_the_sweep_reads_each_exit_as_inference_does(texts: list[Any]) -> None:
    model = tiny_models.hf_model("llama", LAYERS)
    student = ExitStudent(model, Recipe())
    found = layerskip.sweep(student, texts[:6], 64, "cpu")
    for exit_layer in range(1, LAYERS + 1):
        short = tiny_models.hf_model("llama", LAYERS)
        short.model.layers = short.model.layers[:exit_layer]
        short.config.num_hidden_layers = exit_layer
        hits = count = 0
        for text in texts[:6]:
            ids = torch.tensor(text.tokens[None].astype("int64"))
            with torch.no_grad():
                said = short(ids, use_cache=False).logits[0].argmax(dim=-1)
            hits += int((said[text.start - 1 : -1] == ids[0, text.start :]).sum())
            count += len(text.tokens) - text.start
        assert found.agreement[exit_layer - 1] == pytest.approx(hits / count, abs=1e-4)
    assert found.perplexity > 1.0


def test_layers_are_left_out_for_some_texts_and_alike_each_time(texts: list[Any]) -> None:
    from specport.quantize.train import batches

    batch = batches.batch(texts[:8], "cpu")
    model = tiny_models.hf_model("llama", LAYERS)
    student = ExitStudent(model, Recipe(dropout=0.9))
    with torch.no_grad():
        first, again, other = student(batch, 3, 10)[0], student(batch, 3, 10)[0], student(batch, 4, 10)[0]
        still = ExitStudent(tiny_models.hf_model("llama", LAYERS), Recipe(dropout=0.0))(batch, 3, 10)[0]
    assert first == again and first not in (other, still)


def test_a_training_that_was_stopped_gives_the_same_model(texts: list[Any], tmp_path: Path) -> None:
    whole, first = run(texts, tmp_path / "whole")

    def stop(stage: str, share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(texts, tmp_path / "part", stop)
    seen: list[float] = []
    gone_on, second = run(texts, tmp_path / "part", lambda stage, share: seen.append(share))
    assert min(seen) > 0.4 and second.losses == first.losses
    assert (second.before, second.after) == (first.before, first.after)
    for a, b in zip(whole.parameters(), gone_on.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("openvino")
    pytest.importorskip("optimum.intel")
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(turns, "OPENINGS", {5: ("Why", "How")})
    monkeypatch.setattr(passages, "turn", lambda rng: "What is d?")
    monkeypatch.setattr(turns, "SHARD", 4)
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 12)
    tiny_models.save_hf(tmp_path / "tiny", "llama", LAYERS)
    return str(tmp_path / "tiny")


def test_the_command_from_end_to_end(target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trained"
    command = ["quantize", "layerskip", "--target", target, "--tokens", "40", "--out", str(out)]
    assert main([*command, "--epochs", "2", "--every", "2", "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "perplexity" in table and "whole" in table and table.count("%") == 2 * LAYERS
    assert not out.with_name("trained.partial").exists()
    about = record.read(out)
    assert about.recipe["every"] == 2 and about.tokens_read > 0 and about.versions["torch"]
    assert main(["quantize", "inspect", str(out)]) == 0
    assert capsys.readouterr().out == table
    assert main(["quantize", "inspect", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "tiny"

    plain = specport.load(str(out), draft="none").generate("What is it?", max_new_tokens=24)
    early = specport.load(str(out), draft="early-exit:2", policy="fixed")
    drafted = early.generate("What is it?", max_new_tokens=24)
    assert drafted.token_ids == plain.token_ids and drafted.metrics.num_draft_tokens > 0
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_is_half_done_is_kept_and_gone_on_with(target: str, tmp_path: Path) -> None:
    out, recipe = tmp_path / "trained", Recipe(epochs=3.0)

    def until(word: str) -> Callable[[str, float], None]:
        def progress(stage: str, share: float) -> None:
            if stage.startswith(word):
                raise KeyboardInterrupt

        return progress

    for word in ("the target writes", "training"):
        with pytest.raises(KeyboardInterrupt):
            build(target, out, recipe, tokens=40, progress=until(word))
        assert not out.exists() and out.with_name("trained.partial").is_dir()
    assert build(target, out, recipe, tokens=40).tokens_read > 0
    assert out.is_dir() and not out.with_name("trained.partial").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "source": "x"}'], ids=range(5)
)
def test_a_damaged_record_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / record.NAME).write_text(content)
    with pytest.raises(ModelError, match=r"layerskip\.json"):
        record.read(tmp_path)


def test_wrong_wishes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, words in (
        (["--tokens", "0"], "1 or more"),
        (["--curriculum", "x"], "curriculum"),
        (["--epochs", "0"], "greater than 0"),
        (["--target", "nothing"], "no file or folder"),
    ):
        assert main(["quantize", "layerskip", "--out", str(tmp_path / "x"), *extra]) == 2
        assert words in capsys.readouterr().err
    assert main(["quantize", "layerskip"]) == 2
    assert Sweep((0.5,), 2.0).agreement == (0.5,)
