"""Tiny random models for the tests: a byte-level tokenizer, Hugging Face folders, GGUF files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2", "Ċ Ċ"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer.json with tokenizer_config.json and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(vocabulary())}
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[0], "chat_template": TEMPLATE}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def hf_model(kind: str, num_hidden_layers: int = 2, **changes: Any) -> Any:
    """A random model of `kind` (llama, qwen2, qwen3, gemma3_text), 64 wide; `changes` to its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": len(vocabulary()), "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": num_hidden_layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 256, "tie_word_embeddings": True, "bos_token_id": 0,
        "eos_token_id": 0, "sliding_window": 128,
    }  # fmt: skip
    config = AutoConfig.for_model(kind, **{**shape, **changes})
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3).add_(torch.randn_like(parameter) * 0.05)
    return model


def save_hf(folder: Path, kind: str, num_hidden_layers: int = 2, **changes: Any) -> Any:
    model = hf_model(kind, num_hidden_layers, **changes)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def save_kinds(root: Path, kinds: Sequence[str]) -> dict[str, Path]:
    """A folder of each kind below `root`."""
    for kind in kinds:
        save_hf(root / kind, kind)
    return {kind: root / kind for kind in kinds}


def write_gguf(path: Path, kind: str = "llama", model: Any = None, **changes: Any) -> None:
    """A GGUF file with float32 weights of `model` (none: one small tensor) and the tiny tokenizer.

    `changes` replaces metadata by key, with "__" for "."; None leaves the key out.
    """
    import gguf

    writer = gguf.GGUFWriter(str(path), kind)
    tokens = vocabulary()
    values: dict[str, Any] = {
        "general.name": "tiny", f"{kind}.context_length": 256, f"{kind}.vocab_size": len(tokens),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0, "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    if model is not None:
        values |= {f"{kind}.{key}": value for key, value in _shape(model.config).items()}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_array(key, value)
    for name, array in _tensors(kind, model).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_base(config: Any) -> float:
    """Return the base of the rotary frequencies, that of full attention where layers differ."""
    parameters = getattr(config, "rope_parameters", None)  # since transformers 5
    if parameters is None:
        return float(config.rope_theta)
    return float(parameters.get("full_attention", parameters)["rope_theta"])


def _shape(config: Any) -> dict[str, Any]:
    return {
        "embedding_length": config.hidden_size, "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim, "rope.freq_base": rope_base(config),
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps), "attention.sliding_window": 128,
    }  # fmt: skip


def _tensors(kind: str, model: Any) -> dict[str, Any]:
    import gguf

    if model is None:
        return {"token_embd.weight": np.zeros((64, 32), np.float32)}
    arch = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[kind]
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    out = {}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy().copy()
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
        for part, count in heads.items():
            if kind == "llama" and part in name:  # llama.cpp interleaves the halves of each head
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if kind == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        stem, suffix = name.rsplit(".", 1)
        out[f"{names.get_name(stem)}.{suffix}"] = array
    return out
