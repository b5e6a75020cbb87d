"""The survey of architectures: a few of each kind, its table, and that the one in docs is whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from specport.quantize import random_model
from support.processes.own_cache import own_cache  # noqa: F401

from specport.cli import main
from specport.conformance.models import tiny
from specport.conformance.models.architectures import ARCHITECTURES, configuration
from specport.conformance.tables import survey, survey_table
from specport.conformance.tables.survey import Cell
from specport.errors import ModelError

DOCS = Path(__file__).parents[2] / "docs"
BOTH = ("xeon", "torch-cpu")
MACHINE = {"processor": "a | b", "date": "today"}

# A pattern of the reason on each of BOTH; "" = exact. All others are in docs/architectures.md.
KINDS = {
    "gemma3_text": ("", ""),  # windows in some layers
    "gpt_oss": ("", ""),  # sinks, windows, experts
    "qwen3_moe": ("", ""),
    "bloom": ("", ""),  # ALiBi
    "gemma2": ("differs: .*soft caps", ""),
    "gpt2": ("", ""),  # learned positions
    "apertus": ("refused: optimum-intel .* does not convert apertus models", ""),
    "deepseek_v3": ("refused: optimum-intel .* converts deepseek_v3 models with transformers <=", ""),
    "lfm2_moe": ("", ""),  # short convolutions, experts
    "mamba": ("refused: this architecture has no paged form", "refused: .*takes no past_key_values"),
    "mpt": ("refused: .*ALiBi", ""),
    "gpt_neo": ("refused: .*windows of its local layers", "refused: .*a mask of their own"),
}
# Those that depend on the version of transformers most. Not bloom: with optimum-intel 1.27, conversions of
# other models in the same process change its logits. Outside of tests each has a process of its own.
STACK = ("gpt_oss", "qwen3_moe")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.stack) if name in STACK else name for name in KINDS]
)
@pytest.mark.filterwarnings("ignore")  # the tracer's
def test_it_runs_or_is_refused(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("optimum.intel")
    found = survey.architecture(name, BOTH, tmp_path)
    for device, pattern in zip(BOTH, KINDS[name], strict=True):
        cell = found[device]
        if cell.state == "absent":
            pytest.skip(cell.reason)
        told = f"{cell.state}: {cell.reason}" if cell.reason else ""
        assert re.search(pattern or "^$", told), told
        assert cell.state in ("exact", "refused", "differs") and "\n" not in cell.reason


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "qwen3_moe", "bloom", "deepseek_v3", "lfm2"])
def test_graphs_hold_it_or_it_is_refused(name: str, tmp_path: Path) -> None:
    """What waits for the device cannot be an HPU graph: transformers 4 counts the tokens of each expert."""
    transformers = pytest.importorskip("transformers")
    random_model.save(tmp_path, configuration(name))
    tiny.save_tokenizer(tmp_path)
    if transformers.__version__ < "5" and name in ("gpt_oss", "qwen3_moe", "deepseek_v3"):
        with pytest.raises(ModelError, match="waits for the device"):
            survey.load(tmp_path, "gaudi-emulated", exact=False)
        return
    found = survey.load(tmp_path, "gaudi-emulated", exact=False)
    assert survey.logits_problem(found, random_model.logits(tmp_path, survey.IDS)) == ""


def test_one_that_ends_its_process_costs_no_other_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: object, arguments: dict[str, list[str]], failed: str, **_: object) -> object:
        if "bloom" in arguments["names"]:
            raise ModelError(f"{failed}: Segmentation fault")
        return {name: dict.fromkeys(arguments["devices"], ("exact", "")) for name in arguments["names"]}

    monkeypatch.setattr(survey.worker, "run", run)
    found = survey.survey(["xeon"], ["llama", "bloom", "gpt2"])
    assert [row["xeon"].state for row in found.values()] == ["exact", "failed", "exact"]
    assert found["bloom"]["xeon"].reason == "the process ended: Segmentation fault"


def test_its_table(tmp_path: Path) -> None:
    exact, absent = Cell("exact"), Cell("absent", "the installed transformers has no decoder 'c'")
    table = {
        "a": {"x": exact, "y": Cell("refused", "<b>no</b> | cells")},
        "b": {"x": exact, "y": Cell("refused", "<b>no</b> | cells")},
        "c": {"x": absent, "y": absent},
    }
    text = survey_table.text(table)
    assert re.search(r"^a +exact +refused$", text, re.MULTILINE)
    assert "x: 2 exact, 1 absent\n" in text and "y, a, b: refused: <b>no</b> | cells\n" in text
    survey_table.write(table, MACHINE, tmp_path / "out")
    page = (tmp_path / "out" / "architectures.md").read_text(encoding="utf-8")
    assert "| b | exact | refused |" in page and "&lt;b&gt;no&lt;/b&gt; &#124; cells" in page
    kept = json.loads((tmp_path / "out" / "architectures.json").read_text(encoding="utf-8"))
    assert kept["architectures"]["c"]["y"]["state"] == "absent" and kept["machine"] == MACHINE


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    states = {"llama": "exact", "gpt2": "failed"}

    def run(devices: list[str], names: list[str], progress: object) -> survey.Table:
        return {name: dict.fromkeys(devices, Cell(states[name], "")) for name in names}

    monkeypatch.setattr(survey, "survey", run)
    assert main(["matrix", "--architectures", "llama", "--device", "xeon"]) == 0
    assert "xeon: 1 exact" in capsys.readouterr().out
    assert main(["matrix", "--architectures", "llama", "gpt2", "--device", "xeon", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["architectures"]["gpt2"]["xeon"]["state"] == "failed"


def test_bad_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["matrix", "--architectures", "llamma"]) == 2
    assert "no architecture 'llamma'" in capsys.readouterr().err
    assert main(["matrix", "--architectures", "llama", "--device", "toaster"]) == 2
    assert main(["matrix", "--architectures", "llama", "--model", "x"]) == 2


def test_docs_have_all_and_none_failed() -> None:
    """After a change to the table: `specport matrix --architectures --out docs`."""
    page = (DOCS / "architectures.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w-]+) \| (\w+) \| (\w+) \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == [*ARCHITECTURES]
    assert all(state in survey.STATES and state != "failed" for _, *states in rows for state in states)
