"""The job that trains a pair model: supervised, then on-policy distillation, then the folder is written.

It runs in a process of its own (`worker.run`), so that its arguments and results are plain data. Each stage
has a checkpoint; one that is complete is not repeated.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from specport.quantize.convert import export
from specport.quantize.pipo import start
from specport.quantize.pipo.export import write_folder
from specport.quantize.pipo.network import PairNetwork
from specport.quantize.pipo.on_policy import OnPolicy
from specport.quantize.pipo.recipe import Pace, Recipe
from specport.quantize.pipo.supervised import Supervised, examine
from specport.quantize.text import dialogues
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import trainer

from specport.progress import Progress, part

SUPERVISED, ON_POLICY = "supervised.safetensors", "on_policy.safetensors"  # checkpoints
_EXAMINED = 6000  # about so many tokens of held-out text measure a stage


def pipo(
    source: str,
    name: str,
    work: str,
    out: str,
    shards: Sequence[str],
    recipe: Mapping[str, Any],
    ends: Sequence[int],
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Train the model at `source` on `shards`, and write the folder `out`.

    name: of the model. work: folder of the checkpoints. The first shard is held out. ends: tokens that end a
    text. Returns entries of `about.About`, and samples of the losses.
    """
    progress("reading weights", 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(Path(source), Path(temporary), trust_remote_code)
    given = Recipe(**recipe)
    network = PairNetwork(model.float(), given)
    held_out, texts = dialogues.read_shards(shards[:1]), dialogues.read_shards(shards[1:])
    share = 0.6 if given.distil_epochs else 1.0
    stages = train(
        network, texts, held_out, given, Path(work), frozenset(ends),
        part(progress, 0.0, share), part(progress, share, 1.0),
    )  # fmt: skip
    if stages["writes"]:
        write_folder(network, Path(source), Path(out), name, trust_remote_code=trust_remote_code)
    return {key: value for key, value in stages.items() if key != "writes"}


def train(
    network: PairNetwork,
    texts: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    recipe: Recipe,
    work: Path,
    ends: frozenset[int],
    supervised: Progress,
    on_policy: Progress,
) -> dict[str, Any]:
    """Train a network in place; return entries of `about.About`, and whether this process writes it.

    supervised, on_policy: told of the stages. Raises InvalidInput for too little text, and ModelError when a
    checkpoint cannot be read or written.
    """
    trainer.check_texts(texts, held_out)
    total = np.cumsum([len(text.tokens) - text.start for text in held_out])
    held_out = held_out[: 1 + int(np.searchsorted(total, _EXAMINED))]

    def measured(student: Any, device: Any) -> Any:
        student = getattr(student, "module", student)  # unwrap it where several processes train
        return examine(student.network, held_out, recipe.batch_tokens, device)

    facts = asdict(recipe)
    later = {key: facts.pop(key) for key in [*facts] if key.startswith(("distil", "rollout"))}
    identity = trainer.identity(texts, network, b"pipo, fitted", json.dumps(facts, sort_keys=True).encode())
    run, writes = trainer.train(
        Supervised(network, recipe), texts, Pace.supervised(recipe), identity, work / SUPERVISED, measured,
        "training on text", supervised, lambda: start.fit(network, texts, recipe.seed),
    )  # fmt: skip
    found: dict[str, Any] = {
        "before": run.before, "after": run.after, "tokens_read": run.num_tokens,
        "seconds": round(run.seconds), "losses": trainer.sample_of(run.losses),
    }  # fmt: skip
    if recipe.distil_epochs:
        identity = f"{identity}-{json.dumps(later, sort_keys=True)}"
        run, writes = trainer.train(
            OnPolicy(network, recipe, ends), texts, Pace.on_policy(recipe), identity, work / ON_POLICY,
            measured, "distilling on its own text", on_policy,
        )  # fmt: skip
        found |= {
            "distilled": run.after, "distil_steps": run.step, "distil_seconds": round(run.seconds),
            "distil_losses": trainer.sample_of(run.losses),
        }  # fmt: skip
    return {**found, "writes": writes}
