"""GGUF files of every architecture compute what the model computes that they were made from."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.quantize.convert.export import load_source
from specport.quantize.convert.from_gguf import config as gguf_config
from support.tiny import tiny_gguf

from specport.errors import ModelError
from specport.models import source

pytestmark = [pytest.mark.stack, pytest.mark.filterwarnings("ignore")]

PROMPT = [0, 7, 90, 41, 33, 200, 12, 5, *range(20, 60)]  # more than two windows


def logits(model) -> np.ndarray:
    import torch

    model.set_attn_implementation("eager")  # the one that knows soft caps
    with torch.no_grad():
        return model.eval()(torch.tensor([PROMPT])).logits[0].float().numpy()


def same(model, other, error=1e-4) -> None:
    want, got = logits(model), logits(other)
    assert np.abs(want - got).max() < error * np.abs(want).max()


@pytest.mark.parametrize("arch", gguf_config.ARCHITECTURES)
def test_gguf_computes_what_the_model_computes(arch, tmp_path):
    model = tiny_gguf.hf_model(arch)
    tiny_gguf.write(tmp_path / "m.gguf", arch, model)
    loaded = load_source(tmp_path / "m.gguf", tmp_path, False)
    same(model, loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    want = model.config.to_dict()
    for key in ("vocab_size", "sliding_window", "layer_types", "tie_word_embeddings"):
        if getattr(model.config, key, None) is not None and key in want:
            assert getattr(loaded.config, key) == want[key]


def test_the_architectures_are_those_that_users_are_told():
    assert {*source.GGUF_ARCHITECTURES} == {*gguf_config.ARCHITECTURES}


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_quantised_weights_are_what_they_are_rounded_to(kind, tmp_path):
    model = tiny_gguf.hf_model("llama")
    tiny_gguf.write(tmp_path / "m.gguf", "llama", model, kind=kind)
    tiny_gguf.write(tmp_path / "f32.gguf", "llama", model, kind=kind, exact=True)
    exact = load_source(tmp_path / "f32.gguf", tmp_path, False)
    same(exact, load_source(tmp_path / "m.gguf", tmp_path, False), 1e-6)
    assert np.abs(logits(model) - logits(exact)).max() > 0  # they were rounded


def test_split_models_compute_the_same(tmp_path):
    model = tiny_gguf.hf_model("qwen3")
    tiny_gguf.write(tmp_path / "m.gguf", "qwen3", model, split=9)
    parts = sorted(tmp_path.iterdir())
    assert len(parts) == 3
    same(model, load_source(parts[1], tmp_path, False))


CHANGED = {  # what transformers' own loader leaves out
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama heads of another width": ("llama", {"head_dim": 8}),
    "llama all heads alike": ("llama", {"num_key_value_heads": 4}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2moe wide": ("qwen2moe", {"moe_intermediate_size": 96, "shared_expert_intermediate_size": 64}),
    "falcon 7B": (
        "falcon",
        {"new_decoder_architecture": False, "num_kv_heads": 1, "num_ln_in_parallel_attn": None},
    ),
    "falcon one norm": ("falcon", {"num_ln_in_parallel_attn": 1}),
    "stablelm in sequence": ("stablelm", {"use_parallel_residual": False, "partial_rotary_factor": 0.25}),
    "stablelm in parallel": ("stablelm", {"use_parallel_residual": True, "use_qkv_bias": False}),
    "nemotron rotated": ("nemotron", {"partial_rotary_factor": 0.25}),
    "phi3 window": ("phi3", {"sliding_window": 16}),
    "gemma2 caps": ("gemma2", {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}),
    "starcoder2 apart": ("starcoder2", {"tie_word_embeddings": False}),
    "gpt2 apart": ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}),
    "lfm2 kernel": ("lfm2", {"conv_L_cache": 4}),
}


@pytest.mark.parametrize("name", CHANGED)
def test_configurations_that_differ_from_the_usual(name, tmp_path):
    arch, changes = CHANGED[name]
    model = tiny_gguf.hf_model(arch, **changes)
    tiny_gguf.write(tmp_path / "m.gguf", arch, model)
    same(model, load_source(tmp_path / "m.gguf", tmp_path, False))


def test_what_old_files_leave_out(tmp_path):
    """The number of heads of keys where it is that of queries, and a name that transformers trips over."""
    model = tiny_gguf.hf_model("llama", num_key_value_heads=4)
    left_out = {"llama__attention__head_count_kv": None, "llama__attention__key_length": None}
    tiny_gguf.write(tmp_path / "m.gguf", "llama", model, general__name="mistral", **left_out)
    same(model, load_source(tmp_path / "m.gguf", tmp_path, False))


def refused(path, said: str) -> None:
    before = sorted(path.parent.iterdir())
    with pytest.raises(ModelError) as caught:
        load_source(path, path.parent, False)
    text = str(caught.value)
    assert said in text
    assert str(path) in text
    assert "\n" not in text
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3moe", "gemma3", "gpt2", "mamba"])
def test_a_model_that_is_not_whole_is_refused(arch, tmp_path):
    model, path = tiny_gguf.hf_model(arch), tmp_path / "m.gguf"
    one = {"qwen3moe": "ffn_up_exps", "gpt2": "attn_qkv", "mamba": "ssm_in"}.get(arch, "ffn_up")
    tiny_gguf.write(path, arch, model, without=rf"blk\.1\.{one}\.weight")
    refused(path, f"is not whole; missing: blk.1.{one}.weight")
    tiny_gguf.write(path, arch, model, **{f"{arch}__block_count": 1})
    refused(path, "tensors that")
    tiny_gguf.write(path, arch, model, **{f"{arch}__block_count": model.config.num_hidden_layers + 1})
    refused(path, f"missing: blk.{model.config.num_hidden_layers}.")
    key = "ssm__state_size" if arch == "mamba" else "feed_forward_length"
    key = "expert_feed_forward_length" if arch == "qwen3moe" else key
    tiny_gguf.write(path, arch, model, **{f"{arch}__{key}": 160})
    refused(path, "wrong shape")


@pytest.mark.parametrize(
    ("arch", "changes", "said"),
    [
        ("llama", {"llama__expert_count": 8}, "llama.expert_count is not supported"),
        ("llama", {"llama__attention__scale": 0.5}, "llama.attention.scale is not supported"),
        ("llama", {"llama__logit_scale": 0.5}, "llama.logit_scale is not supported"),
        ("mamba", {"mamba__ssm__dt_b_c_rms": True}, "ssm.dt_b_c_rms is not supported"),
        ("llama", {"llama__rope__scaling__type": "mrope"}, "rope scaling 'mrope' is not supported"),
        ("llama", {"llama__rope__dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ("llama", {"llama__block_count": None}, "llama.block_count is missing"),
        ("llama", {"llama__block_count": "two"}, "llama.block_count is 'two'"),
        ("llama", {"llama__block_count": (1 << 31) - 1}, "llama.block_count is 2147483647"),
        ("qwen3moe", {"qwen3moe__expert_count": (1 << 31) - 1}, "qwen3moe.expert_count is 2147483647"),
        ("llama", {"llama__embedding_length": 0}, "llama.embedding_length is 0"),
        ("llama", {"llama__attention__head_count": [4, 2]}, "head_count is an array of 2 values"),
        ("llama", {"llama__attention__head_count_kv": 3}, "4 heads of queries, 3 of keys"),
        ("llama", {"llama__attention__layer_norm_rms_epsilon": None}, "layer_norm_epsilon is missing"),
        ("lfm2", {"lfm2__attention__head_count_kv": 2}, "head_count_kv is 2"),
        ("llama", {"general__type": "adapter"}, "holds an adapter"),
        ("llama", {"tokenizer__ggml__model": "bert"}, "'bert' is not supported"),
        ("llama", {"tokenizer__ggml__pre": "kimi-k2"}, "'kimi-k2' is not supported"),
        ("llama", {"tokenizer__chat_template": "{% if %}"}, "chat template cannot be read"),
    ],
)
def test_what_the_configuration_cannot_express_is_refused(arch, changes, said, tmp_path):
    tiny_gguf.write(tmp_path / "m.gguf", arch, tiny_gguf.hf_model(arch), **changes)
    refused(tmp_path / "m.gguf", said)


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    tokens = [*tiny_gguf.vocabulary(), "more"]
    types = [3] * 3 + [1] * (len(tokens) - 3)
    changes = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": types}
    tiny_gguf.write(tmp_path / "m.gguf", "llama", tiny_gguf.hf_model("llama"), **changes)
    refused(tmp_path / "m.gguf", f"{len(tokens)} tokens but {len(tokens) - 1} embeddings")
