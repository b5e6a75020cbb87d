"""The agent of examples/: its tools, and a run of the tiny model through them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("smolagents")
pytest.importorskip("llguidance")
pytest.importorskip("pptx")
import pptx
from support.processes.own_cache import own_cache  # noqa: F401
from support.tiny import tiny_agents

from specport.agents import SpecportModel
from specport.agents.code_steps import code_step
from specport.errors import InvalidInput

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import agent_core_ultra

        yield agent_core_ultra


def test_search_finds_the_paragraph(example: Any) -> None:
    search = example.SearchDocuments(sorted(example.DOCUMENTS.glob("*.txt")))
    assert "11870" in search(query="wind farm electricity produced")
    assert "3850" in search(query="building the solar park cost")
    assert search(query="zebra") and search.num_calls == 3


def test_slides_are_written(example: Any, tmp_path: Path) -> None:
    deck = tmp_path / "new" / "deck.pptx"
    slides = example.AddSlide(deck)
    slides(title="One", bullets=["a", "b"])
    assert slides(title="Two", bullets=["c"]) == "The deck has 2 slides."
    read = pptx.Presentation(str(deck))
    assert [[shape.text for shape in slide.placeholders] for slide in read.slides] == [
        ["One", "a\nb"], ["Two", "c"]
    ]  # fmt: skip


def test_a_run(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "code_step", partial(code_step, longest=8))
    folder = tiny_agents.write(tmp_path)
    files = sorted(example.DOCUMENTS.glob("*.txt"))
    with SpecportModel(
        str(folder), device="torch-cpu", draft="suffix", policy="fixed", num_draft_tokens=4, temperature=1.0,
        max_tokens=600,
    ) as model:  # fmt: skip
        done = example.run(model, files, tmp_path / "deck.pptx", example.TASKS[0], steps=2, quiet=True)
    assert done["num_lines"] <= 2 and done["num_output_tokens"] > 0 and done["num_accepted_tokens"] > 0
    called = [line for line in done["lines"] if "search_documents(" in line or "add_slide(" in line]
    assert len(called) == done["num_searches"] + done["num_slides"]


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "agent_core_ultra.py"), "--device", "abacus"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "abacus" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_document_that_is_missing(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["agent_core_ultra.py", "abacus.txt"])
    with pytest.raises(InvalidInput, match="no file abacus"):
        example.main()
