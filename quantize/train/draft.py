"""Making of a distilled draft: prune, train, and write a Hugging Face folder. Needs torch."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specport.quantize.convert import export
from specport.quantize.prune.reconstruct import prune
from specport.quantize.text import dialogues
from specport.quantize.train import distilled, trainer
from specport.quantize.train.distil import distil
from specport.quantize.train.distilled import PARALLEL
from specport.quantize.train.parallel.training import Parallel, add_mask, train_parallel
from specport.quantize.train.recipe import Recipe

from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.kinds import bigrams
from specport.models.kinds import parallel as models
from specport.models.kinds.bigrams import Bigrams
from specport.outside import Format, Table
from specport.progress import Progress, part

HELD_OUT = 0.05  # share of the shards, at least one
FIT_TEXTS = 96  # about so many texts, of all shards, are used for fitting
FIT_TIME = 0.1  # share of the progress bar
FITTED, PRUNED = "fitted", "pruned.json"


def distil_draft(
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
    vocab: int = 0,
) -> dict[str, Any]:
    """Prune the model in `source`, train it on `shards`, and write the folder `out`.

    work:    folder of the checkpoint and of the pruned model, which a later run resumes from.
    dropped: numbers of the layers to drop. mlp: share of the feed-forward channels to keep.
    head:    ranges of the ids that the draft's head keeps, as in a bundle; None = all.
    shards:  files of text; the share HELD_OUT of them is not trained on, but measures the agreement.
    recipe:  entries of `recipe.Recipe`.
    vocab:   ids that the tokenizer knows, for a recipe that is parallel: MASK is the first id behind them.
    Arguments are plain data, since this runs in a process of its own (`worker.run`). Returns the facts that a
    bundle keeps as `distilled`.
    """
    count = max(1, round(HELD_OUT * len(shards)))
    held_out, texts = dialogues.read_shards(shards[:count]), dialogues.read_shards(shards[count:])
    trainer.check_texts(texts, held_out)  # before the fitting, which takes long
    model, channels = _pruned(
        Path(source),
        Path(work) / FITTED,
        dropped,
        mlp,
        texts,
        trust_remote_code,
        part(progress, 0.0, FIT_TIME),
    )
    about = Recipe(**recipe)
    mask = add_mask(model, vocab, [*texts, *held_out]) if about.parallel else None
    size = model.get_output_embeddings().weight.shape[0] if mask is None else mask
    kept = range(size) if head is None else bundle.expand(head)
    told = part(progress, FIT_TIME, 1.0)
    in_parallel: dict[str, Any] = {}
    pairs: Bigrams | None = None
    if mask is None:
        result = distil(model, kept, texts, held_out, about, Path(work), told)
    else:
        found = train_parallel(model, kept, mask, texts, held_out, about, Path(work), told)
        result, pairs, in_parallel = found.distillation, found.bigrams, _parallel_facts(model, found, mask)
    facts = {
        "agreement_before": round(result.before, 4),
        "agreement": round(result.after, 4),
        "mlp_channels": channels,
        "trained": result.trained,
        "tokens_read": result.num_tokens,
        "seconds": round(result.seconds),
        "losses": trainer.sample_of(result.losses),
        "layers": model.config.num_hidden_layers,
        **asdict(about),
        **in_parallel,
    }
    if result.writes:
        folder = Path(out)
        model.save_pretrained(folder)
        export.finish(Path(source), folder, trust_remote_code)
        if pairs is not None:
            bigrams.write(folder, pairs)
        distilled.write(folder, facts, head)
    return facts


def _parallel_facts(model: Any, found: Parallel, mask: int) -> dict[str, Any]:
    """Return the facts about parallel drafting, and note MASK in the config for vLLM and TensorRT-LLM.

    A draft whose training was undone drafts token by token.
    """
    survivals = {"survival_before": found.survival_before, "survival": found.survival}
    if not found.distillation.trained:
        return survivals
    model.config.spd_type, model.config.pard_token = "pard", mask
    manifest = models.Parallel(len(found.temperatures), mask, found.temperatures, found.bigrams is not None)
    if found.bigrams is not None:
        survivals["survival_unranked"] = found.unranked
    return {PARALLEL: asdict(manifest), **survivals}


def _pruned(
    source: Path,
    kept: Path,
    dropped: Sequence[int],
    mlp: float,
    texts: Sequence[dialogues.Dialogue],
    trust_remote_code: bool,
    progress: Progress,
) -> tuple[Any, tuple[int, ...]]:
    """Return the pruned and fitted model, and the channels kept and all of them; () = all are kept.

    Fitting takes minutes, so the result is written to the folder `kept`, where the next run finds it.
    """
    progress("reading weights", 0.0)
    request = {"dropped": sorted(dropped), "mlp": mlp}
    stored = _stored_request(kept)
    counts = stored.pop("channels", None)
    same = isinstance(counts, list) and stored == request
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(kept if same else source, Path(temporary), trust_remote_code)
    if same:
        return model, tuple(counts)
    if not dropped and mlp == 1.0:
        return model, ()
    fit_texts = [text.tokens.tolist() for text in texts[:: max(1, len(texts) // FIT_TEXTS)]]
    import torch

    pruned = prune(
        model.to("cuda" if torch.cuda.is_available() else "cpu"), dropped, mlp, fit_texts, progress
    )
    model.to("cpu")
    channels = pruned if mlp < 1.0 else ()
    if os.environ.get("RANK", "0") == "0":  # the first of several processes that train together
        shutil.rmtree(kept, ignore_errors=True)
        model.save_pretrained(kept)
        write_json(kept / PRUNED, {**request, "channels": channels})  # last, as it marks a complete folder
    return model, channels


_PRUNED = Format(Table, "what a model was pruned to")


def _stored_request(kept: Path) -> dict[str, Any]:
    """Return how the model in this folder was pruned; empty where there is no complete model."""
    return _PRUNED.find(kept / PRUNED) or {}
