"""A small tuning of the default model, as a user starts it, and a run that uses its choice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specport.models.cache import cache_root
from specport.runtime.conversion import resolve

pytestmark = pytest.mark.real_model
HEAD = ("shipped", "smollm2-135m-instruct")
FREE = {"ngram", "suffix", "recycle", "ngram|recycle", "suffix|recycle"}


def run(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "specport", *arguments], capture_output=True, encoding="utf-8", timeout=600,
        check=False, env={**os.environ, "SPECPORT_CACHE": str(cache)},
    )  # fmt: skip


def test_tune_and_run(tmp_path: Path) -> None:
    model = resolve().folder
    shutil.copytree(model, tmp_path / "models" / model.name)  # what is measured here must not stay
    if (cache_root() / "exact.json").is_file():
        shutil.copy(cache_root() / "exact.json", tmp_path)
    small = [
        "--device",
        "xeon",
        "--precision",
        "int8",
        "--budget",
        "20s",
        "--max-new-tokens",
        "8",
        "--no-build",
    ]
    done = run(tmp_path, "tune", *small, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    tried = report["verdict"]["tried"]
    # By name: `python -m specport` runs this checkout's copy, these tests may import an installed one.
    single = {each["draft"] for each in tried if "|" not in each["draft"]}
    (head,) = (draft for draft in single if Path(draft).parts[-2:] == HEAD)
    # The head promises most. On a slow machine no time is left for those after it, and the report says so.
    found = {each["draft"] for each in tried} - {head, f"ngram|{head}", f"suffix|{head}"}
    assert len(found) == len(tried) - 3
    assert found == FREE or (not found and "no time" in report["untried"]["drafters without a model"])
    assert all(each["heat"]["same"] == each["heat"]["prompts"] >= 1 for each in tried)
    assert report["plain"]["tpot_ms"] > 0
    asked = run(
        tmp_path, "run", "--device", "xeon", "--max-new-tokens", "8", "--json", "--explain", "Count to five."
    )
    assert asked.returncode == 0, asked.stderr
    answer = json.loads(asked.stdout)
    assert answer["notes"][0].startswith(f"drafters by specport tune: {report['verdict']['draft']}")
    assert {part["name"] for part in answer["explain"]["parts"]} >= {"reading the prompt, target"}
    dry = run(tmp_path, "tune", *small, "--dry-run")
    assert dry.returncode == 0 and "at most" in dry.stdout and "unknown" not in dry.stdout
