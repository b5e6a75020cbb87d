"""The conformance suite on hybrids: what is owed with recurrent layers is what is owed without them."""

from __future__ import annotations

import os
from pathlib import Path

from support.processes.suites import FEW, run_suite
from support.tiny import hybrids


def test_a_hybrid_passes_the_suite(tmp_path: Path) -> None:
    """One with a gated delta net; short convolutions are in the suite's run on torch."""
    hybrids.skip_unless_exported()
    cache = {**os.environ, "SPECPORT_CACHE": str(tmp_path / "cache")}
    arguments = ("--specport-device", "xeon", "--specport-tiny", "qwen3.5", *FEW)
    code, output, results = run_suite(tmp_path, cache, *arguments)
    assert code == 0, output
    passed = {result["check"] for result in results.values() if result["outcome"] == "passed"}
    assert passed >= {"rollback", "trees", "fork", "batch", "greedy", "law", "room", "hidden", "joining"}
