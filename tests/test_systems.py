"""Every command of docs/systems.md runs, on tiny random models and with small settings."""

from __future__ import annotations

import re
import wave
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("openvino")

from specport.quantize.text import prompts
from support.pages import commands
from support.tiny import tiny_models, tiny_whisper

from specport.cli import main

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "systems.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", PAGE, re.DOTALL | re.MULTILINE))
LOSSY = {"VIA-SD": "lossy", "PIPO": "lossy", "SimSD": "differs from its native denoising"}
# Others: torch-cpu, which loads tiny models soonest.
DEVICES = dict.fromkeys(("Depth-pruned drafts", "Bebop", "VIA-SD"), "xeon")
# The page's numbers are for real models.
SMALL = {
    "100000": "1500",
    "120000": "200",
    "200000": "200",
    "15": "1",
    "22": "2",
    "early-exit:10": "early-exit:1",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_models.save_hf(root / "TARGET", "llama", 4)
    tiny_models.save_hf(root / "DRAFT", "llama", 3)
    tiny_models.save_hf(root / "OTHER", "qwen2")
    whisper = tiny_whisper.make(root / "WHISPER", frames=1500)
    tiny_whisper.make(root / "WHISPER_DRAFT", seed=1, layers=1, encoder_of=whisper, frames=1500)
    with wave.open(str(root / "talk.wav"), "wb") as talk:
        talk.setnchannels(1)
        talk.setsampwidth(2)
        talk.setframerate(16000)
        sound = np.random.default_rng(0).normal(0, 3000, 32000)
        talk.writeframes(sound.astype("<i2").tobytes())
    return root


@pytest.fixture(autouse=True)
def _elsewhere(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(models / "cache"))
    monkeypatch.setattr("specport.quantize.evaluate.quick_costs.BUDGET_S", 0.5)
    monkeypatch.setattr(prompts, "CHOOSING", prompts.CHOOSING[:2])
    monkeypatch.setattr(prompts, "HELD_OUT", prompts.HELD_OUT[:2])
    monkeypatch.chdir(tmp_path)
    for model in models.iterdir():
        Path(model.name).symlink_to(model)


def small(arguments: list[str], device: str) -> list[str]:
    """Return the command with settings for tiny models, on this device where it names none."""
    found = [SMALL.get(argument, argument) for argument in arguments]
    if "--device" not in found:
        found += ["--device", device]
    if found[0] == "run":
        found += ["--max-new-tokens", "6"]
    return found


def test_there_are_fourteen() -> None:
    rows = re.findall(r"^\| \[.*\]\(#([\w-]+)\)", PAGE, re.MULTILINE)
    assert len(rows) == 14
    assert sorted(rows) == sorted(title.lower().replace(" ", "-") for title in SECTIONS)


@pytest.mark.parametrize("title", SECTIONS)
def test_its_commands_run(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A lossless system writes what plain decoding writes; a lossy one says what it is."""
    found = commands(SECTIONS[title])
    assert found
    for command in found:
        arguments = small(command, DEVICES.get(title, "torch-cpu"))
        capsys.readouterr()
        assert main(arguments) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        if arguments[0] != "run":
            continue
        assert out.strip()
        if title in LOSSY:
            assert LOSSY[title] in err
        elif "--temperature" not in arguments:
            plain = [*arguments]
            plain[plain.index("--draft") + 1] = "none"
            assert main(plain) == 0
            assert capsys.readouterr().out == out
