"""The benchmark: prompt files, order of work, resumption, arithmetic of the figures, and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)

from specport.bench.prompts import Prompt, read_prompts
from specport.bench.record import Job, Record, decode_all, plan
from specport.bench.report import markdown, page
from specport.bench.summary import first_difference, summarise, tpot
from specport.calibration.methods import Run, Spec, parse
from specport.cli import main
from specport.core.policies.drafting import Drafting
from specport.errors import InvalidInput
from specport.runtime.stored import tuned

LINES = [
    {"id": i, "category": category, "turns": [f"abcab {category}", "later"]}
    for i, category in enumerate(["qa", "qa", "rag", "qa", "rag"])
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, LINES)) + "\n\n", encoding="utf-8")
    return path


def test_prompts_are_cut_by_category(prompts: Path) -> None:
    assert [p.id for p in read_prompts(prompts)] == ["0", "1", "3", "2", "4"]
    assert [p.id for p in read_prompts(prompts, 1)] == ["0", "2"]
    assert [p.id for p in read_prompts(prompts, 2, ["rag"])] == ["2", "4"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no prompts"),
        ("{", "line 1 is not a prompt"),
        ('{"id": 1, "category": "qa"}', "line 1 is not a prompt"),
        ('{"id": 1, "category": "qa", "turns": [""]}', "line 1 is not a prompt"),
        ('{"id": 1, "category": "qa", "turns": ["a"]}\n' * 2, "same id twice"),
        ('{"id": 1, "category": "all", "turns": ["a"]}', "no category can be named all"),
    ],
)
def test_prompt_files_that_cannot_be_used(prompts: Path, text: str, words: str) -> None:
    prompts.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=words):
        read_prompts(prompts)
    with pytest.raises(InvalidInput, match="cannot read"):
        read_prompts(prompts.with_name("missing"))


def test_a_prompt_may_hold_what_python_splits_lines_at(prompts: Path) -> None:
    prompts.write_text(json.dumps({**LINES[0], "turns": ["a\u2028b\x85c"]}, ensure_ascii=False), "utf-8-sig")
    assert read_prompts(prompts)[0].text == "a\u2028b\x85c"


def test_a_category_that_is_not_there(prompts: Path) -> None:
    with pytest.raises(InvalidInput, match="no category 'math'"):
        read_prompts(prompts, categories=["math"])


def test_method_names() -> None:
    assert parse("plain") == Spec("plain", "none", Drafting("fixed", 0))
    assert parse("ngram") == Spec("ngram", "ngram", Drafting("planned", None))
    assert parse("ngram|draft@fixed=4") == Spec("ngram|draft@fixed=4", "ngram|draft", Drafting("fixed", 4))
    assert parse("draft@fixed=3:2,1").drafting == Drafting("fixed", 3, (2, 1))
    for wrong in ("ngram@fixed=x", "ngram@nonsense", "ngram@planned=0", "a@fixed=3:x", "a@planned=3:2"):
        with pytest.raises(InvalidInput):
            parse(wrong)


def test_plain_decoding_stands_around_the_others_which_take_turns() -> None:
    two = [Prompt("1", "qa", "x"), Prompt("2", "qa", "y")]
    order = [(job.prompt.id, job.method, job.n) for job in plan(two, ["plain", "a", "b"], 1)]
    assert order == [
        ("1", "plain", 0), ("1", "a", 0), ("1", "b", 0), ("1", "plain", 1),
        ("2", "plain", 0), ("2", "b", 0), ("2", "a", 0), ("2", "plain", 1),
    ]  # fmt: skip
    assert len(plan(two, ["plain"], 3)) == 12


class Counting:
    """A method that notes what it decodes, and may be stopped."""

    name = "counting"
    settings: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, stop_at: int = 10**6) -> None:
        self.calls, self.stop_at = 0, stop_at

    def run(self, prompt: list[int], max_new_tokens: int) -> Run:
        self.calls += 1
        if self.calls > self.stop_at:
            raise KeyboardInterrupt
        return Run([1, 2, 3][:max_new_tokens], 0.1, 0.3)


def test_a_stopped_benchmark_goes_on_where_it_was(tmp_path: Path) -> None:
    jobs = [Job(Prompt(str(i), "qa", "x"), "counting", 0) for i in range(6)]
    encoded = {str(i): [1] for i in range(6)}
    with pytest.raises(KeyboardInterrupt):
        decode_all(Record(tmp_path, {"a": 1}), jobs, {"counting": Counting(4)}, encoded, 8)
    with open(tmp_path / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write('{"id": "3", "met')  # killed while it wrote
    again, rest = Record(tmp_path, {"a": 1}), Counting()
    assert len(again.rows) == 3
    decode_all(again, jobs, {"counting": rest}, encoded, 8)
    assert rest.calls == 1 + 3 and [row["id"] for row in again.rows] == [str(i) for i in range(6)]
    assert [row["id"] for row in Record(tmp_path, {"a": 1}).rows] == [str(i) for i in range(6)]
    with pytest.raises(InvalidInput, match="different a"):
        Record(tmp_path, {"a": 2})
    (tmp_path / "about.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"about\.json.*choose another --out"):
        Record(tmp_path, {"a": 1})
    (tmp_path / "about.json").unlink()
    whole = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    for damaged in ("{\n" + whole, whole.replace('"qa"', '"all"', 1), whole.replace("0.3", "-1", 1)):
        (tmp_path / "rows.jsonl").write_text(damaged, encoding="utf-8")
        with pytest.raises(InvalidInput, match=r"rows\.jsonl, line 1 is"):
            Record(tmp_path, {"a": 1})
        assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == damaged  # nothing is lost


def row(key: str, method: str, n: int, tokens: list[int], ttft: float, total: float, **metrics: Any) -> dict:
    category = "qa" if key < "2" else "rag"
    return {
        "id": key, "category": category, "method": method, "n": n, "tokens": tokens, "ttft_s": ttft,
        "total_s": total, "metrics": metrics,
    }  # fmt: skip


def counters(steps: int, accepted: int, drafted: list[int], hits: list[int]) -> dict[str, Any]:
    return {
        "num_steps": steps, "num_accepted_tokens": accepted, "drafted_per_depth": drafted,
        "accepted_per_depth": hits, "decode_s": 1.0, "draft_s": 0.25, "verify_s": 0.5,
    }  # fmt: skip


ROWS = [
    row("1", "plain", 0, [1] * 11, 1.0, 2.0),
    row("1", "m", 0, [1] * 11, 1.0, 1.5, **counters(5, 5, [5, 2], [4, 1])),
    row("1", "plain", 1, [1] * 11, 1.0, 4.0),
    row("2", "plain", 0, [1] * 5, 2.0, 2.4),
    row("2", "m", 0, [1, 1, 7, 1, 1], 2.0, 2.8, **counters(4, 0, [4], [0])),
    row("2", "plain", 1, [1] * 5, 2.0, 2.4),
]


def test_figures() -> None:
    table = summarise(ROWS)
    assert [*table] == ["plain", "m"] and [*table["m"]] == ["all", "qa", "rag"]
    qa, rag, both = table["m"]["qa"], table["m"]["rag"], table["m"]["all"]
    assert qa.decode == pytest.approx(4.0)  # plain: mean of 0.1 and 0.3 s; m: 0.05 s
    assert rag.decode == pytest.approx(0.5)
    assert both.decode == pytest.approx((4.0 * 0.5) ** 0.5)
    assert both.total == pytest.approx((0.2 * 10 + 0.1 * 4) / (0.05 * 10 + 0.2 * 4))
    assert qa.end_to_end == pytest.approx(3.0 / 1.5)
    assert (qa.same, rag.same, both.same, both.prompts) == (1, 0, 1, 2)
    assert rag.first_difference == 2 and qa.first_difference is None
    assert both.mean_acceptance_length == pytest.approx(1 + 5 / 9)
    assert both.acceptance_per_position == pytest.approx((4 / 9, 1 / 2))
    assert (both.draft_share, both.verify_share) == pytest.approx((0.25, 0.5))
    assert table["plain"]["qa"].decode == pytest.approx(1 / 3)  # the later over the earlier: drift


def test_an_answer_of_one_token_has_no_decode_figure() -> None:
    rows = [row("1", "plain", n, [4], 1.0, 1.0) for n in (0, 1)] + [row("1", "m", 0, [4], 1.0, 1.0)]
    figures = summarise(rows)["m"]["all"]
    assert figures.decode is None and figures.end_to_end == 1.0


def test_first_difference() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 3], [1, 2]) == 1
    assert first_difference([1, 2, 3], [1, 2]) == first_difference([1, 2], [1, 2, 3]) == 2


def test_reports_cannot_be_broken_by_names() -> None:

    rows = [{**r, "category": "<b>x|y$\\frac$[a](http://b)\x1b[2J"} for r in ROWS]
    about = {"model": "<script>\nx", "methods": {"m": {"threads": 2, "x": "</pre><script>"}}}
    text = markdown(summarise(rows), about)
    assert "&lt;b&gt;x&#124;y" in text and "<script>\nx" not in text and '"threads": 2' in text
    assert "](http" not in text and "\x1b" not in text
    whole = page(summarise(rows), about)
    assert whole.count("<table>") == 4 and "<svg" in whole and "<script" not in whole
    assert "<a " not in whole and "\x1b" not in whole and "&lt;b&gt;x|y" in whole and "&amp;lt;" not in whole
    assert not any(word in whole for word in ("src=", "<link", "@import"))


def test_the_command_end_to_end(
    toy_backend: ToyBackend,  # noqa: F811
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:

    out = tmp_path / "results"
    command = ["bench", "--prompts", str(prompts), "--out", str(out), "--max-new-tokens", "24", "--quiet"]
    command += [
        "--draft",
        "small",
        "--method",
        "ngram|draft",
        "--method",
        "ngram@fixed=3",
        "--per-category",
        "2",
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "ngram|draft" in printed and "4/4" in printed
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [*report["table"]] == ["plain", "ngram|draft", "ngram@fixed=3"]
    assert all(groups["all"]["same"] == 4 for groups in report["table"].values())
    assert report["about"]["methods"]["ngram@fixed=3"]["num_draft_tokens"] == 3
    assert toy_backend.loaded == ["toy", "small"]
    rows = (out / "rows.jsonl").read_text(encoding="utf-8")
    assert main(command) == 0 and (out / "rows.jsonl").read_text(encoding="utf-8") == rows
    assert main([*command, "--max-new-tokens", "25"]) == 2
    assert "different max_new_tokens" in capsys.readouterr().err


@pytest.mark.parametrize("choice", [None, "ngram|organisation/small"])
def test_auto_is_what_a_run_without_options_uses(
    toy_backend: ToyBackend,  # noqa: F811
    prompts: Path,
    tmp_path: Path,
    choice: str | None,
) -> None:
    if choice is not None:
        tuned.keep(None, "xeon", "int8", tuned.Choice(choice, "0", 1.4))
    command = ["bench", "--prompts", str(prompts), "--out", str(tmp_path / "o"), "--max-new-tokens", "24"]
    assert main([*command, "--quiet", "--precision", "int8", "--device", "xeon", "--method", "auto"]) == 0
    report = json.loads((tmp_path / "o" / "report.json").read_text(encoding="utf-8"))
    assert report["about"]["methods"]["auto"]["draft"] == (choice or "suffix")
    assert toy_backend.loaded == ["toy", *(["organisation/small"] if choice else [])]
    assert report["table"]["auto"]["all"]["same"] == 5


@pytest.mark.usefixtures("toy_backend")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "draft"], "no draft model is given"),
        (["--method", "other", "--draft", "x"], "unknown drafter"),
        (["--method", "genai:nonsense"], "unknown method"),
        (["--method", "transformers:nonsense"], "unknown method"),
        (["--method", "transformers:draft"], "needs a draft"),
        (["--method", "llama.cpp:nonsense"], "unknown method"),
        (["--method", "llama.cpp:draft"], "needs a draft"),
        (["--max-new-tokens", "1"], "max_new_tokens"),
        (["--category", "none"], "no category"),
        (["--max-new-tokens", "5000"], "no prompt fits"),
    ],
)
def test_bad_input(
    arguments: list[str], words: str, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--quiet", "--prompts", str(prompts), "--out", str(tmp_path / "o"), *arguments]
    assert main(command) == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


def test_tokens_that_come_with_the_first_are_no_output_time() -> None:
    row = {"tokens": [1] * 9, "ttft_s": 1.0, "total_s": 3.0}
    assert tpot(row) == 0.25
    assert tpot({**row, "num_first": 5}) == 0.5
    assert tpot({**row, "num_first": 9}) == 0.0


@pytest.mark.usefixtures("toy_backend")
def test_a_peer_that_is_not_installed_names_the_command(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    command = ["bench", "--quiet", "--prompts", str(prompts), "--out", str(tmp_path / "o")]
    assert main([*command, "--method", "llama.cpp:plain"]) == 2
    assert "pip install 'specport[llama]'" in capsys.readouterr().err
