"""What a user can get wrong: one line, exit code 2, no traceback, nothing lost. Nothing is loaded for it."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest


def run(*arguments: str, cache: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, "SPECPORT_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-m", "specport", *arguments],
        capture_output=True, text=True, check=False, timeout=timeout, env=environment,
        stdin=subprocess.DEVNULL, cwd=cache,
    )  # fmt: skip


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    *stages, line = done.stderr.strip().splitlines()
    assert line.startswith("specport: error: ")
    assert all(stage.startswith("specport: ") for stage in stages)  # what was tried, on its way
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "no/such/file.gguf", "Hi"], ["no/such/file.gguf"]),
        (["--model", "./nowhere", "Hi"], ["./nowhere"]),
        (["--device", "abacus", "Hi"], ["abacus", "xeon"]),
        (["--device", "cuda", "Hi"], ["cuda"]),
        (["--device", "core-ultra-npu", "Hi"], ["NPU"]),
        (["--device", "gaudi", "Hi"], ["gaudi"]),
        (["--device", "mine.toml", "Hi"], ["mine.toml"]),
        ([""], ["empty"]),
        (["  "], ["empty"]),
        (["--prompt-file", "nothing.txt"], ["nothing.txt"]),
        (["--max-new-tokens", "0", "Hi"], ["max_new_tokens"]),
        (["--max-new-tokens", "-5", "Hi"], ["max_new_tokens"]),
        (["--max-new-tokens", "many", "Hi"], ["many"]),
        (["--temperature", "-1", "Hi"], ["temperature"]),
        (["--top-p", "0", "Hi"], ["top_p"]),
        (["--policy", "oracle", "Hi"], ["oracle"]),
        (["--policy", "heuristic", "--branches", "2,2", "Hi"], ["branches"]),
        (["--num-draft-tokens", "-1", "Hi"], ["draft tokens"]),
        (["--draft", "ngram||x", "Hi"], ["draft"]),
        (["--threads", "0", "Hi"], ["threads"]),
        (["--precision", "int2", "Hi"], ["int2"]),
        (["--nonsense", "Hi"], ["--nonsense"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_refused_in_one_line(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    refused(run("run", *arguments, cache=tmp_path), *words)


def test_damaged_models(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 200, 30) + b"\x01\x02")
    refused(run("run", "--model", "cut.gguf", "Hi", cache=tmp_path), "cut.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    refused(run("run", "--model", "text.gguf", "Hi", cache=tmp_path), "text.gguf")
    bare = tmp_path / "bare-ir"
    bare.mkdir()
    (bare / "openvino_model.xml").write_text("<net></net>")
    (bare / "openvino_model.bin").write_bytes(b"")
    (bare / "config.json").write_text(json.dumps({"model_type": "llama"}))
    refused(run("run", "--model", "bare-ir", "Hi", cache=tmp_path), "tokenizer")


def test_hub_without_a_network_is_said_within_30_seconds(tmp_path: Path) -> None:
    done = run("run", "--model", "nobody/nothing-here", "Hi", cache=tmp_path, timeout=30)
    refused(done, "nobody/nothing-here")


@pytest.mark.real_model
def test_prompt_longer_than_the_context(tmp_path: Path) -> None:
    from specport.models.cache import cache_root

    prompt = tmp_path / "long.txt"
    prompt.write_text("word " * 600, encoding="utf-8")
    done = run("run", "--max-context", "512", "--prompt-file", str(prompt), cache=cache_root(), timeout=300)
    assert done.returncode == 2 and "context" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.real_model
def test_draft_of_another_tokenizer_names_the_mismatch(tmp_path: Path) -> None:
    import shutil

    from specport.models.cache import cache_root
    from specport.runtime.conversion import resolve

    other = tmp_path / "other"
    shutil.copytree(resolve().folder, other)
    (other / "specport-model.json").unlink(missing_ok=True)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    assert text.count('"hello"') >= 1
    (other / "tokenizer.json").write_text(text.replace('"hello"', '"hellooo"'), encoding="utf-8")
    done = run("run", "--draft", str(other), "Hi", cache=cache_root(), timeout=300)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "tokenizer" in done.stderr and "hello" in done.stderr
