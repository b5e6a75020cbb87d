"""Tiny random Whisper models in Hugging Face folders, with a tokenizer of bytes and a few special tokens."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

MELS, FRAMES, CONTEXT, STAMPS = 8, 16, 160, 40
_BEGIN = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>"]
_REST = [
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
]
MERGES = 30  # tokens of two letters


def make(
    folder: Path,
    *,
    seed: int = 0,
    english: bool = False,
    layers: int = 2,
    encoder_of: Path | None = None,
    width: int = 32,
    frames: int = FRAMES,
    context: int = CONTEXT,
    mels: int = MELS,
    encoder_layers: int = 2,
) -> Path:
    """Write a model. english: another vocabulary, without languages in use. encoder_of: shares its encoder.

    frames: of the encoder's output; 1500 = real windows of 30 s. context: most tokens of the decoder.
    mels:   bins of the features: 80, and 128 from large-v3 on.

    Its weights are large enough that the text depends on all of what is heard and said.
    """
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    first = _tokenizer(folder, english)
    config = WhisperConfig(
        vocab_size=first + len(_BEGIN) + len(_REST) + STAMPS,
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=frames,
        max_target_positions=context,
        decoder_start_token_id=first + 1,
        bos_token_id=first,
        eos_token_id=first,
        pad_token_id=first,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "positions" not in name:
                weight.normal_(std=2.0 * weight.shape[-1] ** -0.5 if "embed" not in name else 0.4)
            elif name.endswith("bias"):
                weight.normal_(std=0.05)
        if encoder_of is not None:
            other = WhisperForConditionalGeneration.from_pretrained(encoder_of)
            model.model.encoder.load_state_dict(other.model.encoder.state_dict())
    model.save_pretrained(folder)
    generation = {
        "suppress_tokens": [first + len(_BEGIN), first + 1, 5],
        "begin_suppress_tokens": [32, first],
        "is_multilingual": not english,
        "alignment_heads": [[1, 0], [layers - 1, 1]],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def _tokenizer(folder: Path, english: bool) -> int:
    """Write tokenizer.json; return the id of the end of text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    letters = "etaoinshr" if english else "nseitarho"
    pairs = [(a, b) for a in letters for b in letters][:MERGES]
    tokens = [*alphabet, *(a + b for a, b in pairs)]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = [*_BEGIN, *_REST]
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in special])
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return len(tokens)


def features(seed: int = 0, mels: int = MELS) -> np.ndarray:
    """Return the features of a window [mels, 2 frames]."""
    return np.random.default_rng(seed).normal(size=(mels, 2 * FRAMES)).astype(np.float32)


def write_ctranslate2(source: Path, folder: Path, *, quantized: bool = False) -> Path:
    """Write a Hugging Face model in CTranslate2's format, weights of linear layers in INT8 if asked for."""
    from safetensors.numpy import load_file

    weights = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    arrays: dict[str, np.ndarray] = {}

    def put(name: str, array: np.ndarray) -> None:
        if quantized and name.endswith("/weight") and array.ndim == 2:
            scale = 127 / np.abs(array).max(axis=1)
            arrays[name] = np.rint(array * scale[:, None]).astype(np.int8)
            arrays[f"{name}_scale"] = scale.astype(np.float32)
        else:
            arrays[name] = array

    def norm(ours: str, theirs: str) -> None:
        put(f"{ours}/gamma", weights[f"{theirs}.weight"])
        put(f"{ours}/beta", weights[f"{theirs}.bias"])

    def linear(ours: str, *theirs: str) -> None:
        put(f"{ours}/weight", np.concatenate([weights[f"{name}.weight"] for name in theirs]))
        biases = [weights.get(f"{name}.bias", np.zeros(config["d_model"], np.float32)) for name in theirs]
        put(f"{ours}/bias", np.concatenate(biases))

    put("decoder/embeddings/weight", weights["model.decoder.embed_tokens.weight"])
    for side in ("encoder", "decoder"):
        put(f"{side}/position_encodings/encodings", weights[f"model.{side}.embed_positions.weight"])
        arrays[f"{side}/num_heads"] = np.array(config[f"{side}_attention_heads"], np.int16)
        norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for i in range(config[f"{side}_layers"]):
            ours, theirs = f"{side}/layer_{i}", f"model.{side}.layers.{i}"
            own = [f"{theirs}.self_attn.{x}_proj" for x in ("q", "k", "v", "out")]
            norm(f"{ours}/self_attention/layer_norm", f"{theirs}.self_attn_layer_norm")
            linear(f"{ours}/self_attention/linear_0", *own[:3])
            linear(f"{ours}/self_attention/linear_1", own[3])
            if side == "decoder":
                other = [f"{theirs}.encoder_attn.{x}_proj" for x in ("q", "k", "v", "out")]
                norm(f"{ours}/attention/layer_norm", f"{theirs}.encoder_attn_layer_norm")
                linear(f"{ours}/attention/linear_0", other[0])
                linear(f"{ours}/attention/linear_1", *other[1:3])
                linear(f"{ours}/attention/linear_2", other[3])
            norm(f"{ours}/ffn/layer_norm", f"{theirs}.final_layer_norm")
            linear(f"{ours}/ffn/linear_0", f"{theirs}.fc1")
            linear(f"{ours}/ffn/linear_1", f"{theirs}.fc2")
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            put(f"encoder/{conv}/{kind}", weights[f"model.encoder.{conv}.{kind}"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.bin").write_bytes(packed(arrays))
    for name in ("tokenizer.json",):
        (folder / name).write_bytes((source / name).read_bytes())
    generation = json.loads((source / "generation_config.json").read_text())
    theirs = {
        "suppress_ids": generation["suppress_tokens"],
        "suppress_ids_begin": generation["begin_suppress_tokens"],
        "alignment_heads": generation["alignment_heads"],
    }
    (folder / "config.json").write_text(json.dumps(theirs))
    return folder


def packed(arrays: Mapping[str, np.ndarray], spec: str = "WhisperSpec") -> bytes:
    """Return arrays as the content of model.bin, version 6."""
    kinds = {np.dtype("f4"): 0, np.dtype("i1"): 1, np.dtype("i2"): 2, np.dtype("i4"): 3, np.dtype("f2"): 4}

    def text(value: str) -> bytes:
        data = value.encode() + b"\0"
        return struct.pack("<H", len(data)) + data

    parts: list[Any] = [struct.pack("<I", 6), text(spec), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        size = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        data = np.ascontiguousarray(array).tobytes()
        parts += [text(name), size, struct.pack("<BI", kinds[array.dtype], len(data)), data]
    return b"".join([*parts, struct.pack("<I", 0)])
