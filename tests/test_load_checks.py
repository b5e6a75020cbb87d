"""What `specport.load` refuses before it downloads anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openvino")

import specport
from specport.errors import ModelError, SpecportError
from specport.models.fetch import hub


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(spec: str, progress: Any) -> Path:
        raise ModelError(f"{spec} would be downloaded")

    monkeypatch.setattr(hub, "fetch", fetch)


@pytest.mark.parametrize(
    "wrong",
    [
        {"device": "nowhere"}, {"draft_device": "nowhere", "draft": "org/small"},
        {"draft_device": "xeon", "draft": "ngram"},
        {"policy": "best"}, {"policy": "classifier", "draft": "ngram"}, {"num_draft_tokens": 0},
        {"branches": (0,), "policy": "fixed"}, {"acceptance": "luck"},
        {"draft": "ngram|"}, {"draft": "early-exit:x"}, {"draft": "early-exit:1|early-exit:2"},
        {"verify": "tiered:2"}, {"verify": "tiered:0.6,0.3"}, {"verify": "tiered:0.6,0.3", "lossy": True},
        {"verifier": "mask"},
        {"history": "texts", "draft": "ngram"}, {"prefix_cache_size": "much"}, {"prefix_cache": ""},
        {"precision": "int5"}, {"draft_precision": "int5"}, {"device": "xeon", "precision": "bf16"},
        {"threads": 0}, {"max_context": 0}, {"cache_memory": "lots"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_arguments_are_errors_before_a_download(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecportError) as found:
        specport.load("org/model", **wrong)
    assert "would be downloaded" not in str(found.value)


@pytest.mark.parametrize("good", [{}, {"draft": "ngram", "policy": "fixed", "device": "xeon"}], ids=str)
def test_others_are_downloaded(good: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="org/model would be downloaded"):
        specport.load("org/model", **good)
