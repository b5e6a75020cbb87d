"""Writes a decoder of random weights as large as the ones people run, shard by shard, in little memory.

    python tests/benchmarks/models/big_model.py OUT --shape 7b --tokenizer MODEL.gguf

The shapes are Qwen2.5's. The folder is what a hub holds of such a model: shards of bfloat16 weights, their
index, config.json and tokenizer. Only some rows of one matrix are in memory at a time. Matrices keep the size
of what they multiply, so that texts vary and nothing overflows. A seed always gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.models.gguf import file as gguf_file
from specport.progress import Progress, progress_bar, silent
from specport.text import gguf_tokenizer

_COMMON: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16",
    "hidden_act": "silu", "vocab_size": 152064, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 32768, "use_sliding_window": False, "tie_word_embeddings": False,
    "bos_token_id": 151643, "eos_token_id": 151643,
}  # fmt: skip
# 7b is Qwen2.5-7B; 2b is still large enough to be read in 16 bits; small is for trying this out.
SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4},
    "2b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 16, "num_key_value_heads": 4},
    "small": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip
_AT_ONCE = 1 << 24  # elements that are drawn at a time
_GAIN = 1.3


def write(
    folder: Path, shape: str, tokenizer: Path, shard_bytes: int, seed: int = 0, progress: Progress = silent
) -> int:
    """Write the model; return the bytes of its largest shard. tokenizer: a GGUF file that has one."""
    folder.mkdir(parents=True, exist_ok=True)
    gguf_tokenizer.save(gguf_file.read_header(tokenizer), folder)
    config = _COMMON | SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    shards = [*_shards(tensors(config), shard_bytes)]
    rng = np.random.default_rng(seed)
    names: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        progress("writing shards", number / len(shards))
        _write_shard(folder / name, shard, rng)
        names |= dict.fromkeys(shard, name)
    total = sum(2 * math.prod(extents) for shard in shards for extents in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
    return max(path.stat().st_size for path in folder.glob("*.safetensors"))


def tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a Qwen2 of this configuration, in the order of the file."""
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    cached = width // config["num_attention_heads"] * config["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, width)}
    for number in range(config["num_hidden_layers"]):
        layer, attention = f"model.layers.{number}", f"model.layers.{number}.self_attn"
        for name, rows in (("q", width), ("k", cached), ("v", cached)):
            found[f"{attention}.{name}_proj.weight"] = (rows, width)
            found[f"{attention}.{name}_proj.bias"] = (rows,)
        found[f"{attention}.o_proj.weight"] = (width, width)
        found[f"{layer}.mlp.gate_proj.weight"] = found[f"{layer}.mlp.up_proj.weight"] = (inner, width)
        found[f"{layer}.mlp.down_proj.weight"] = (width, inner)
        for name in ("input", "post_attention"):
            found[f"{layer}.{name}_layernorm.weight"] = (width,)
    return found | {"model.norm.weight": (width,), "lm_head.weight": (vocab, width)}


def _shards(shapes: Mapping[str, tuple[int, ...]], most: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """Yield the weights of each file: as many in a row as fit."""
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, extents in shapes.items():
        own = 2 * math.prod(extents)
        if shard and size + own > most:
            yield shard
            shard, size = {}, 0
        shard[name], size = extents, size + own
    yield shard


def _write_shard(path: Path, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, extents in shapes.items():
        begin, end = end, end + 2 * math.prod(extents)
        entries[name] = {"dtype": "BF16", "shape": extents, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, extents in shapes.items():
            for values in _random(name, extents, rng):
                file.write((values.view("<u4") >> 16).astype("<u2").tobytes())  # bfloat16, rounded down


def _random(name: str, extents: Sequence[int], rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Yield a weight in pieces."""
    if len(extents) == 1:
        yield (rng.standard_normal(extents, dtype=np.float32) * np.float32(0.05)) + np.float32("norm" in name)
        return
    scale = np.float32(1.0 if "embed" in name else _GAIN * extents[-1] ** -0.5)
    left = math.prod(extents)
    while left:
        count = min(left, _AT_ONCE)
        yield rng.standard_normal(count, dtype=np.float32) * scale
        left -= count


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--tokenizer", type=Path, required=True, help="GGUF file with Qwen2.5's tokenizer")
    parser.add_argument("--shard-gb", type=float, default=3.95, help="size of a shard (as on the hub)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with progress_bar() as progress:
        largest = write(
            options.out, options.shape, options.tokenizer, int(options.shard_gb * 1e9), options.seed, progress
        )
    print(f"{options.out}: the largest shard has {largest / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
