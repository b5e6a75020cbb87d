"""Tiny random pair models, and what they compute as one pass over a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from support.tiny import tiny_models

RECIPE = {"rank": 4, "alpha": 8.0, "batch_tokens": 96, "rollout": 8}


def network(kind: str = "llama", **changes: Any) -> Any:
    """A pair model in training, all of whose parts are random."""
    import torch
    from specport.quantize.pipo.network import PairNetwork
    from specport.quantize.pipo.recipe import Recipe

    changes = {"tie_word_embeddings": kind != "llama", **changes}
    found = PairNetwork(tiny_models.hf_model(kind, **changes), Recipe(**RECIPE)).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.requires_grad:
                scale = 0.3 if name.startswith("model.") else 0.1
                parameter.add_(torch.randn_like(parameter) * scale)
        found.compressor.down.weight.mul_(3)
    return found


def save(folder: Path, found: Any) -> Path:
    """Write a pair model whose original is in `folder` / "original"; return its folder."""
    from specport.quantize.pipo.export import write_folder

    original = folder / "original"
    original.mkdir(parents=True)
    tiny_models.save_tokenizer(original)
    write_folder(found, original, folder / "pipo", "tiny", dtype="float32")
    return folder / "pipo"


def reference(found: Any, tokens: Sequence[int], widths: Sequence[int]) -> tuple[Any, Any, Any]:
    """Return by one pass over a text in pairs of these widths: logits behind each pair, those behind the
    token that follows, and the confidences. The text has a token more than its pairs."""
    import numpy as np
    import torch

    ends = np.cumsum(widths)
    begins = ends - np.asarray(widths)
    text = np.asarray(tokens)
    second = np.where(np.asarray(widths) == 2, text[np.minimum(begins + 1, len(text) - 1)], found.vocab)
    with torch.no_grad():
        states = found.states(torch.from_numpy(text[begins])[None], torch.from_numpy(second)[None])
        seconds = found.second_states(states, torch.from_numpy(text[ends])[None])
        judged = found.confidence(states, seconds).sigmoid()
        return tuple(x[0].numpy() for x in (found.head(states), found.head(seconds), judged))
