"""A tiny model whose slim verifier is of use: some of its layers hardly change the residual stream."""

from __future__ import annotations

from pathlib import Path

from support.tiny import tiny_models

LAYERS, IDLE = 5, (1, 3)


def save(folder: Path, kind: str = "qwen2") -> None:
    """Save a random model of LAYERS layers, of which IDLE add little."""
    import torch

    model = tiny_models.save_hf(folder, kind, LAYERS, max_position_embeddings=512)
    with torch.no_grad():
        for layer in IDLE:
            for part in (model.model.layers[layer].self_attn.o_proj, model.model.layers[layer].mlp.down_proj):
                part.weight.mul_(0.02)
    model.save_pretrained(folder)
