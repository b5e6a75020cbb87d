"""The check that a decoder gives the logits of transformers: a wrong mask is refused, rounding is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from specport.backends.torch.slots import attention  # noqa: E402
from specport.quantize import random_model  # noqa: E402

import specport  # noqa: E402
from specport.conformance.models import tiny  # noqa: E402
from specport.conformance.models.architectures import configuration  # noqa: E402
from specport.errors import ModelError  # noqa: E402


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))  # the check is made once for each model
    return tmp_path


def text(folder: Path, name: str, precision: str, draft: str = "none", **options: Any) -> list[int]:
    if not folder.is_dir():
        random_model.save(folder, configuration(name))
        tiny.save_tokenizer(folder)
    with specport.load(str(folder), device="torch-cpu", precision=precision, draft=draft, **options) as found:
        return list(found.generate("a b c d a b", max_new_tokens=12).token_ids)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("first", [0, 9], ids=["every step", "the second step"])
def test_a_wrong_mask_is_refused(
    precision: str, first: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention._attend

    def wrong(query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        seen = int((mask > -1).sum(dim=-1).max())  # tokens that the last row may read
        return right(query, key, value, mask if seen <= first else torch.zeros_like(mask), **options)

    monkeypatch.setattr(attention, "_attend", wrong)
    with pytest.raises(ModelError, match="its logits differ from those of transformers"):
        text(cache / "llama", "llama", precision)


def test_experts_that_rounding_chooses_are_no_fault(cache: Path) -> None:
    """The routers of random experts are near ties: in bf16 half the tokens go to others."""
    if transformers.__version__ < "5":
        pytest.skip("transformers 4 runs each expert by itself")
    plain = text(cache / "gpt_oss", "gpt_oss", "bf16")
    assert text(cache / "gpt_oss", "gpt_oss", "bf16", "ngram", policy="fixed") == plain
