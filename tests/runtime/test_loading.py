"""What loading reads: each tokenizer once, and one comparison of draft and target."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.toy_backend import Tokenizer, ToyBackend, toy_backend  # noqa: F401  (a fixture)

import specport
from specport.errors import ModelError
from specport.models import bundle
from specport.models.source import ModelFiles


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
    for module in ("specport.api", "specport.runtime.loading"):
        monkeypatch.setattr(f"{module}.load_tokenizer", load_tokenizer)
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
