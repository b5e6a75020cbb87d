"""Hostile files of every format take less than 500 MB and 10 s to refuse, or to read where they are allowed.

With `--fuzz-seconds` also allowed files at their bounds, which take longer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("av")

MOST_MB, MOST_SECONDS = 500, 10
# What is refused must be; those that are read are at the bounds of what is allowed.
REFUSED = (
    ", too large", ", dense", "gguf, tensors", "gguf, keys", "gguf, a ", "gguf, empty", "safetensors",
    "shard", "tokenizer, deep", "toml, deep", "toml, keys", "rttm, speakers", "audio, channels",
)  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux measures peaks anew")
def test_hostile_files_take_little(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    more = ["--all"] if pytestconfig.getoption("--fuzz-seconds") else []
    command = [sys.executable, "-m", "support.faults.memory_child", str(tmp_path), *more]
    tests = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=tests, capture_output=True, encoding="utf-8", check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 60
    assert not [each for each in found if each["mb"] > MOST_MB or each["seconds"] > MOST_SECONDS]
    assert not [each for each in found if each["name"].startswith(REFUSED) and each["said"] == "read"]
    assert not [each for each in found if each["name"].endswith(REFUSED[:2]) and each["said"] == "read"]
