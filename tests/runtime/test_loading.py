"""What loading reads: each tokenizer once, and one comparison of draft and target. What it does at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from support.toys.toy_backend import Tokenizer, ToyBackend, toy_backend  # noqa: F401  (a fixture)

import specport
from specport.errors import DeviceError, ModelError
from specport.models import bundle
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded, LoadOptions


class Compared(Tokenizer):
    """Counts comparisons. wrong: how it differs from any other."""

    def __init__(self, seen: Counter[str], wrong: str | None) -> None:
        self.seen, self.wrong = seen, wrong

    def mismatch(self, other: object) -> str | None:  # type: ignore[override]
        self.seen["compared"] += 1
        return self.wrong


def count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wrong: str | None = None) -> Counter[str]:
    """Return what is read by folder name, and how often tokenizers are compared; "d" is a bundle."""
    seen: Counter[str] = Counter()
    made = bundle.Bundle(
        target="t", target_shape=bundle.shape(tmp_path), target_fingerprint="0", tokenizer="another",
        source="d", precision="int8", layers=(0,), num_layers=2, measured={"speed_up": 2.0},
    )  # fmt: skip

    def load_tokenizer(folder: Path) -> Compared:
        seen[folder.name] += 1
        return Compared(seen, wrong)

    def resolve(spec: str | None, **options: Any) -> ModelFiles:
        files = ModelFiles(tmp_path / (spec or "t"), spec or "t", str(options["precision"]), "x", "0")
        return replace(files, bundle=made) if spec == "d" else files

    monkeypatch.setattr("specport.runtime.loading.resolve", resolve)
    monkeypatch.setattr("specport.runtime.together.load_tokenizer", load_tokenizer)
    monkeypatch.setattr("specport.runtime.loading.load_beside", lambda folder, other: load_tokenizer(folder))
    return seen


@pytest.mark.usefixtures("toy_backend")
@pytest.mark.parametrize("draft", ["d", "m", "suffix|d", "universal(m)", "graft(d)"])
def test_each_tokenizer_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, draft: str) -> None:
    seen = count(monkeypatch, tmp_path)
    with specport.load("t", draft=draft, device="xeon") as pipeline:
        assert pipeline.generate("hello", max_new_tokens=4).token_ids
    assert seen == {"t": 1, "m" if "m" in draft else "d": 1, "compared": 1}


def test_a_draft_with_another_tokenizer_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    toy_backend: ToyBackend,  # noqa: F811
) -> None:
    count(monkeypatch, tmp_path, "token 7 differs")
    with pytest.raises(ModelError, match="built for t, not for t: its tokenizer differs: token 7"):
        specport.load("t", draft="d", device="xeon")
    assert toy_backend.loaded == ["t"]  # before the draft is loaded
    with pytest.raises(ModelError, match="the draft m has another tokenizer than the target: token 7"):
        specport.load("t", draft="m", device="xeon")


def test_the_target_is_prepared_while_the_draft_is_loaded(toy_backend: ToyBackend) -> None:  # noqa: F811
    loading, prepared = Event(), []

    def prepare(name: str) -> None:
        if name == "t":
            assert loading.wait(10)  # set when the draft is being loaded
        prepared.append(name)

    def load(files: ModelFiles, options: LoadOptions) -> Loaded:
        if options.role == "draft":
            loading.set()
        return ToyBackend.load(toy_backend, files, options)

    toy_backend.prepare = prepare
    toy_backend.load = load  # type: ignore[method-assign]
    with specport.load("t", draft="m", device="xeon"):
        assert sorted(prepared) == ["m", "t"]  # both are ready when `load` returns


def test_a_model_alone_is_not_prepared(toy_backend: ToyBackend) -> None:  # noqa: F811
    toy_backend.prepare = pytest.fail  # nothing overlaps, so it would only cost a step
    with specport.load("t", draft="ngram", device="xeon") as pipeline:
        assert pipeline.generate("hello", max_new_tokens=4).token_ids


@pytest.mark.parametrize("model", ["t", "m"])
def test_an_error_of_preparing_reaches_the_caller(
    toy_backend: ToyBackend,  # noqa: F811
    model: str,
) -> None:
    def prepare(name: str) -> None:
        if name == model:
            raise DeviceError(f"{name} does not fit")

    toy_backend.prepare = prepare
    with pytest.raises(DeviceError, match=f"{model} does not fit"):
        specport.load("t", draft="m", device="xeon")
