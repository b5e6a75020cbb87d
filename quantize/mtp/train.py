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
from specport.quantize.convert import export, package_faults
from specport.quantize.mtp.request import Recipe
from specport.quantize.mtp.student import MtpStudent
from specport.quantize.prune.prune import decoder_layers
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.text.hidden import with_hidden
from specport.quantize.train import batches, trainer

from specport.errors import ModelError
from specport.models import bundle
from specport.models.json_file import text_config
from specport.models.kinds import mtp
from specport.models.kinds.mtp import Join
from specport.progress import Progress

HELD_OUT = 0.05  # share of the shards, at least one
EXAMINED = 6000  # about so many tokens of held-out answers are drafted before and after the training
EXAMPLES, RIDGE, LEAST_SHARE = 40_000, 0.01, 0.1  # of the fit of a new head's join
ADDED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # what a layer adds with
KINDS = ("llama", "qwen2", "qwen3", "mistral")  # of targets; others scale or shift what this does not know


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
    """Train a head for the IR in `target`, and write its parts (`models.mtp`) into the folder `out`.

    source:  the target's weights before their conversion, whose last layer the head starts from.
    start:   folder of a head to start from in its place.
    work:    folder of the checkpoint.
    shards, states: files of text and of the states of whole texts; the share HELD_OUT is not trained on.
    columns: ranges of the ids that it can draft; None = all. recipe: entries of `Recipe`.
    Arguments are plain data (`worker.run`). Returns the facts that a bundle keeps as `distilled`.
    """
    how, config = Recipe(**recipe), text_config(Path(target))
    progress("reading the text", 0.0)
    learnt, held_out = divided(shards, states)
    trainer.check_texts(learnt, held_out)
    table, head = read_tables(Path(target), None if columns is None else bundle.expand(columns))
    ids = range(len(head)) if columns is None else bundle.expand(columns)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(start) if start is not None else Path(temporary) / "first"
        if start is None:
            assert source is not None  # either is given
            folder.mkdir()
            write_first(folder, Path(source), config, learnt, table, trust_remote_code)
        student = read_student(folder, table, head, ids, how)
    facts = json.dumps([asdict(how), [*ids][:: max(1, len(ids) // 64)]], sort_keys=True).encode()
    begun = b"".join(p.detach().numpy().tobytes()[:4096] for p in student.parameters() if p.requires_grad)
    run, writes = trainer.train(
        student, learnt, how, trainer.identity(learnt, student, facts, begun),
        Path(work) / trainer.CHECKPOINT, lambda student, _: survival(student, held_out, how),
        "training the MTP head", progress,
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


def divided(shards: Sequence[str], states: Sequence[str]) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return the texts to learn from, and held-out ones, with the states of whole texts.

    Kinds of text alternate from shard to shard: held-out shards are spread evenly.
    """
    count = max(1, round(HELD_OUT * len(shards)))
    texts = [with_hidden(Path(a), Path(b), whole=True) for a, b in zip(shards, states, strict=True)]
    step = len(texts) / count
    chosen = {int(step * (i + 0.5)) for i in range(count)}
    learnt = [text for i, shard in enumerate(texts) if i not in chosen for text in shard]
    return learnt, [text for i in sorted(chosen) for text in texts[i]]


def write_first(
    folder: Path,
    source: Path,
    config: Mapping[str, Any],
    texts: Sequence[Dialogue],
    table: NDArray[Any],
    trust_remote_code: bool,
) -> None:
    """Write a head to start from: the target's last layer and norm behind a join that is fitted on `texts`.

    The join gives the state that follows, as far as a linear map of state and token can (`fitted`). The layer
    at first adds nothing: its two output matrices are zeros.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        raise ModelError(
            f"MTP heads are not trained for models of the kind {kind}",
            f"choose a target of the kinds {', '.join(KINDS)}, or specport quantize head",
        )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(source, Path(temporary), trust_remote_code)
    last = decoder_layers(model)[-1]
    layer = {name: _half(tensor) for name, tensor in last.state_dict().items()}
    for name in ADDED:
        layer[name][:] = 0.0
    norm, join = fitted(texts, table, _half(model.model.norm.weight))
    mtp.write_parts(folder, config, int(config["num_hidden_layers"]) - 1, layer, norm, join)


def fitted(
    texts: Sequence[Dialogue], table: NDArray[Any], norm: NDArray[Any]
) -> tuple[NDArray[np.float16], Join]:
    """Return the gains of a head's norm, and its join, so that together they give the target's next state.

    The join is the least-squares map to that state from the token before it and the state before that, both
    scaled to about the same size in each dimension. norm: [width] gains of the target's last norm, behind
    which states are read. The norm makes each output as large as the target's own; the head's gains are
    smaller, by the share of a state that the map explains, as it would be too sure of itself otherwise.
    """
    states, tokens, after = _examples(texts)
    gains, inputs = [], []
    for values in (table[tokens].astype(np.float32), states):
        normed = values / np.sqrt(np.square(values).mean(axis=1, keepdims=True) + 1e-6)
        gains.append((1.0 / np.maximum(np.sqrt(np.square(normed).mean(axis=0)), 1e-2)).astype(np.float32))
        inputs.append(normed * gains[-1])
    read, wanted = np.concatenate(inputs, axis=1), after / norm.astype(np.float32)
    square = (read.T @ read).astype(np.float64)
    square[np.diag_indices_from(square)] += RIDGE * len(read)
    weight = np.linalg.solve(square, (read.T @ wanted).astype(np.float64)).T.astype(np.float16)
    found = read @ weight.astype(np.float32).T
    found /= np.sqrt(np.square(found).mean(axis=1, keepdims=True) + 1e-6)
    share = float((found * wanted).mean() / np.square(found).mean())
    token, state = gains
    return (norm * max(share, LEAST_SHARE)).astype(np.float16), Join(weight, token, state, 0.0)


def _examples(texts: Sequence[Dialogue]) -> tuple[NDArray[np.float32], Any, NDArray[np.float32]]:
    """Return states, the tokens behind them and the states behind those, from about EXAMPLES places."""
    states, tokens, after, count = [], [], [], 0
    for text in texts:
        if text.hidden is None or len(text.hidden) < 2:
            continue
        states.append(text.hidden[:-1])
        tokens.append(np.asarray(text.tokens)[1 : len(text.hidden)])
        after.append(text.hidden[1:])
        count += len(tokens[-1])
        if count >= EXAMPLES:
            break
    before, behind = (np.concatenate(rows).astype(np.float32) for rows in (states, after))
    return before, np.concatenate(tokens), behind


def read_student(
    folder: Path, table: NDArray[Any], head: NDArray[Any], columns: Sequence[int], recipe: Recipe
) -> MtpStudent:
    """Return the head in a folder as a student. Raises ModelError where it cannot be read."""
    package_faults.mend()
    from transformers import AutoModelForCausalLM

    join = mtp.read_join(folder)
    try:
        decoder: Any = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, trust_remote_code=False,
            attn_implementation="sdpa",
        )  # fmt: skip
    except Exception as error:  # transformers raises many types for unusable files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"{folder} cannot be read: {reason}", "train the head again") from error
    if join.width != table.shape[1]:
        raise ModelError(f"the MTP head is {join.width} wide, its target {table.shape[1]}")
    return MtpStudent(decoder, join, table, head, columns, recipe)


def write_student(folder: Path, student: MtpStudent, config: Mapping[str, Any]) -> None:
    """Write a student's parts in float16. config: of its target."""
    (layer,) = student.body.layers
    tensors = {name: _half(tensor) for name, tensor in layer.state_dict().items()}
    token, state = (gain.detach().float().cpu().numpy() for gain in (student.token_gain, student.state_gain))
    join = Join(_half(student.join.weight), token, state, 0.0)
    count = int(config["num_hidden_layers"])
    mtp.write_parts(folder, config, count - 1, tensors, _half(student.body.norm.weight), join)


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


def _half(tensor: Any) -> NDArray[np.float16]:
    array: NDArray[np.float16] = tensor.detach().float().cpu().numpy().astype(np.float16)
    return array
