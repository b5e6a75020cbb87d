"""The benchmark and the calibration on the default model, beside openvino-genai."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from specport.calibration.measure import measure
from specport.loading import Loader

pytestmark = pytest.mark.real_model
EXAMPLES = Path(__file__).parent.parent / "examples" / "prompts.jsonl"


def test_bench_beside_openvino_genai(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specport", "bench", "--device", "xeon", "--prompts", str(EXAMPLES)]
    command += ["--out", str(tmp_path / "out"), "--max-new-tokens", "24", "--per-category", "1"]
    command += ["--category", "code", "--category", "summarization"]
    command += ["--method", "ngram", "--method", "ngram@fixed=4:2", "--method", "genai:plain"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    table = report["table"]
    assert [*table] == ["plain", "ngram", "ngram@fixed=4:2", "genai:plain"]
    for method in ("plain", "ngram", "ngram@fixed=4:2"):
        assert table[method]["all"]["same"] == table[method]["all"]["prompts"] == 2
    assert table["genai:plain"]["all"]["tpot_ms"] > 0
    assert report["about"]["numerics"] == "exact"
    assert "openvino-genai" in report["about"]["methods"]["genai:plain"]


def test_costs_of_the_default_model_rise_with_the_width() -> None:
    _, loaded = Loader.on("xeon").target(None, None, exact=True)
    assert loaded.key
    found = measure(loaded.model, widths=(1, 4, 64), contexts=(64,), budget_s=0.0)
    first, second, third, fourth = found.costs.seconds[0]
    assert found.costs.widths == (1, 2, 4, 64)  # exact mode pads a single token to two
    assert 0 < first == second <= third < fourth
