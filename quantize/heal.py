"""From weights and a choice of layers to a healed model in a Hugging Face folder. Needs torch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specport.quantize import export, teacher
from specport.quantize.distil import Recipe, distil
from specport.quantize.reconstruct import prune

from specport.models import bundle
from specport.models.progress import Progress, part

HELD_OUT = 0.05  # of the shards; one at least
LOOKED_AT = 96  # texts of all shards that what stays is fitted to, about
FITTING = 0.1  # of the time, about


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

    work: folder of the checkpoint.
    mlp: share of the feed-forward channels that stay.
    head: ranges of the ids that the draft's head keeps, as in a bundle; None = all.
    recipe: entries of `distil.Recipe`. HELD_OUT of the shards is not trained on: the agreement is measured
    there. Arguments are plain data, since this runs in a process of its own (`worker.run`).
    """
    progress("reading weights", 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(Path(source), Path(temporary), trust_remote_code)
    apart = max(1, round(HELD_OUT * len(shards)))
    texts = [dialogue for path in shards[apart:] for dialogue in teacher.read_shard(Path(path))]
    unseen = [dialogue for path in shards[:apart] for dialogue in teacher.read_shard(Path(path))]
    channels: tuple[int, ...] = ()
    if dropped or mlp < 1.0:
        looked_at = [text.tokens.tolist() for text in texts[:: max(1, len(texts) // LOOKED_AT)]]
        counts = prune(model, dropped, mlp, looked_at, part(progress, 0.0, FITTING))
        channels = counts if mlp < 1.0 else ()
    kept = range(model.get_output_embeddings().weight.shape[0]) if head is None else bundle.expand(head)
    about = Recipe(**recipe)
    result = distil(model, kept, texts, unseen, about, Path(work), part(progress, FITTING, 1.0))
    if result.writes:
        folder = Path(out)
        model.save_pretrained(folder, safe_serialization=True)
        export.finish(Path(source), folder, trust_remote_code)
    return {
        "agreement_before": round(result.before, 4),
        "agreement": round(result.after, 4),
        "mlp_channels": channels,
        "trained": result.trained,
        "tokens_read": result.num_tokens,
        "seconds": round(result.seconds),
        "losses": [round(loss, 3) for loss in result.losses[:: max(1, len(result.losses) // 50)]],
        **asdict(about),
    }
