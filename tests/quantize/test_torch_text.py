"""Text that a target writes many answers at a time: what it writes alone, and how sure it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from specport.errors import InvalidInput
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from specport.quantize.text import teacher, torch_text  # noqa: E402
from specport.quantize.train import heal  # noqa: E402
from support import tiny_models  # noqa: E402

EXAMPLE = Path(__file__).parents[2] / "examples" / "heal_on_gpu.py"
TURNS = ("one", "Write a longer turn, so that there is padding.", "two words", "And one more of them.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("model")
    tiny_models.save_hf(found, "qwen2", 4)
    return found


def test_each_answer_is_what_the_target_writes_alone(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(folder)
    asked = [encode(tokenizer, turn) for turn in TURNS]
    first = torch_text.answers(model, asked, frozenset({2}), 12)
    assert {tuple(text.tokens[: text.start]) for text in first} == {*map(tuple, asked)}
    # A token that comes somewhere ends the answer there.
    ending = int(first[0].tokens[first[0].start + 4])
    for ends, texts in ((2, first), (ending, torch_text.answers(model, asked, frozenset({ending}), 12))):
        for text in texts:
            with torch.no_grad():
                logits = model(torch.from_numpy(text.tokens[None].astype(np.int64))).logits[0]
            wanted = logits[text.start - 1 : -1].float().softmax(dim=-1)
            answer = text.tokens[text.start :]
            assert np.array_equal(wanted.argmax(dim=-1).numpy(), answer)
            assert ends not in answer[:-1] and (len(answer) == 12 or answer[-1] == ends)
            top = wanted.topk(teacher.TOP_K, dim=-1)
            assert np.allclose(top.values.numpy(), text.top_probs, atol=1e-5)
            likely = np.take_along_axis(wanted.numpy(), text.top_ids.astype(np.int64), axis=1)
            assert np.allclose(likely, text.top_probs, atol=1e-5)
    assert min(len(text.tokens) - text.start for text in texts) <= 5


def test_long_prompts_are_answered_fewer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_text, "AT_ONCE", 3)
    monkeypatch.setattr(torch_text, "_CACHED", 3 * (teacher.ANSWER_TOKENS + 30))
    asked = [[1] * n for n in (1, 2, 3, 4, 30, 40, 50, 60, 9000)]
    sizes = [len(group) for group in torch_text._together(asked)]
    assert sizes == [3, 2, 2, 1, 1]
    assert torch_text._together([]) == []


def test_text_from_one_file_is_too_little(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InvalidInput, match="too little text"):
        heal.heal(
            str(folder), str(tmp_path), str(tmp_path / "out"), [1], 1.0, None, [], {}, False, lambda *_: None
        )


def test_the_example_heals_a_draft_that_torch_loads(folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": n, "category": "any", "turns": [turn]} for n, turn in enumerate(TURNS)]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    out = tmp_path / "healed"
    command = [
        sys.executable, str(EXAMPLE), "--target", str(folder), "--without", "1", "--head-tokens", "100",
        "--prompts", str(prompts), "--epochs", "2", "--processes", "1", "--out", str(out),
    ]  # fmt: skip
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "agreement" in run.stdout
    about = json.loads((out / "healed.json").read_text(encoding="utf-8"))
    assert about["precision"] == "int4:asym" and about["tokens_read"] > 0
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"] == 3
    assert (out / "tokenizer.json").is_file()
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 2 and "is there already" in again.stderr and "Traceback" not in again.stderr
