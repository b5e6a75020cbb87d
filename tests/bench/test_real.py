"""The benchmark and the calibration on the default model, beside its peers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.processor import NARROW

from specport.calibration.measure import measure
from specport.runtime.conversion import resolve
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.real_model
EXAMPLES = Path(__file__).parents[2] / "examples" / "prompts.jsonl"


def test_bench_beside_its_peers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specport", "bench", "--device", "xeon", "--prompts", str(EXAMPLES)]
    command += ["--out", str(tmp_path / "out"), "--max-new-tokens", "24", "--per-category", "1"]
    command += ["--category", "code", "--category", "summarization"]
    peers = ["genai:plain", "transformers:lookup", "transformers:draft"]
    command += ["--draft", "default", "--draft-precision", "int8"]
    for method in ("auto", "ngram@fixed=4:2", *peers):
        command += ["--method", method]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    table = report["table"]
    assert [*table] == ["plain", "auto", "ngram@fixed=4:2", *peers]
    for method in ("plain", "auto", "ngram@fixed=4:2"):
        assert table[method]["all"]["same"] == table[method]["all"]["prompts"] == 2
    for peer in peers:
        assert table[peer]["all"]["tpot_ms"] > 0 and table[peer]["all"]["ttft_ms"] > 0
    assert report["about"]["numerics"] == "exact"
    methods = report["about"]["methods"]
    first, _, head = methods["auto"]["draft"].partition("|")
    assert first == "suffix" and Path(head).parts[-2:] == ("shipped", report["about"]["model"])
    assert "openvino-genai" in methods["genai:plain"]
    assert methods["transformers:draft"]["num_assistant_tokens"] == 20
    rows = map(json.loads, (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines())
    # The assistant is the model itself: many tokens come at once with the first, if both round alike.
    least = 1 if NARROW else 10
    assert all(row["num_first"] > least for row in rows if row["method"] == "transformers:draft")


def test_llama_cpp_writes_what_it_is_told_to() -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra llama)")
    from specport.bench.peers.llama_cpp import LlamaCpp

    tokenizer = load_tokenizer(resolve().folder)
    prompt = tokenizer.chat([{"role": "user", "content": "Say hello."}])
    texts = {}
    for mode in ("plain", "lookup", "draft"):
        method = LlamaCpp(mode, "default", "default", tokenizer.eos_ids, None, 256)
        run = method.run(prompt, 24)
        texts[mode] = tokenizer.decode(run.tokens)
        assert 0 < run.ttft_s < run.total_s and len(run.tokens) <= 24
        assert method.run(prompt, 4).tokens == run.tokens[:4]
        assert "llama-cpp-python" in method.settings
    # Its kernels round by the number of tokens, as all do; near the start the texts agree.
    assert texts["plain"][:8] == texts["lookup"][:8] == texts["draft"][:8]


def test_costs_of_the_default_model_rise_with_the_width() -> None:
    _, loaded = Loader.on("xeon").target(None, None, exact=True)
    assert loaded.key
    found = measure(loaded.model, widths=(1, 4, 64), contexts=(64,), budget_s=0.0)
    first, second, third = found.costs.seconds[0]
    assert found.costs.widths == (1, 4, 64) and 0 < first <= second < third
