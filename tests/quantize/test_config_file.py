"""config.json names the rotary positions as transformers 4 and as transformers 5 does."""

from __future__ import annotations

from typing import Any

import pytest
from specport.quantize.convert.config_file import with_old_names

PLAIN = {"rope_type": "default", "rope_theta": 5e5}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("config", "old"),
    [
        ({"rope_theta": 5e5}, {}),  # written by transformers 4
        ({"rope_parameters": None}, {}),
        ({"rope_parameters": PLAIN}, {"rope_theta": 5e5}),
        ({"rope_parameters": {**PLAIN, **LINEAR}}, {"rope_theta": 5e5, "rope_scaling": LINEAR}),
        (
            {"rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}},
            {"rope_theta": 5e5, "partial_rotary_factor": 0.5},
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"full_attention": {**PLAIN, **LINEAR}, "sliding_attention": LOCAL},
            },
            {"rope_theta": 5e5, "rope_scaling": LINEAR, "rope_local_base_freq": 1e4},
        ),
        ({"model_type": "new", "rope_parameters": {"full_attention": PLAIN, "other": LOCAL}}, {}),
    ],
)
def test_old_names(config: dict[str, Any], old: dict[str, Any]) -> None:
    assert with_old_names(config) == {**config, **old}


@pytest.mark.stack
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("scaling", [None, LINEAR])
def test_both_names_mean_the_same(kind: str, scaling: dict[str, Any] | None) -> None:
    """What transformers reads of either version's names is what was written."""
    auto = pytest.importorskip("transformers").AutoConfig
    config = auto.for_model(kind, rope_theta=5e5, rope_scaling=scaling).to_dict()
    both = with_old_names(config)
    assert both["rope_theta"] == 5e5
    assert (both.get("rope_scaling") or {}).get("factor") == (scaling or {}).get("factor")
    old_only = {name: value for name, value in both.items() if name != "rope_parameters"}
    for names in (both, old_only):
        read = auto.for_model(**names).to_dict()
        assert {name: read[name] for name in config} == config
