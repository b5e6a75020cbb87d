"""Histories and datastores from the user's side: `specport.load` and `specport bench` on a toy model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.toys import toy_backend as toys
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)

import specport
from specport.cli import main
from specport.drafters.retrieval.datastore import build
from specport.errors import InvalidInput

PROMPT = "abcdefg"


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch: pytest.MonkeyPatch, toy_backend: ToyBackend) -> None:  # noqa: F811
    monkeypatch.setattr(toys.Tokenizer, "fingerprint", "f" * 64, raising=False)
    monkeypatch.setattr(toys.Tokenizer, "vocab_size", 11, raising=False)


def steps(history: Path | None, **options: str | Path) -> int:
    """Verify steps that one answer takes in a new pipeline."""
    with specport.load(draft="suffix", device="xeon", history=history, **options) as pipeline:  # type: ignore[arg-type]
        return pipeline.generate(PROMPT, max_new_tokens=40).metrics.num_steps


def test_a_history_outlasts_the_pipeline(tmp_path: Path) -> None:
    folder = tmp_path / "history"
    first = steps(folder)
    assert steps(folder) < first / 2
    assert steps(None) == first  # without the folder nothing was kept
    (path,) = folder.iterdir()
    path.write_bytes(b"rubbish" * 1000)
    with specport.load(draft="suffix", device="xeon", history=folder) as pipeline:
        assert any("damaged" in note for note in pipeline.notes)


def test_without_a_folder_texts_are_remembered_until_the_end() -> None:
    with specport.load(draft="suffix", device="xeon") as pipeline:
        first, second = (pipeline.generate(PROMPT, max_new_tokens=40) for _ in range(2))
    assert second.metrics.num_steps < first.metrics.num_steps / 2
    assert first.text == second.text


def test_a_datastore_helps_the_first_answer(tmp_path: Path) -> None:
    with specport.load(draft="none", device="xeon") as pipeline:
        answer = pipeline.generate(PROMPT, max_new_tokens=40).text
    (tmp_path / "known.txt").write_text(PROMPT + answer)

    class Plain(toys.Tokenizer):
        def encode(self, text: str, parse_special: bool = True) -> list[int]:
            return super().encode(text)

    build([tmp_path / "known.txt"], tmp_path / "store", Plain())  # type: ignore[arg-type]
    assert steps(None, datastore=tmp_path / "store") < steps(None) / 2


@pytest.mark.parametrize("option", ["history", "datastore"])
def test_a_folder_that_no_drafter_reads_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(InvalidInput, match="suffix only"):
        specport.load(draft="ngram", device="xeon", **{option: tmp_path})  # type: ignore[arg-type]


METHOD = "suffix@fixed=20"  # the planner would learn how much it may trust the drafter


def test_a_benchmark_reads_a_history_and_learns_nothing(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"id": 1, "category": "a", "turns": [PROMPT]}) + "\n", encoding="utf-8")
    folder = tmp_path / "history"
    found = {}
    for name in ("before", "after"):
        command = ["bench", "--quiet", "--device", "xeon", "--prompts", str(prompts), "--runs", "2"]
        command += ["--method", METHOD, "--history", str(folder), "--max-new-tokens", "40"]
        assert main([*command, "--out", str(tmp_path / name)]) == 0
        rows = [json.loads(row) for row in (tmp_path / name / "rows.jsonl").read_text().splitlines()]
        found[name] = [row["metrics"]["num_steps"] for row in rows if row["method"] == METHOD]
        if name == "before":
            steps(folder)
    assert len(set(found["before"])) == 1  # the second run is as long as the first
    assert found["after"][0] < found["before"][0] / 2
    size = json.loads((tmp_path / "after" / "report.json").read_text())["about"]["history"]
    assert int(size.split()[0]) > 40
