"""Scaled rotary positions are read from a GGUF file as a transformers configuration has them."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.quantize.convert.from_gguf import config as gguf_config
from specport.quantize.convert.from_gguf import rope
from support.tiny import tiny_gguf

from specport.errors import ModelError
from specport.models.gguf.file import read_header
from specport.models.gguf.values import Values

pytestmark = pytest.mark.stack


def header(path, arch: str, tensors: dict, **metadata):
    import gguf

    writer = gguf.GGUFWriter(str(path), arch)
    for key, value in metadata.items():
        tiny_gguf.add(writer, f"{arch}.{key.replace('__', '.')}", value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_header(path)


def test_llama3_is_recovered_from_its_factors(tmp_path):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "llama3", "factor": 32.0, **rope.LLAMA3}
    shape = {"hidden_size": 256, "num_attention_heads": 4, "rope_theta": 500000.0}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**shape, rope_scaling={**scaling}), "cpu")
    plain = 1.0 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    for factors, fits in ((plain / scaled.numpy(), True), (np.linspace(1, 9, 32), False)):
        tensors = {rope.FACTORS: factors.astype(np.float32)}
        values = Values(header(tmp_path / "m.gguf", "llama", tensors, rope__freq_base=500000.0), "llama")
        if fits:
            assert rope.scaling(values) == scaling
        else:
            with pytest.raises(ModelError, match="rope"):
                rope.scaling(values)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"type": "none", "factor": 2.0}, None),
        ({"type": "linear", "factor": 8.0}, {"rope_type": "linear", "factor": 8.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 16.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0},
        ),
    ],
)
def test_scaling_that_the_metadata_name(metadata, expected, tmp_path):
    found = header(
        tmp_path / "m.gguf", "llama", {}, **{f"rope__scaling__{k}": v for k, v in metadata.items()}
    )
    assert rope.scaling(Values(found, "llama")) == expected


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_scaling_computes_what_the_model_computes(arch, tmp_path):
    """Only full attention is scaled in gemma3."""
    import torch
    from specport.quantize.convert.export import load_source

    model = tiny_gguf.hf_model(arch, rope_scaling={"rope_type": "linear", "factor": 8.0})
    scaling = {f"{arch}__rope__scaling__type": "linear", f"{arch}__rope__scaling__factor": 8.0}
    tiny_gguf.write(tmp_path / "m.gguf", arch, model, **scaling)
    loaded = load_source(tmp_path / "m.gguf", tmp_path, False)
    with torch.no_grad():
        want, got = (each(torch.arange(40)[None]).logits for each in (model, loaded))
    assert (want - got).abs().max() < 1e-4 * want.abs().max()


def test_longrope_has_factors_for_short_and_long_texts(tmp_path):
    """Phi-3 and Phi-4-mini."""
    factors = {rope.SHORT: np.linspace(1, 2, 8), rope.LONG: np.linspace(3, 9, 8)}
    tensors = {name: array.astype(np.float32) for name, array in factors.items()}
    more = {"rope__scaling__attn_factor": 1.25}
    found = rope.scaling(Values(header(tmp_path / "m.gguf", "phi3", tensors, **more), "phi3"))
    assert found is not None
    assert np.allclose(found.pop("short_factor"), factors[rope.SHORT])
    assert np.allclose(found.pop("long_factor"), factors[rope.LONG])
    assert found == {"rope_type": "longrope", "attention_factor": 1.25}
    with pytest.raises(ModelError, match=f"no tensor {rope.SHORT}"):
        rope.scaling(Values(header(tmp_path / "m.gguf", "phi3", {rope.LONG: tensors[rope.LONG]}), "phi3"))
    halves = {name: array.astype(np.float16) for name, array in tensors.items()}
    with pytest.raises(ModelError, match="not float32"):
        rope.scaling(Values(header(tmp_path / "m.gguf", "phi3", halves), "phi3"))


@pytest.mark.parametrize(("part", "whole"), [(16, 64), (20, 80), (48, 64), (96, 128), (6, 22), (14, 98)])
def test_a_share_gives_the_rotated_dimensions_again(part, whole):
    assert int(whole * gguf_config.share(part, whole)) == part
