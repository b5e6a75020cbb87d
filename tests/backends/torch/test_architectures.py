"""Every decoder architecture of the table runs on torch with the text of plain decoding, or is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.own_cache import own_cache  # noqa: F401

from specport.conformance import survey
from specport.conformance.architectures import ARCHITECTURES
from specport.conformance.survey import Cell

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STATE_SPACE = "states of a kind that cannot be rolled back"
REFUSED = {
    "falcon-alibi": "ALiBi", "gpt_neo": "a mask of their own", "mamba": "takes no", "mamba2": "takes no",
    "falcon_mamba": "takes no", "bamba": STATE_SPACE, "falcon_h1": STATE_SPACE,
    "jamba": f"{STATE_SPACE}|transformers cannot run it|do not run on this cache",
    "granitemoehybrid": STATE_SPACE, "recurrent_gemma": "keep their states themselves",
}  # fmt: skip
if transformers.__version__ < "5":  # masks and tables of their own, for whole texts
    REFUSED |= {"mpt": "differ from those of", "xglm": "differ from those of"}
    REFUSED |= {"phimoe": "do not run as a step"}
# What waits for the device cannot be an HPU graph: transformers 4 counts the tokens of each expert.
COUNTED = ("gpt_oss", "qwen3_moe", "deepseek_v3") if transformers.__version__ < "5" else ()


def check(cell: Cell, refused: str | None) -> None:
    """Fail where a cell is not as expected. refused: a pattern of the reason; None = it runs."""
    if cell.state == "absent":
        pytest.skip(cell.reason)
    assert cell.state == ("refused" if refused else "exact"), cell
    assert re.search(refused or "^$", cell.reason), cell


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_runs_or_is_refused(name: str, tmp_path: Path) -> None:
    check(survey.architecture(name, ["torch-cpu"], tmp_path)["torch-cpu"], REFUSED.get(name))


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss", "qwen3_moe", "bloom", "deepseek_v3", "lfm2"])
def test_graphs_hold_it_or_it_is_refused(name: str, tmp_path: Path) -> None:
    (cell,) = survey.architecture(name, ["gaudi-emulated"], tmp_path).values()
    check(cell, "waits for the device" if name in COUNTED else None)
