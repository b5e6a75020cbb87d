"""From weights and a choice of layers to a healed model in a Hugging Face folder. Needs torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specport.quantize import export, teacher
from specport.quantize.choose import Choice
from specport.quantize.distil import Recipe, distil
from specport.quantize.prune import drop_layers

from specport.models.progress import Progress

if TYPE_CHECKING:
    from specport.quantize.build import Request

FOLDER = "healed"


def heal(
    source: Path,
    choice: Choice,
    head: Sequence[int] | None,
    shards: Sequence[Path],
    request: Request,
    work: Path,
    held_out: float,
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Prune, train on `shards`, and write `work / FOLDER`. Returns what to say of it in the bundle.

    held_out: share of the shards that is not trained on, and on which the agreement is measured.
    """
    progress("reading weights", 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(source, Path(temporary), trust_remote_code)
    drop_layers(model, choice.dropped)
    apart = max(1, round(held_out * len(shards)))
    texts = [dialogue for path in shards[apart:] for dialogue in teacher.read_shard(path)]
    unseen = [dialogue for path in shards[:apart] for dialogue in teacher.read_shard(path)]
    recipe = Recipe(loss=request.loss, epochs=request.epochs, seed=request.seed)
    tokens = range(model.get_output_embeddings().weight.shape[0]) if head is None else head
    result = distil(model, tokens, texts, unseen, recipe, work, progress)
    folder = work / FOLDER
    model.save_pretrained(folder, safe_serialization=True)
    export.finish(source, folder, trust_remote_code)
    return {
        "agreement_before": round(result.before, 4),
        "agreement": round(result.after, 4),
        "tokens_read": result.num_tokens,
        "seconds": round(result.seconds),
        "losses": [round(loss, 3) for loss in result.losses[:: max(1, len(result.losses) // 50)]],
        "epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "seed": recipe.seed,
    }
