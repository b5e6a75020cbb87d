"""Conversion: Hugging Face folders and GGUF files become IR that computes the same."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize.convert.export import LIFTED, export, load_source
from specport.quantize.convert.openvino_core import core
from support.tiny import tiny_gguf, tiny_models

from specport.errors import ModelError
from specport.models import cache
from specport.models.folder_checks import ir_problem
from specport.runtime.conversion import resolve
from specport.text.tokenizer import load_tokenizer

# The tracer's warnings are hidden by the command line, too.
pytestmark = [pytest.mark.stack, pytest.mark.filterwarnings("ignore")]

PROMPT = [0, 7, 90, 41, 33, 200, 12, 5]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))


def ir_logits(folder: Path) -> np.ndarray:
    exact = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
    compiled = core().compile_model(folder / "openvino_model.xml", "CPU", exact)
    n = len(PROMPT)
    inputs = {"input_ids": np.array([PROMPT]), "attention_mask": np.ones((1, n), np.int64)}
    inputs |= {"position_ids": np.arange(n)[None], "beam_idx": np.zeros(1, np.int32)}
    names = {port.any_name for port in compiled.inputs}  # some exports count positions themselves
    return compiled({name: value for name, value in inputs.items() if name in names})["logits"][0]


def torch_logits(model) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


def weight_types(folder: Path) -> set[str]:
    text = (folder / "openvino_model.xml").read_text()
    return {kind for kind in ("u8", "i4", "u4", "f16", "f32") if f'element_type="{kind}"' in text}


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "gemma3", "phi3"])
def test_gguf_computes_what_the_model_computes(arch, tmp_path):
    """tests/quantize/convert/test_gguf_architectures.py tries all architectures, without OpenVINO."""
    model = tiny_gguf.hf_model(arch)
    model.set_attn_implementation("sdpa")  # as it is exported; it has no soft caps
    tiny_gguf.write(tmp_path / "m.gguf", arch, model)
    (tmp_path / "ir").mkdir()
    export(tmp_path / "m.gguf", tmp_path / "ir", "fp32")
    want, got = torch_logits(model), ir_logits(tmp_path / "ir")
    assert np.abs(want - got).max() < 1e-4 * np.abs(want).max()
    assert ir_problem(tmp_path / "ir") is None
    assert not list((tmp_path / "ir").glob("*.gguf"))


def test_what_optimum_does_not_export_is_refused_or_computes_the_same(tmp_path):
    """Which architectures it knows depends on its version."""
    model = tiny_gguf.hf_model("nemotron")
    tiny_gguf.write(tmp_path / "m.gguf", "nemotron", model)
    (tmp_path / "ir").mkdir()
    try:
        export(tmp_path / "m.gguf", tmp_path / "ir", "fp32")
    except ModelError as error:
        refusal = str(error)
    else:
        want, got = torch_logits(model), ir_logits(tmp_path / "ir")
        assert np.abs(want - got).max() < 1e-3 * np.abs(want).max()
        return
    assert "does not convert nemotron models" in refusal
    assert "torch-cpu" in refusal
    assert "\n" not in refusal


def test_large_models_are_traced_in_16_bits(tmp_path, monkeypatch):
    """test_compress.py compresses such a model."""
    monkeypatch.setattr("specport.quantize.convert.export.FLOAT32_BYTES", 0)
    model = tiny_models.hf_model("llama")
    tiny_gguf.write(tmp_path / "m.gguf", "llama", model)
    (tmp_path / "ir").mkdir()
    export(tmp_path / "m.gguf", tmp_path / "ir", "fp16")
    want, got = torch_logits(model), ir_logits(tmp_path / "ir")
    assert np.abs(want - got).max() < 0.1 * np.abs(want).max()


@pytest.mark.parametrize(
    ("precision", "types", "error"), [("int8", {"u8"}, 0.1), ("int4", {"i4", "u8"}, 1.0)]
)
def test_folder_is_compressed(precision, types, error, tmp_path):
    model = tiny_models.save_hf(tmp_path / "hf", "qwen2")
    (tmp_path / "ir").mkdir()
    stages = []
    export(tmp_path / "hf", tmp_path / "ir", precision, progress=lambda what, share: stages.append(share))
    assert types <= weight_types(tmp_path / "ir")
    assert ("i4" in weight_types(tmp_path / "ir")) == (precision == "int4")
    want, got = torch_logits(model), ir_logits(tmp_path / "ir")
    assert np.abs(want - got).max() < error * np.abs(want).max()
    assert stages == sorted(stages)
    assert sorted(p.name for p in (tmp_path / "ir").iterdir() if p.is_dir()) == []


@pytest.mark.parametrize("kind", LIFTED)
def test_models_whose_limit_is_lifted_compute_the_same(kind, tmp_path):
    # Two windows in the prompt, and layers with and without one.
    layers = ["sliding_attention", "full_attention"]
    changes = {"sliding_window": 4, "layer_types": layers}
    if kind == "gemma3n_text":
        model_configs = pytest.importorskip("optimum.exporters.openvino.model_configs")
        if not hasattr(model_configs, "Gemma3nTextOpenVINOConfig"):
            pytest.skip("optimum-intel 1.27 does not convert it")
        # Its last layers read the keys and values of earlier ones.
        changes |= {
            "layer_types": layers * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": len(tiny_models.vocabulary()),
            "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4,
        }  # fmt: skip
    tiny_models.save_hf(tmp_path / "hf", kind, **changes)
    (tmp_path / "ir").mkdir()
    export(tmp_path / "hf", tmp_path / "ir", "fp32")
    want, got = torch_logits(load_source(tmp_path / "hf", tmp_path, False)), ir_logits(tmp_path / "ir")
    assert np.abs(want - got).max() < 1e-3 * np.abs(want).max()


def test_resolve_converts_once_in_a_process_of_its_own(tmp_path):
    tiny_gguf.write(tmp_path / "tiny.gguf", "llama", tiny_models.hf_model("llama"))
    seen = []
    first = resolve(str(tmp_path / "tiny.gguf"), progress=lambda what, share: seen.append(what))
    assert "converting to OpenVINO" in seen
    seen.clear()
    again = resolve(str(tmp_path / "tiny.gguf"), progress=lambda what, share: seen.append(what))
    assert again == first
    assert not seen
    tokenizer = load_tokenizer(first.folder)
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.decode(tokenizer.encode("hello world 12")) == "hello world 12"

    as_ir = resolve(str(first.folder))
    assert (as_ir.fingerprint, as_ir.precision) == (first.fingerprint, "int8")
    assert [entry.name for entry in cache.entries()] == [first.folder.name]


def test_a_folder_that_cannot_be_converted_is_said_plainly(tmp_path):
    tiny_models.save_hf(tmp_path / "hf", "llama")
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{broken")
    (tmp_path / "ir").mkdir()
    with pytest.raises(ModelError) as caught:
        export(tmp_path / "hf", tmp_path / "ir", "int8")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "hf") in str(caught.value)
