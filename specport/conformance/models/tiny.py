"""The suite's own models: a tiny llama with random weights and a byte-level tokenizer, made on the spot.

Needs numpy and `tokenizers` only, so that any backend can be tested without a download. The weights are
scaled so that greedy text varies and a draw has a handful of likely tokens; the draft is the same model
with noise on its weights. Other kinds have recurrent layers as well (`tiny_hybrids.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.conformance.models import tiny_hybrids

LAYERS, WIDTH, INNER, HEADS, KV_HEADS, HEAD_DIM = 2, 64, 128, 4, 2, 16
MAX_CONTEXT = 1024
MERGES = ("h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "1 2", "Ċ Ċ")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DRAFT_NOISE = 0.08  # of each weight's own spread
_NAME = "tiny"


def write(folder: Path, kind: str = "llama") -> tuple[Path, Path]:
    """Write the target and its draft as Hugging Face folders below `folder`; the same bytes every time.

    kind: one of KINDS.
    """
    target, draft = folder / _NAME, folder / f"{_NAME}-draft"
    config, make = KINDS[kind]
    weights = make(np.random.default_rng(11), len(vocabulary()))
    noise = np.random.default_rng(12)
    noisy = {
        name: array if array.ndim == 1 else array + DRAFT_NOISE * array.std() * _normal(noise, array.shape)
        for name, array in weights.items()
    }
    for place, tensors in ((target, weights), (draft, noisy)):
        place.mkdir(parents=True, exist_ok=True)
        save_tokenizer(place)
        (place / "config.json").write_text(json.dumps(_common() | config(), indent=1), encoding="utf-8")
        save_safetensors(place / "model.safetensors", tensors)
    return target, draft


def save_safetensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """float32 arrays: 8 bytes of length, a JSON header, the bytes (huggingface.co/docs/safetensors)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of 8
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.astype("<f4").tobytes())


def vocabulary() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return [*SPECIAL, *sorted(ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in MERGES)]


def _common() -> dict[str, object]:
    return {
        "vocab_size": len(vocabulary()), "max_position_embeddings": MAX_CONTEXT,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def _llama() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32",
        "hidden_size": WIDTH, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def _llama_weights(rng: np.random.Generator, vocab: int) -> dict[str, NDArray[np.float32]]:
    matrix = tiny_hybrids.matrices(rng)
    ones = np.ones(WIDTH, dtype=np.float32)
    out = {"model.embed_tokens.weight": matrix(vocab, WIDTH, np.sqrt(WIDTH))}
    for n in range(LAYERS):
        name = f"model.layers.{n}"
        # Sharp attention: what a token sees has to matter, or a wrong mask would go unnoticed.
        out[f"{name}.self_attn.q_proj.weight"] = matrix(HEADS * HEAD_DIM, WIDTH, 1.5)
        out[f"{name}.self_attn.k_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, WIDTH, 1.5)
        out[f"{name}.self_attn.v_proj.weight"] = matrix(KV_HEADS * HEAD_DIM, WIDTH, 1.5)
        out[f"{name}.self_attn.o_proj.weight"] = matrix(WIDTH, HEADS * HEAD_DIM, 1.5)
        out[f"{name}.mlp.gate_proj.weight"] = matrix(INNER, WIDTH, 1.0)
        out[f"{name}.mlp.up_proj.weight"] = matrix(INNER, WIDTH, 1.0)
        out[f"{name}.mlp.down_proj.weight"] = matrix(WIDTH, INNER, 1.5)
        out[f"{name}.input_layernorm.weight"] = ones
        out[f"{name}.post_attention_layernorm.weight"] = ones
    out["model.norm.weight"] = ones
    out["lm_head.weight"] = matrix(vocab, WIDTH, 2.5)
    return out


KINDS: dict[str, tuple[Callable[[], dict[str, object]], Callable[..., dict[str, NDArray[np.float32]]]]] = {
    "llama": (_llama, _llama_weights),
    "qwen3.5": (tiny_hybrids.qwen3_5, tiny_hybrids.qwen3_5_weights),
    "lfm2": (tiny_hybrids.lfm2, tiny_hybrids.lfm2_weights),
}


def save_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    merges: list[tuple[str, str]] = []
    for merge in MERGES:
        left, right = merge.split(" ")
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary())}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[0], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
