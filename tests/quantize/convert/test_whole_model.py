"""A folder whose weights are not all there, or whose configuration asks for more than they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specport.errors import ModelError
from specport.models import folder_checks, tensors
from specport.models.json_file import CONFIG_FILE

pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.quantize.convert import whole_model
from support.tiny import tiny_models
from transformers import AutoModelForCausalLM

WEIGHTS = "model.safetensors"
pytestmark = pytest.mark.stack


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    # A table that counts: more than what may be missing.
    tiny_models.save_hf(folder, "llama", tie_word_embeddings=request.param, vocab_size=20_000)
    return folder


def changed(whole: Path, folder: Path, config: dict[str, Any], without: str = "") -> Path:
    """Copy a model with other entries in its configuration, and without a tensor."""
    about = json.loads((whole / CONFIG_FILE).read_bytes())
    (folder / CONFIG_FILE).write_text(json.dumps({**about, **config}), encoding="utf-8")
    stored = tensors.header(whole / WEIGHTS)
    tensors.write(folder / WEIGHTS, {name: each for name, each in stored.items() if name != without})
    return folder


def test_what_is_whole_is_read(whole: Path) -> None:
    assert whole_model.read(AutoModelForCausalLM, whole).config.num_hidden_layers == 2
    folder_checks.check_weights(whole, [WEIGHTS])


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_tensor_that_is_missing_is_named(name: str, whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path, {}, name)
    with pytest.raises(ModelError, match=f"lacks weights: {name}"):
        whole_model.read(AutoModelForCausalLM, folder)


@pytest.mark.parametrize("entry", ["intermediate_size", "vocab_size", "hidden_size"])
def test_sizes_that_the_weights_do_not_have_take_no_memory(entry: str, whole: Path, tmp_path: Path) -> None:
    folder = changed(whole, tmp_path, {entry: 1 << 22})
    with pytest.raises(ModelError, match=r"lacks weights: it has [\d,]+ of"):
        whole_model.read(AutoModelForCausalLM, folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 1 << 31}, "num_hidden_layers is 2147483648"),
        ({"num_local_experts": 1 << 30}, "num_local_experts is"),
        ({"text_config": {"num_hidden_layers": 1 << 31}}, "num_hidden_layers is 2147483648"),
        ({"num_hidden_layers": 999}, "tensors for 999 layers"),
    ],
    ids=["layers", "experts", "text", "more"],
)
def test_numbers_of_parts_are_bounded(
    config: dict[str, Any], words: str, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        folder_checks.check_weights(changed(whole, tmp_path, config), [WEIGHTS])
