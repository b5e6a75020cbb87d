"""The long commands on tiny models, for the tests that kill them or fill their disk.

`prepare` writes a template: models, prompts, sources, sound, recorded texts, and a cache.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.faults.kills import CACHE, Command, digest, finish
from support.faults.long_trainings import ON, TRAININGS

_WORDS = "hello world 12 or ld he ll wor".split()  # noqa: SIM905
_PAIR = ("--target", "target", "--prompts", "prompts.jsonl", *ON)
_BODY = {"model": "target", "prompt": "hello world " * 20, "max_tokens": 24, "temperature": 0}


def _text(place: Path, out: str) -> str:
    return out.split("\n\n", maxsplit=1)[0]


def _store(place: Path, out: str) -> list[str]:
    """Return what makes a datastore, as its own reader finds it."""
    return sorted(digest(path) for path in (place / "store").iterdir() if path.suffix != ".json")


def _said(place: Path, out: str) -> tuple[str, list[Any]]:
    data = json.loads((place / "said" / "talk.json").read_text(encoding="utf-8"))
    assert not [*(place / "said").glob(".*")]  # the state goes when the texts are there
    return (place / "said" / "talk.txt").read_text(encoding="utf-8"), [s["text"] for s in data["segments"]]


def _rounds(place: Path, out: str) -> list[Any]:
    from specport.bench.recording import Recording

    found = Recording.load(place / "rounds.json")
    return [(text.id, text.tokens) for text in found.texts]


def _draft(place: Path, out: str) -> tuple[int, ...]:
    from specport.models import bundle

    found = bundle.read(place / "made", thorough=True)
    return tuple(found.layers)


def _table(place: Path, out: str) -> list[list[str]]:
    """Return what does not depend on times: the importance of layers."""
    return [line.split() for line in out.splitlines() if re.match(r"\s*\d", line)]


def _json(place: Path, out: str) -> list[str]:
    return sorted(json.loads(out)[0]) if out.lstrip().startswith("[") else sorted(json.loads(out))


def _adapted(place: Path, out: str) -> tuple[bool, int]:
    """Return whether the draft is whole, and how many recorded texts there are."""
    from specport.models import bundle

    bundle.read(place / "own", thorough=True)
    texts = [path for path in (place / CACHE / "traffic").rglob("*") if path.suffix == ".npz"]
    return json.loads(out)["state"] in ("kept", "refused", "stopped"), len(texts)


def _ask(process: subprocess.Popen[str], place: Path) -> str:
    """Ask a server for the same text several times; return it, and end the server as Ctrl-C does."""
    import httpx

    url = ""
    texts = set()
    try:
        for _ in range(1200):
            found = re.search(r"listening on (http://\S+)/v1", (place / "messages.txt").read_text("utf-8"))
            if found:
                url = found[1]
                break
            try:
                process.wait(0.1)
                return ""
            except subprocess.TimeoutExpired:
                continue
        while httpx.get(f"{url}/health").status_code != 200 and process.poll() is None:
            time.sleep(0.1)
        for _ in range(4):
            answer = httpx.post(f"{url}/v1/completions", json=_BODY, timeout=60).json()
            texts.add(answer["choices"][0]["text"])
    finally:
        process.terminate()
    (text,) = texts
    return str(text)


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "first load",
            ("run", "hello", "--model", "fresh", "--draft", "none", "--max-new-tokens", "8", "--raw", *ON),
            _text,
        ),
        Command(
            "datastore",
            ("datastore", "build", "src", "--out", "store", "--model", "target"),
            _store,
            made=("store",),
        ),
        Command(
            "transcribe",
            ("transcribe", "talk.wav", "--model", "whisper", "--output", "said", "--format", "txt,json",
             "--temperature", "0",
             *ON),
            _said,
            made=("said",),
            resume=("--resume",),
        ),
        Command(
            "bench --record",
            ("bench", "--model", "target", "--draft", "draft", "--prompts", "prompts.jsonl",
             "--max-new-tokens", "24", "--record", "rounds.json", *ON),
            _rounds,
            made=("rounds.json",),
        ),
        Command("calibrate", ("calibrate", "--model", "target", "--draft", "draft", "--json", *ON), _json),
        Command("quantize layers", ("quantize", "layers", *_PAIR), _table),
        Command(
            "quantize",
            ("quantize", *_PAIR, "--layers", "2", "--by", "influence", "--out", "made"),
            _draft,
            made=("made",),
        ),
        Command(
            "tune",
            ("tune", "--model", "target", "--no-build", "--prompts", "prompts.jsonl", "--max-new-tokens", "8",
             "--budget", "60s", "--json", *ON),
            _json,
        ),
        Command(
            "adapt",
            ("adapt", "--draft", "own", "--model", "target", "--budget", "6s", "--json", *ON),
            _adapted,
            made=("own",),
        ),
        Command(
            "serve",
            ("serve", "--model", "target", "--draft", "none", "--port", "0", "--prefix-cache", "prefixes",
             *ON),
            lambda place, out: out,
            made=("prefixes",),
            during=_ask,
        ),
    )
} | TRAININGS  # fmt: skip
_RECORD = """
import sys, specport
with specport.load("target", draft="none", device="xeon", threads=1) as pipeline:
    for number in range(12):
        pipeline.generate(f"hello {number} world", max_new_tokens=48, ignore_eos=True)
"""


def prepared(template: Path, names: Sequence[str], *, whole: bool) -> Path:
    """Return a template for these commands, which is made unless it is there. whole: for all commands."""
    if not template.exists():
        making = template.with_name(f"{template.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(parents=True)
        prepare(making, [*COMMANDS] if whole else names)
        making.rename(template)
    return template


def prepare(template: Path, names: Sequence[str]) -> None:
    """Write what these commands need. Converted models are in the cache where another command is killed."""
    import numpy as np

    from support.tiny import tiny_models, tiny_slim, tiny_whisper
    from support.toys import scripted_speech

    choose = random.Random(0)
    tiny_models.save_hf(template / "target", "llama", 3, max_position_embeddings=2048)
    tiny_models.save_hf(template / "draft", "llama", 1, max_position_embeddings=2048)
    if "first load" in names:
        tiny_models.save_hf(template / "fresh", "qwen2", 2)
    prompts = [" ".join(choose.choices(_WORDS, k=12)) for _ in range(8)]
    lines = (json.dumps({"id": i, "category": "qa", "turns": [text]}) for i, text in enumerate(prompts))
    (template / "prompts.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if "datastore" in names:
        (template / "src").mkdir()
        for number in range(400):
            text = "".join(f"hello world {choose.random()}\n" for _ in range(100))
            (template / "src" / f"{number}.txt").write_text(text, encoding="utf-8")
    if "transcribe" in names:
        tiny_whisper.make(template / "whisper", frames=1500)
        sound = scripted_speech.tone(240.0)
        sound *= np.random.default_rng(0).random(len(sound), dtype=np.float32)
        scripted_speech.write_wav(template / "talk.wav", sound)
        _warmed(COMMANDS["transcribe"], template)
    if "quantize speech" in names:
        if "transcribe" not in names:
            tiny_whisper.make(template / "whisper", frames=1500)
        (template / "talks").mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).random(16_000 * 30, dtype=np.float32)
            scripted_speech.write_wav(template / "talks" / f"{number}.wav", noise * 0.3)
    if "quantize verifier" in names:
        tiny_slim.save(template / "slim")
        load = ("run", "hello", "--model", "slim", "--draft", "none", "--max-new-tokens", "1", *ON)
        _warmed(Command("load", load, _text), template)
    if "quantize export --to hf" in names:
        built = (*COMMANDS["quantize"].arguments[:-1], "draft-bundle")
        _warmed(Command("build", built, _draft), template)
    if "adapt" in names:
        build = Command("build", (*COMMANDS["quantize"].arguments[:-1], "own"), _draft)
        _warmed(build, template)
        _warmed(Command("on", ("adapt", "on", "--draft", "own"), _draft), template)
        environment = {**os.environ, "SPECPORT_CACHE": str(template / CACHE)}
        subprocess.run([sys.executable, "-c", _RECORD], cwd=template, env=environment, check=True)
    if {*names} - {"first load", "datastore", "transcribe", "adapt"}:
        _warmed(COMMANDS["calibrate"], template)
        shutil.rmtree(template / CACHE / "calibration")


def _warmed(command: Command, template: Path) -> None:
    """Run a command once, so that its models are converted, and take away what it made."""
    code, _, said = finish(command, template)
    assert code == 0, said
    for name in command.made:
        shutil.rmtree(template / name)
    (template / "messages.txt").unlink()
