"""The conformance suite on hybrids: what is owed with recurrent layers is what is owed without them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support import hybrids
from support.suites import run_suite


@pytest.mark.parametrize("kind", hybrids.KINDS)
def test_hybrids_pass_the_suite(kind: str, tmp_path: Path) -> None:
    hybrids.skip_unless_exported()
    cache = {**os.environ, "SPECPORT_CACHE": str(tmp_path / "cache")}
    code, output, results = run_suite(tmp_path, cache, "--specport-device", "xeon", "--specport-tiny", kind)
    assert code == 0, output
    passed = {result["check"] for result in results.values() if result["outcome"] == "passed"}
    assert passed >= {"rollback", "trees", "fork", "batch", "greedy", "law", "room", "hidden", "joining"}
