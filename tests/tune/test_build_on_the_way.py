"""A draft that is trained on the way: what it is made from, and going on with the same text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specport.models.bundle import BUNDLE_FILE
from specport.models.source import ModelFiles
from specport.progress import silent
from specport.runtime.devices.profiles import load_profile
from specport.tune import build, hand
from specport.tune.options import Options
from specport.tune.trainings import HEAD, PARALLEL, Training


def loader(weights: str = "ir", device: str = "xeon") -> Any:
    return SimpleNamespace(profile=load_profile(device), backend=SimpleNamespace(weights=weights))


def test_it_is_made_from_a_named_sibling_or_from_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "trainable", lambda spec: spec != "/ir")
    named = [hand.sibling(model, model, hand.NAMED) for model in ("/ir", "/weights")]
    cached = [hand.sibling("/cached", "cached", hand.CACHED)]
    assert build.source(Options(), [*cached, *named], loader()) == "/weights"
    assert build.source(Options(), [*cached, *named[:1]], loader()) == "default"
    assert build.source(Options(model="/ir"), cached, loader()) == ""
    assert build.source(Options(build=False), named, loader()) == ""
    assert build.source(Options(), named, loader("huggingface")) == ""
    assert build.source(Options(), named, loader(device="core-ultra-npu-emulated")) == ""


def test_a_head_is_trained_where_the_target_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = hand.sibling("/draft", "draft", hand.NAMED)
    assert build.head(Options(), [draft], loader())
    assert not build.head(Options(build=False), [], loader())
    assert not build.head(Options(), [], loader("huggingface"))
    monkeypatch.setattr(hand, "is_head", lambda path: True)
    assert not build.head(Options(), [draft], loader())


@pytest.mark.parametrize("training", [HEAD, PARALLEL])
def test_a_stopped_build_goes_on_with_as_much_text(
    training: Training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    asked: list[Any] = []

    def quantize(target: str | None, out: Path, request: Any, **options: Any) -> None:
        depth = getattr(request, "parallel", None)
        asked.append((request.distil_tokens, depth, options.get("source"), options["precision"]))
        if len(asked) == 1:
            raise KeyboardInterrupt
        out.mkdir(parents=True)
        (out / BUNDLE_FILE).write_text("{}", encoding="utf-8")

    of_a_head = training is HEAD
    monkeypatch.setattr(f"specport.quantize.{'heads.recurrent' if of_a_head else 'build'}.build", quantize)
    files = ModelFiles(tmp_path, "toy", "int8", "default", "0")
    with pytest.raises(KeyboardInterrupt):
        build.train(training, Options(), files, "default", 30_000, silent)
    found = build.train(training, Options(), files, "default", 70_000, silent)
    assert found.name == f"toy-{training.name}" and (found / BUNDLE_FILE).is_file()
    assert build.train(training, Options(), files, "default", 70_000, silent) == found
    depth, source = (None, None) if of_a_head else (6, "default")
    assert asked == [(30_000, depth, source, "int8")] * 2
