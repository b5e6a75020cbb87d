"""examples/rl_rollouts.py on a tiny model: its help, its own loop, and TRL's trainer."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from support.processes.own_cache import own_cache  # noqa: F401

import specport
from specport.errors import InvalidInput

pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.quantize.rl import record
from support.tiny import tiny_models

EXAMPLES = Path(__file__).parents[3] / "examples"
SIZES = (
    "--steps", "2", "--prompts", "2", "--samples", "2", "--max-new-tokens", "6", "--precision", "fp32",
    "--learning-rate", "1e-3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tiny")
    tiny_models.save_hf(found, "llama")
    return found


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def example(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["rl_rollouts.py", *arguments])
        import_module("rl_rollouts").main()

    return lambda *arguments: example("--model", str(folder), *SIZES, *arguments)


def test_help(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0 and "--compare N" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        import_module("ending").run(lambda: run("--out", str(tmp_path / "file" / "own"), "--draft", "ngram"))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "file" in said.splitlines()[-1] and "Traceback" not in said


def test_two_updates(run: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own"
    run("--out", str(out), "--draft", "ngram")
    steps = record.read(out)
    assert [s.step for s in steps] == [0, 1] and all(s.tokens and s.plain_s and s.gap < 1e-3 for s in steps)
    assert "| own | 1-1 |" in capsys.readouterr().out
    with specport.load(str(out / "model"), device="torch-cpu", precision="fp32", draft="none") as pipeline:
        assert pipeline.generate("What is 1 + 2?", max_new_tokens=4).token_ids
    with pytest.raises(InvalidInput, match="no tasks 'sing'"):
        run("--out", str(out), "--tasks", "sing")


def test_trl(run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trl")
    example = import_module("rl_rollouts")
    written: list[dict[str, Any]] = []
    updates: list[int] = []

    def watched(pipeline: Any) -> Any:
        inner = example_rollouts(pipeline)
        update = pipeline.update_weights
        pipeline.update_weights = lambda weights: (updates.append(len(weights)), update(weights))

        def write(prompts: list[Any], trainer: Any) -> dict[str, Any]:
            written.append(inner(prompts, trainer))
            assert len(prompts) == len(written[-1]["completion_ids"]) == 4
            return written[-1]

        return write

    example_rollouts = example.rollout_func
    monkeypatch.setattr(example, "rollout_func", watched)
    from accelerate.state import AcceleratorState

    try:
        run("--out", str(tmp_path), "--trl", "--draft", "ngram")
    finally:  # TRL's precision would be that of all later trainings of this process
        AcceleratorState._reset_state(reset_partial_state=True)
    assert len(written) == 2 == len(updates) and all(updates)
    for found in written:
        assert found["prompt_ids"][0] == found["prompt_ids"][1]
        assert all(map(len, found["completion_ids"])) and len({*map(tuple, found["completion_ids"])}) > 1
        for ids, logprobs in zip(found["completion_ids"], found["logprobs"], strict=True):
            assert len(ids) == len(logprobs) and max(logprobs) <= 0
    assert (tmp_path / "model" / "model.safetensors").is_file()
