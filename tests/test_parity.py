"""The same script, model and seed on two runtimes: the same text."""

from __future__ import annotations

import pytest
from specport.quantize.text.prompts import CHOOSING, HELD_OUT

import specport

pytest.importorskip("torch")
pytest.importorskip("openvino")
pytestmark = pytest.mark.real_model

TOKENS = 24


def test_torch_and_openvino_write_the_same_text() -> None:
    prompts = [*CHOOSING, *HELD_OUT][::5]
    assert len(prompts) >= 4
    texts = []
    for device in ("torch-cpu", "xeon"):
        pipeline = specport.load(device=device, precision="fp32", draft="ngram")
        results = pipeline.generate(prompts, max_new_tokens=TOKENS)
        texts.append([result.token_ids for result in results])
    assert texts[0] == texts[1]
