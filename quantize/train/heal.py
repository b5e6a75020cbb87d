"""From weights and a choice of layers to a healed model in a Hugging Face folder. Needs torch."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specport.quantize.convert import export
from specport.quantize.prune.reconstruct import prune
from specport.quantize.text import teacher
from specport.quantize.train import distilled
from specport.quantize.train.distil import Recipe, check_texts, distil

from specport.models import bundle
from specport.models.atomic import write_json
from specport.progress import Progress, part

HELD_OUT = 0.05  # of the shards; one at least
LOOKED_AT = 96  # texts of all shards that what stays is fitted to, about
FITTING = 0.1  # of the time, about
FITTED, PRUNED = "fitted", "pruned.json"


def heal(
    source: str,
    work: str,
    out: str,
    dropped: Sequence[int],
    mlp: float,
    head: Sequence[Sequence[int]] | None,
    shards: Sequence[str],
    recipe: Mapping[str, Any],
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Prune, train on `shards`, and write the folder `out`. Returns what a bundle says of it.

    work: folder of the checkpoint, and of the pruned model: what is there is gone on with.
    mlp: share of the feed-forward channels that stay.
    head: ranges of the ids that the draft's head keeps, as in a bundle; None = all.
    recipe: entries of `distil.Recipe`. HELD_OUT of the shards is not trained on: the agreement is measured
    there. Arguments are plain data, since this runs in a process of its own (`worker.run`).
    """
    apart = max(1, round(HELD_OUT * len(shards)))
    texts = [dialogue for path in shards[apart:] for dialogue in teacher.read_shard(Path(path))]
    unseen = [dialogue for path in shards[:apart] for dialogue in teacher.read_shard(Path(path))]
    check_texts(texts, unseen)  # before what stays is fitted to them
    model, channels = _pruned(
        Path(source),
        Path(work) / FITTED,
        dropped,
        mlp,
        texts,
        trust_remote_code,
        part(progress, 0.0, FITTING),
    )
    kept = range(model.get_output_embeddings().weight.shape[0]) if head is None else bundle.expand(head)
    about = Recipe(**recipe)
    result = distil(model, kept, texts, unseen, about, Path(work), part(progress, FITTING, 1.0))
    facts = {
        "agreement_before": round(result.before, 4),
        "agreement": round(result.after, 4),
        "mlp_channels": channels,
        "trained": result.trained,
        "tokens_read": result.num_tokens,
        "seconds": round(result.seconds),
        "losses": [round(loss, 3) for loss in result.losses[:: max(1, len(result.losses) // 50)]],
        "layers": model.config.num_hidden_layers,
        **asdict(about),
    }
    if result.writes:
        folder = Path(out)
        model.save_pretrained(folder, safe_serialization=True)
        export.finish(Path(source), folder, trust_remote_code)
        distilled.write(folder, facts, head)
    return facts


def _pruned(
    source: Path,
    kept: Path,
    dropped: Sequence[int],
    mlp: float,
    texts: Sequence[teacher.Dialogue],
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[Any, tuple[int, ...]]:
    """The pruned and fitted model, and how many channels stay of how many; () = all.

    Fitting takes minutes, so the result is written to the folder `kept`, and read from there the next time.
    """
    progress("reading weights", 0.0)
    how = {"dropped": sorted(dropped), "mlp": mlp}
    done = _how(kept)
    counts = done.pop("channels", None)
    same = counts is not None and done == how
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(kept if same else source, Path(temporary), trust_remote_code)
    if same:
        return model, tuple(counts)
    if not dropped and mlp == 1.0:
        return model, ()
    looked_at = [text.tokens.tolist() for text in texts[:: max(1, len(texts) // LOOKED_AT)]]
    import torch

    pruned = prune(
        model.to("cuda" if torch.cuda.is_available() else "cpu"), dropped, mlp, looked_at, progress
    )
    model.to("cpu")
    channels = pruned if mlp < 1.0 else ()
    if os.environ.get("RANK", "0") == "0":  # of several processes that train together, the first
        shutil.rmtree(kept, ignore_errors=True)
        model.save_pretrained(kept, safe_serialization=True)
        # Last: now it is whole.
        write_json(kept / PRUNED, {**how, "channels": channels})
    return model, channels


def _how(kept: Path) -> dict[str, Any]:
    """How the model in this folder was pruned; empty where there is none, or half of one."""
    try:
        return dict(json.loads((kept / PRUNED).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
