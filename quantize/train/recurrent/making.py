"""Making of a recurrent draft head, in a process of its own: read text and states, train, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file
from specport.backends.openvino.tables import read_tables
from specport.backends.torch.hidden_head import RecurrentCell
from specport.quantize.text.hidden import divided
from specport.quantize.train import trainer
from specport.quantize.train.recurrent import start
from specport.quantize.train.recurrent.recipe import Recipe
from specport.quantize.train.recurrent.training import train_head

from specport.models import bundle
from specport.models.kinds.recurrent import WEIGHTS, Recurrent
from specport.models.weight_sketch import last_norm
from specport.progress import Progress


def train(
    target: str,
    work: str,
    out: str,
    shards: Sequence[str],
    states: Sequence[str],
    columns: Sequence[Sequence[int]] | None,
    shape: Mapping[str, Any],
    recipe: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Train a head for the IR in `target`, and write its weights into the folder `out`.

    work:    folder of the checkpoint.
    shards, states: files of text and of its hidden states; some are held out (`hidden.divided`).
    columns: ranges of the ids that it can draft; None = all.
    shape:   entries of `Recurrent` but the width. recipe: entries of `recipe.Recipe`.
    Arguments are plain data (`worker.run`). Returns the facts that a bundle keeps as `distilled`, and as
    `recurrent` the shape.
    """
    learnt, held_out = divided(shards, states)
    trainer.check_texts(learnt, held_out)
    progress("reading the target's embeddings", 0.0)
    kept = None if columns is None else bundle.expand(columns)
    table, head = read_tables(Path(target), kept)
    about = Recurrent(
        tuple(shape["layers"]), table.shape[1], *(shape[n] for n in ("inner", "blocks", "depth"))
    )
    how = Recipe(**recipe)
    cell = RecurrentCell(about)
    ids = range(len(head)) if kept is None else kept
    found = train_head(
        cell, table, head, ids, learnt, held_out, how, Path(work), progress,
        lambda: start.fit(cell, learnt, table, last_norm(Path(target)), how.seed),
    )  # fmt: skip
    if found.writes:
        save_file(dict(found.weights), Path(out) / WEIGHTS)
    return {
        "survival_before": found.survival_before,
        "survival": found.survival,
        "tokens_read": found.num_tokens,
        "seconds": round(found.seconds),
        "losses": trainer.sample_of(found.losses),
        "parameters": about.num_parameters,
        **asdict(how),
        "recurrent": asdict(about),
    }
