"""The training job: an autoregressive decoder learns to fill in masks. Needs torch.

Its likeliest next token is known from text that the target wrote, so that no data set is needed. The student
starts from the decoder's weights (SDAR, arXiv 2510.06303, does so from Qwen3's).
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from specport.quantize.convert import diffusion, export
from specport.quantize.prune import depth
from specport.quantize.prune.prune import decoder_layers, drop_layers
from specport.quantize.text import dialogues
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import trainer
from specport.quantize.train.diffusion.recipe import Recipe
from specport.quantize.train.diffusion.student import DiffusionStudent, examine, some
from specport.quantize.train.parallel.training import add_mask

from specport.errors import InvalidInput
from specport.models.kinds.diffusion import DiffusionFacts
from specport.progress import Progress

RANKING_TEXTS = 16  # texts on which layers are compared


def make(
    source: str,
    work: str,
    out: str,
    shards: Sequence[str],
    recipe: Mapping[str, Any],
    layers: int | None,
    vocab: int,
    ends: Sequence[int],
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Train the model at `source` on `shards`, and write the Hugging Face folder `out`.

    source: a decoder, or a diffusion model that was trained before.
    work:   folder of the checkpoint. The first shard is held out.
    layers: number of layers to keep; None = all. Those that change the text's states least are dropped.
    vocab:  ids that the tokenizer knows; the mask is the first one behind them that no text has.
    ends:   ids that end a text.
    Arguments are plain data, since this runs in a process of its own (`worker.run`). Returns entries of
    `about.About`, and a sample of the losses. Raises InvalidInput and ModelError.
    """
    about = Recipe(**recipe)
    held_out, texts = (whole(dialogues.read_shards(paths), about.block) for paths in (shards[:1], shards[1:]))
    trainer.check_texts(texts, held_out)
    progress("reading weights", 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        known = diffusion.read_to_train(Path(source))
        model = known[0] if known else export.load_source(Path(source), Path(temporary), trust_remote_code)
    dropped = dropped_layers(model, layers, texts)
    drop_layers(model, dropped)
    mask = known[1].mask_id if known else add_mask(model, vocab, [*texts, *held_out])
    student = DiffusionStudent(model, mask, ends, about).float()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("embed_tokens" not in name)
    facts = b"diffusion", json.dumps([asdict(about), mask, [*ends], [*dropped]], sort_keys=True).encode()
    run, writes = trainer.train(
        student, texts, about, trainer.identity(texts, student, *facts), Path(work) / trainer.CHECKPOINT,
        lambda student, device: examine(student, held_out, about, device),
        "training to fill in masks", progress,
    )  # fmt: skip
    if writes:
        with torch.no_grad():
            model.get_input_embeddings().weight[mask] = student.mask
        model.save_pretrained(out)
        export.finish(Path(source), Path(out), trust_remote_code)
        diffusion.mark(Path(out), DiffusionFacts(mask, about.block))
    return {
        "layers": len(decoder_layers(model)),
        "dropped": [*dropped],
        "mask": mask,
        "target_perplexity": perplexity(some(held_out)),
        "before": run.before,
        "after": run.after,
        "tokens_read": run.num_tokens,
        "steps": len(run.losses),
        "seconds": round(run.seconds),
        "losses": trainer.sample_of(run.losses),
    }


def whole(texts: Sequence[Dialogue], block: int) -> list[Dialogue]:
    """Return the texts whose answer has a whole block."""
    return [text for text in texts if len(text.tokens) - text.start >= block]


def perplexity(texts: Sequence[Dialogue]) -> float:
    """Return that of the answers under the model that wrote them greedily."""
    logs = np.concatenate([np.log(np.maximum(text.top_probs[:, 0], 1e-9)) for text in texts])
    return round(math.exp(-float(logs.mean())), 3)


def dropped_layers(model: Any, layers: int | None, texts: Sequence[Dialogue]) -> tuple[int, ...]:
    """Return the layers to drop: those of least block influence on some texts (arXiv 2403.03853).

    Raises InvalidInput for more layers than there are.
    """
    total = len(decoder_layers(model))
    if layers is None or layers == total:
        return ()
    if not 1 <= layers <= total:
        raise InvalidInput(f"the model has {total} layers, not {layers}", f"choose from 1 to {total}")
    found = []
    with torch.no_grad():
        for text in texts[:RANKING_TEXTS]:
            ids = torch.from_numpy(text.tokens.astype(np.int64))[None]
            states = model.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
            found.append(torch.cat(states).float().numpy())
    return tuple(sorted(depth.by_influence(np.concatenate(found, axis=1), total - layers)))
