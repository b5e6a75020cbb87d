"""What is at hand: weight formats, siblings in the cache, ready models; and the comparison of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from specport.quantize.evaluate.fidelity import Fidelity
from specport.quantize.evaluate.step_times import Times
from support.tiny.tiny_models import save_tokenizer

from specport.models import bundle, cache
from specport.models.folder_checks import IR_BIN, IR_XML
from specport.models.kinds import mtp
from specport.models.source import ModelFiles
from specport.progress import silent
from specport.runtime.devices.profiles import load_profile
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer
from specport.tune import hand, weights


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))


def model(name: str, size: int, precision: str = "int4", source: str = "", tokenizer: bool = True) -> Path:
    """Put a model into the cache that is a tokenizer and `size` bytes of weights."""

    def build(folder: Path) -> Mapping[str, Any]:
        save_tokenizer(folder)
        if not tokenizer:
            (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        (folder / IR_XML).write_text("<net></net>", encoding="utf-8")
        (folder / IR_BIN).write_bytes(bytes(size))
        return {"name": name, "source": source or f"org/{name}", "precision": precision}

    return cache.entry(f"{name}-{precision}", build).folder


def loader() -> Any:
    return SimpleNamespace(profile=load_profile("xeon"), backend=SimpleNamespace(weights="ir"))


def test_smaller_models_of_the_cache_with_the_same_tokenizer_may_draft(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = model("big", 1000, "int8")
    model("big", 500)  # the target itself
    model("small", 300, "int8")
    small = model("small", 200)
    model("other", 200, tokenizer=False)
    model("bigger", 900)
    (model("big-mtp", 100) / mtp.JOIN).write_bytes(b"")  # a part of a model is none
    named = tmp_path / "named"
    named.mkdir()
    built = tmp_path / "built"
    monkeypatch.setattr(hand, "registered", lambda fingerprint: built if fingerprint == "f" else None)
    files = ModelFiles(target, "big", "int8", "org/big", "f")
    found = hand.siblings([str(named), "org/x"], files, load_tokenizer(target), loader())
    assert [(each.name, each.model, each.why) for each in found] == [
        ("named", str(named.resolve()), hand.NAMED),
        ("x", "org/x", hand.NAMED),
        ("built", str(built.resolve()), hand.REGISTERED),
        ("small", str(small.resolve()), hand.CACHED),
    ]
    assert len({each.alias for each in found}) == 4
    again = hand.siblings(["org/small"], files, load_tokenizer(target), loader())
    assert [each.model for each in again] == ["org/small", str(built.resolve())]  # not twice


def test_a_model_is_ready_where_nothing_must_be_converted(tmp_path: Path) -> None:
    folder = model("big", 10, "int8", source="default")
    assert hand.is_ready(None, "int8", "ir") and hand.is_ready("default", "int8", "ir")
    assert not hand.is_ready(None, "int4", "ir") and not hand.is_ready(None, "int8", "huggingface")
    assert not hand.is_ready("org/other", "int8", "ir")
    assert hand.is_ready(str(folder), "int4", "ir")  # IR is run as it is
    assert not hand.is_ready(str(tmp_path), "int8", "ir")


def test_formats_of_a_device() -> None:
    xeon = load_profile("xeon")
    assert hand.formats(None, xeon, "ir") == ("int8",)  # INT4 would change the text
    arc = hand.formats(None, load_profile("core-ultra-gpu"), "ir")
    assert arc == ("int4", "int8", "int4:128", "int4:channel")
    assert hand.formats(None, xeon, "huggingface") == ()
    npu = hand.formats(None, load_profile("core-ultra-npu"), "ir")
    assert all("sym" in name for name in npu) and len(npu) == len({*npu})


def test_converted_weights_have_one_format() -> None:
    folder = model("big", 10)
    assert hand.formats(str(folder), load_profile("xeon"), "ir") == ()
    assert not hand.trainable(str(folder)) and not hand.trainable("org/elsewhere") and hand.trainable(None)
    (folder / bundle.BUNDLE_FILE).write_text("{}", encoding="utf-8")
    assert hand.trainable(str(folder))
    assert not hand.exits_early(str(folder)) and not hand.exits_early(None)
    (folder / "layerskip.json").write_text("{}", encoding="utf-8")
    assert hand.exits_early(str(folder))


def compared(calls: list[Any], kl: float, same_top: float, cost: float) -> Any:
    def row(precision: str, kl: float, same_top: float, cost: float, keeps: bool) -> Any:
        times = Times(5.0, 5.0, 5.0)
        return SimpleNamespace(
            precision=precision, size_mb=100.0, cost=cost, tpot=times, ttft=times, keeps_quality=keeps,
            fidelity=Fidelity(10.0, kl, 0.0, same_top),
        )  # fmt: skip

    def compare(model: str | None, **options: Any) -> Any:
        calls.append(options)
        rows = (row("int8", 0.01, 0.97, 1.0, True), row("int4", kl, same_top, cost, kl <= 0.011))
        return SimpleNamespace(baseline="int8", rows=rows)

    return compare


@pytest.mark.parametrize(
    ("kl", "same_top", "cost", "best", "remark"),
    [
        (0.0105, 0.968, 0.7, "int4", "chosen"),
        (0.0105, 0.960, 0.7, "int8", "faster but changes the text"),
        (0.2, 0.968, 0.7, "int8", "faster but changes the text"),
        (0.2, 0.968, 1.3, "int8", "slower, and changes the text"),
        (0.0105, 0.968, 0.99, "int8", "same quality, not faster"),
    ],
)
def test_only_weights_that_keep_the_quality_are_chosen(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kl: float,
    same_top: float,
    cost: float,
    best: str,
    remark: str,
) -> None:
    calls: list[Any] = []
    files = ModelFiles(tmp_path, "m", "int8", "m", "f")
    monkeypatch.setattr(weights, "compare", compared(calls, kl, same_top, cost))
    monkeypatch.setattr(Loader, "files", lambda self, spec, precision: files)
    on = Loader.on("xeon")

    def measured() -> list[weights.Weights]:
        return weights.measure("m", ("int8", "int4"), ["a"] * 9, on, "xeon", True, silent)

    rows = measured()
    chosen = weights.best(rows, "int8").precision
    assert chosen == best and weights.remark(rows[1], chosen, "int8") == remark
    assert calls[0]["baseline"] == "int8" and len(calls[0]["prompts"]) == weights.MOST_PROMPTS
    assert measured() == rows and len(calls) == 1  # kept
