"""Making of an MTP head, in a process of its own: read text and states, train, write its folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from specport.backends.openvino.tables import read_tables
from specport.quantize.convert import package_faults, whole_model
from specport.quantize.mtp.request import Recipe
from specport.quantize.mtp.start import fit, half, write_first
from specport.quantize.mtp.student import MtpStudent
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.text.hidden import divided
from specport.quantize.train import batches, trainer

from specport.errors import ModelError
from specport.models import bundle
from specport.models.json_file import text_config
from specport.models.kinds import mtp
from specport.models.kinds.mtp import Join
from specport.progress import Progress

EXAMINED = 6000  # about so many tokens of held-out answers are drafted before and after the training


def train(
    target: str,
    source: str | None,
    start: str | None,
    work: str,
    out: str,
    shards: Sequence[str],
    states: Sequence[str],
    columns: Sequence[Sequence[int]] | None,
    recipe: Mapping[str, Any],
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Train a head for the IR in `target`, and write its parts (`models.kinds.mtp`) into the folder `out`.

    source:  the target's weights before their conversion, whose last layer the head starts from.
    start:   folder of a head to start from in its place.
    work:    folder of the checkpoint.
    shards, states: files of text and of the states of whole texts; some are held out (`hidden.divided`).
    columns: ranges of the ids that it can draft; None = all. recipe: entries of `Recipe`.
    Arguments are plain data (`worker.run`). Returns the facts that a bundle keeps as `distilled`.
    """
    how, config = Recipe(**recipe), text_config(Path(target))
    progress("reading the text", 0.0)
    learnt, held_out = divided(shards, states, whole=True)
    trainer.check_texts(learnt, held_out)
    table, head = read_tables(Path(target), None if columns is None else bundle.expand(columns))
    ids = range(len(head)) if columns is None else bundle.expand(columns)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(start) if start is not None else Path(temporary) / "first"
        if start is None:
            assert source is not None  # either is given
            folder.mkdir()
            write_first(folder, Path(source), config, trust_remote_code)
        student = read_student(folder, table, head, ids, how)
    facts = json.dumps([asdict(how), [*ids][:: max(1, len(ids) // 64)]], sort_keys=True).encode()
    begun = b"".join(p.detach().numpy().tobytes()[:4096] for p in student.parameters() if p.requires_grad)
    run, writes = trainer.train(
        student, learnt, how, trainer.identity(learnt, student, facts, begun),
        Path(work) / trainer.CHECKPOINT, lambda student, _: survival(student, held_out, how),
        "training the MTP head", progress, None if start else lambda: fit(student, learnt, table),
    )  # fmt: skip
    if writes:
        write_student(Path(out), student, config)
    return {
        "survival_before": run.before,
        "survival": run.after,
        "tokens_read": run.num_tokens,
        "seconds": round(run.seconds),
        "losses": trainer.sample_of(run.losses),
        "parameters": sum(p.numel() for p in student.parameters() if p.requires_grad),
        **asdict(how),
    }


def read_student(
    folder: Path, table: NDArray[Any], head: NDArray[Any], columns: Sequence[int], recipe: Recipe
) -> MtpStudent:
    """Return the head in a folder as a student. Raises ModelError where it cannot be read."""
    package_faults.mend()
    from transformers import AutoModelForCausalLM

    join = mtp.read_join(folder)
    decoder: Any = whole_model.read(
        AutoModelForCausalLM, folder, hint="train the head again", attn_implementation="sdpa"
    )
    if join.width != table.shape[1]:
        raise ModelError(f"the MTP head is {join.width} wide, its target {table.shape[1]}")
    return MtpStudent(decoder, join, table, head, columns, recipe)


def write_student(folder: Path, student: MtpStudent, config: Mapping[str, Any]) -> None:
    """Write a student's parts in float16. config: of its target."""
    (layer,) = student.body.layers
    tensors = {name: half(tensor) for name, tensor in layer.state_dict().items()}
    token, state = (gain.detach().float().cpu().numpy() for gain in (student.token_gain, student.state_gain))
    join = Join(half(student.join.weight), token, state, 0.0)
    count = int(config["num_hidden_layers"])
    mtp.write_parts(folder, config, count - 1, tensors, half(student.body.norm.weight), join)


def survival(student: Any, texts: Sequence[Dialogue], recipe: Recipe) -> list[float]:
    """Return by depth the share of sampled chains that are accepted down to it, on held-out answers."""
    student = getattr(student, "module", student)  # unwrap it where several processes train
    total = np.cumsum([len(text.tokens) - text.start for text in texts])
    texts = texts[: 1 + int(np.searchsorted(total, EXAMINED))]
    found = []
    for groups in batches.plan(texts, 1.0, recipe.batch_tokens, seed=0):
        batch = batches.batch([texts[i] for i in groups[0]], student.head.device)
        found.append(student.acceptances(batch).cumprod(dim=1).cpu().numpy())
    whole = np.concatenate(found)
    return [round(float(share), 4) for share in whole.mean(axis=0)] if len(whole) else []
