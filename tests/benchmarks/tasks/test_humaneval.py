"""The HumanEval benchmark: code in answers, the table, and the whole of it on a toy model."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support.toys.toy_backend import Tokenizer, ToyBackend, toy_backend  # noqa: F401  (a fixture)

import specport.runtime.loading

sys.path.insert(0, str(Path(__file__).parent))
isolated: Any = importlib.import_module("isolated")
answers: Any = importlib.import_module("humaneval_answers")
results: Any = importlib.import_module("humaneval_results")
humaneval: Any = importlib.import_module("humaneval")
sys.path.pop(0)


PROBLEM = {
    "task_id": "Test/0",
    "prompt": 'import math\n\n\ndef half(x):\n    return x / 2\n\n\ndef root(x):\n    """The root."""\n',
    "entry_point": "root",
    "test": "def check(candidate):\n    assert candidate(16) == 4\n    assert candidate(9) == 3\n",
}
RIGHT = "```python\ndef root(x):\n    return math.sqrt(half(2 * x))\n```"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure:\n```python\ndef f():\n    return 1\n```\nIt works.", "def f():\n    return 1\n"),
        ("```\ndef f(): pass\n```", "def f(): pass\n"),
        ("```py\ndef f(): pass", "def f(): pass"),  # cut off
        ("```bash\npip install x\n```\n```Python\ndef f(): pass\n```", "def f(): pass\n"),
        ("```python\nf(1)\n```\n```python\ndef f(): pass\n```", "def f(): pass\n"),
        ("```python\ndef f(): 1\n```\n```python\ndef f(): 2\n```", "def f(): 1\n"),
        ("```python\ndef fg(): pass\n```\n```python\nx = 1\n```", "def fg(): pass\n"),
        ("```bash\nls\n```\n```python\nx = 1\n```", "x = 1\n"),
        ("    return 1\n", "    return 1\n"),
        ('```python\ndef f():\n    return "```"\n```', 'def f():\n    return "```"\n'),
    ],
)
def test_code_is_found_in_an_answer(answer: str, code: str) -> None:
    assert answers.extract(answer, "f") == code


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (RIGHT, True),  # with the prompt's imports and helpers
        (f"1. Like this:\n\n   {RIGHT.replace(chr(10), chr(10) + '   ')}", True),  # indented in a list
        ("    return x ** 0.5\n", True),  # continues the prompt
        ("```python\n    return x ** 0.5\n```", True),
        ("```python\ndef root(x):\n    return 4\n```", False),
        ("```python\ndef other(x):\n    return x ** 0.5\n```", False),
        ("I cannot do that.", False),
        ("", False),
    ],
)
def test_an_answer_is_right_or_wrong(answer: str, right: bool) -> None:
    verdict = isolated.run(answers.program(PROBLEM, answer))
    assert verdict.passed is right, verdict.reason


def line(tokens: list[int], ttft: float, total: float, drafts: int = 0, accepted: int = 0) -> dict[str, Any]:
    metrics = {"num_drafts": drafts, "num_accepted_tokens": accepted}
    return {"tokens": tokens, "ttft_s": ttft, "total_s": total, "num_first": 1, "metrics": metrics}


@pytest.fixture
def table(tmp_path: Path) -> Callable[[], dict[str, list[str]]]:
    """Two problems, three rows; gives the cells of each row behind its name."""
    kept = results.Results(tmp_path)
    rows = [results.parse_row(name) for name in ("fp16", "int4", "int4+draft@fixed=3")]
    kept.settle({"numerics fp16": "exact", "numerics int4": "exact", "draft": "small int8"})
    for precision, passed in (("fp16", (True, True)), ("int4", (True, False))):
        for i, ok in enumerate(passed):
            kept.answers.add((precision, str(i)), tokens=[i] * 11, finish_reason="stop")
            kept.verdicts.add((precision, str(i)), passed=ok)
    for i in range(2):
        kept.times.add(("fp16", str(i)), **line([i] * 11, 1.0, 5.0))  # TPOT 400 ms
        kept.times.add(("int4", str(i)), **line([i] * 11, 2.0, 3.0 + i))  # 100, 200
        kept.times.add((rows[2].name, str(i)), **line([i] * 11, 2.5, 3.0, 4, 6))  # 50

    def cells() -> dict[str, list[str]]:
        text = results.markdown(rows, results.Results(tmp_path), ["0", "1"], ["0", "1"], {"a": 1})
        lines = [[c.strip() for c in x.split("|")[1:-1]] for x in text.splitlines() if x.startswith("|")]
        return {cells[0]: cells[1:] for cells in lines[2:]}

    return cells


def test_the_table(table: Callable[[], dict[str, list[str]]]) -> None:
    cells = table()
    assert cells["fp16"][2:] == [
        "100.0% (2/2)", "1000", "400.0", "400.0 to 400.0", "1.00", "", "", "2/2",
    ]  # fmt: skip
    assert cells["int4"][2:] == ["50.0% (1/2)", "2000", "150.0", "75.0 to 225.0", "2.83", "", "", "2/2"]
    assert cells["int4+draft@fixed=3"] == [
        "int4", "small int8, fixed=3", "50.0% (1/2)", "2500", "50.0", "50.0 to 50.0", "8.00", "2.83", "2.50",
        "2/2",
    ]  # fmt: skip


def test_a_drafted_text_that_differs_has_no_pass_rate(
    table: Callable[[], dict[str, list[str]]], tmp_path: Path
) -> None:
    kept = results.Results(tmp_path)
    kept.times.add(("int4+draft@fixed=3", "1"), **line([1] * 10 + [7], 2.5, 3.0, 4, 6))
    cells = table()["int4+draft@fixed=3"]
    assert (cells[2], cells[-1]) == ("", "1/2")


def test_a_timed_text_may_differ_from_the_batch(
    table: Callable[[], dict[str, list[str]]], tmp_path: Path
) -> None:
    kept = results.Results(tmp_path)
    kept.answers.add(("int4", "1"), tokens=[7] * 11, finish_reason="stop")
    cells = table()
    assert (cells["int4"][-1], cells["int4+draft@fixed=3"][-1]) == ("1/2", "2/2")


def test_torn_lines_and_other_settings(tmp_path: Path) -> None:
    kept = results.Results(tmp_path)
    kept.answers.add(("int4", "0"), text="a")
    kept.settle({"target": "one"})
    with open(tmp_path / "answers.jsonl", "a", encoding="utf-8") as file:
        file.write('{"row": "int4", "id": "1", "te')
    again = results.Results(tmp_path)
    again.answers.add(("int4", "1"), text="b")
    assert [row["text"] for row in results.Results(tmp_path).answers.values()] == ["a", "b"]
    again.settle({"target": "one", "draft": "small"})
    with pytest.raises(results.InvalidInput, match="another draft: small, now large"):
        again.settle({"draft": "large"})


@pytest.fixture
def command(
    toy_backend: ToyBackend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> list[str]:
    """The benchmark on the toy model: of four answers, the first and the third of a precision are right."""

    class Canned(Tokenizer):
        decoded = 0

        def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
            Canned.decoded += 1
            return RIGHT if Canned.decoded % 2 else "no"

    problems = [{**PROBLEM, "task_id": f"Test/{i}"} for i in range(5)]
    monkeypatch.setattr(humaneval, "load_tokenizer", lambda folder: Canned())
    monkeypatch.setattr(humaneval, "resolve", specport.runtime.loading.resolve)
    monkeypatch.setattr(humaneval, "problems_of", lambda count: problems[:count])
    arguments = ["--target", "big", "--draft", "small", "--problems", "4", "--timed", "2"]
    return [*arguments, "--max-new-tokens", "24", "--out", str(tmp_path / "out")]


def test_the_benchmark_end_to_end(
    command: list[str],
    toy_backend: ToyBackend,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = ["--row", "int8+draft", "--row", "fp16", "--row", "int8+ngram|draft@fixed=2"]
    assert humaneval.main([*command, *rows]) == 0
    report = capsys.readouterr().out
    assert report == (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    names = [text.split(" | ")[0] for text in report.splitlines() if text.startswith("| ")]
    assert names[2:] == ["| int8", "| fp16", "| int8+draft", "| int8+ngram&#124;draft@fixed=2"]
    assert report.count("50.0% (2/4)") == 4 and report.count("2/2 |") == 4
    assert "answers cut off: int8 4, fp16 4" in report
    assert sorted(toy_backend.loaded) == ["big", "big", "small"]
    kept = (tmp_path / "out" / "times.jsonl").read_text(encoding="utf-8")
    order = [json.loads(text)["row"] for text in kept.splitlines()]
    assert order[:4] == ["int8", "fp16", "int8+draft", "int8+ngram|draft@fixed=2"]
    assert order[4:] == [*order[1:4], order[0]]  # all rows take a problem, in turns
    # Nothing is done twice, not even loading.
    assert humaneval.main([*command, *rows]) == 0
    assert (tmp_path / "out" / "times.jsonl").read_text(encoding="utf-8") == kept
    assert len(toy_backend.loaded) == 3
    assert humaneval.main([*command, *rows, "--max-new-tokens", "25"]) == 2
    assert "another max new tokens" in capsys.readouterr().err


def test_a_stopped_benchmark_goes_on(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    run = isolated.run

    def stop(program: str) -> Any:
        ran.append(program)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run(program)

    monkeypatch.setattr(isolated, "run", stop)
    assert humaneval.main([*command, "--row", "int8"]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    written = (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8")
    assert humaneval.main([*command, "--row", "int8"]) == 0
    assert len(ran) == 3 + 2 and len(written.splitlines()) == 4
    assert (tmp_path / "out" / "answers.jsonl").read_text(encoding="utf-8") == written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--row", "int5"], "unknown precision"),
        (["--row", "int4+"], "cannot read the row"),
        (["--row", "int4+small"], "names a model"),
        (["--row", "int4+draft@classifier"], "no row can have this policy"),
        (["--timed", "0"], "1 or more"),
        (["--max-new-tokens", "2200"], "too many for the model's context"),
    ],
)
def test_bad_input(
    command: list[str], arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert humaneval.main([*command, *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


def test_a_row_that_drafts_needs_a_draft(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert humaneval.main(["--target", "x", "--row", "int4+draft", "--out", str(tmp_path)]) == 2
    assert "needs a draft" in capsys.readouterr().err
