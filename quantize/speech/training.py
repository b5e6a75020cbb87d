"""Distillation of a cut Whisper decoder, in a process of its own: read, train, write.

It learns the target's ids and the likeliest tokens at each, from the target's own encoder states. Encoder and
embeddings stay the target's. `train/trainer.py` has the training loop.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from specport.quantize.convert import package_faults, whole_model
from specport.quantize.convert.whisper.export import WEIGHTS
from specport.quantize.speech.material import Material
from specport.quantize.speech.recipe import Recipe
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import trainer
from specport.quantize.train.attention_mask import additive
from specport.quantize.train.distil import agreement, train_student
from specport.quantize.train.losses import cross_entropies, divergences, picked
from specport.quantize.train.parallel.chains import PackedRows, packed_sample
from specport.quantize.train.parallel.examination import SURVIVAL, examine

from specport.models import tensors
from specport.models.atomic import write_json
from specport.models.kinds.parallel import Parallel
from specport.models.kinds.whisper import FACTS, find_encoder_key, find_head_tokens, noted, read_shape
from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "model.decoder."
_FROZEN = ("embed_tokens", "embed_positions")
_EMBEDDING = f"{_PREFIX}embed_tokens.weight"
_PIECE = 256  # predictions whose log-probabilities are in memory at a time


class SpeechStudent(torch.nn.Module):  # type: ignore[misc]
    """A Whisper decoder that reads the encoder's states of each window.

    Called with a batch whose `hidden` are the states [windows * frames, width], it returns loss and hits.
    """

    def __init__(self, decoder: Any, recipe: Recipe, head: Sequence[int] | None = None) -> None:
        """Take a decoder. head: ids that its head keeps; None = all. They have columns, in this order."""
        super().__init__()
        self.body = decoder
        self._recipe = recipe
        vocab = decoder.embed_tokens.weight.shape[0]
        kept = torch.arange(vocab) if head is None else torch.as_tensor([*head])
        self.register_buffer("kept", kept, persistent=False)
        column = torch.full((vocab,), -1)
        column[kept] = torch.arange(len(kept))
        self.register_buffer("column", column, persistent=False)

    def forward(self, batch: dict[str, Tensor], step: int = 0, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the texts' tokens, and how many of them the student would propose."""
        # Padding is on the right, where no token of the text sees it.
        hidden = self.body(
            input_ids=batch["ids"], encoder_hidden_states=_states(batch), use_cache=False
        ).last_hidden_state
        losses, right = self._losses(self._log_q(hidden[batch["rows"], batch["columns"]]), batch)
        return losses.mean(), right.sum()

    def _log_q(self, outputs: Tensor) -> Tensor:
        """Return [predictions, columns] log-probabilities of the head's inputs [predictions, width]."""
        logits = outputs @ self.body.embed_tokens.weight[self.kept].T.to(outputs.dtype)
        return torch.log_softmax(logits.float(), dim=-1)

    def _losses(self, log_q: Tensor, facts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return [predictions] the losses, and whether the text's token is the likeliest."""
        answer = self.column[facts["answer"]]
        top = picked(log_q, self.column[facts["top_ids"]])
        divergence = divergences(top, facts["top_probs"], "kl")
        entropy, _ = cross_entropies(picked(log_q, answer[:, None])[:, 0])
        return self._recipe.kl * divergence + self._recipe.ce * entropy, log_q.argmax(dim=-1) == answer


class ParallelSpeechStudent(SpeechStudent):
    """The same with several tokens from one pass, as `train/parallel/` trains drafts for text.

    Called with a batch, it returns the loss, and the hits of depth 0.
    """

    def __init__(self, decoder: Any, recipe: Recipe, head: Sequence[int] | None, mask_token: int) -> None:
        """Take a decoder. head: as for `SpeechStudent`. mask_token: MASK, which no head has."""
        super().__init__(decoder, recipe, range(mask_token) if head is None else head)
        self.mask_token = mask_token
        self.mask = torch.nn.Parameter(decoder.embed_tokens.weight[mask_token].detach().clone())

    def forward(self, batch: dict[str, Tensor], step: int = 0, num_steps: int = 1) -> tuple[Tensor, Tensor]:
        packed = packed_sample(batch, self._recipe.parallel, self.mask_token, self._recipe.seed, step)
        losses, right = self._losses(self._log_q(self.outputs(packed)), packed.facts)
        hits = (right & (packed.prediction_depths == 0)).sum()
        return (packed.weights * losses).sum() / packed.weights.sum(), hits

    def outputs(self, packed: PackedRows) -> Tensor:
        """Return the head's inputs [predictions, width]."""
        embedded = self.body.embed_tokens(packed.ids)
        is_mask = (packed.ids == self.mask_token)[:, :, None]
        embedded = torch.where(is_mask, self.mask.to(embedded.dtype), embedded)
        hidden = self.body(
            inputs_embeds=embedded,
            attention_mask=additive(packed.visible(), embedded.dtype),
            position_ids=packed.positions,
            encoder_hidden_states=_states(packed.facts),
            use_cache=False,
        ).last_hidden_state
        return hidden[packed.texts, packed.places]

    def pieces(self, outputs: Tensor, packed: PackedRows) -> Iterator[tuple[Tensor, slice, Tensor]]:
        """Yield log-probabilities [piece, columns] of some predictions, where they are, and the columns."""
        for start in range(0, len(outputs), _PIECE):
            where = slice(start, start + _PIECE)
            yield self._log_q(outputs[where]), where, self.column


def _states(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the encoder's states [windows, frames, width] of a batch."""
    return batch["hidden"].unflatten(0, (len(batch["ids"]), -1))


def train(
    source: str,
    heard: str,
    work: str,
    out: str,
    held_out: Sequence[int],
    recipe: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Train the decoder of the model in `source`, and write the model into the folder `out`.

    heard:    folder of the material. work: folder of the checkpoint.
    held_out: windows that are not trained on. recipe: entries of `Recipe`.
    Arguments are plain data (`worker.run`). Returns what `About` keeps of it.
    """
    package_faults.mend()
    from transformers import WhisperForConditionalGeneration

    how, folder = Recipe(**recipe), Path(source)
    shape = read_shape(folder)
    texts = Material(Path(heard), (shape.frames, shape.width)).texts()
    chosen = {*held_out}
    learnt = [text for i, text in enumerate(texts) if i not in chosen]
    kept = [text for i, text in enumerate(texts) if i in chosen]
    trainer.check_texts(learnt, kept)
    progress("reading the model", 0.0)
    model: Any = whole_model.read(WhisperForConditionalGeneration, folder, dtype=torch.float32)
    head, mask = find_head_tokens(folder, shape.vocab), shape.vocab - 1
    examined: Callable[[Any, Any], Any]
    if how.parallel:
        student: SpeechStudent = ParallelSpeechStudent(model.model.decoder, how, head, mask)
        examined = partial(_examined_in_parallel, kept, how)
    else:
        student, examined = SpeechStudent(model.model.decoder, how, head), partial(_examined, kept, how)
    del model  # the encoder has done its work
    run, writes, better = train_student(
        student, learnt, how, (b"speech", json.dumps(asdict(how), sort_keys=True).encode()), Path(work),
        examined, lambda found: sum(found[SURVIVAL]), "distilling", progress, _FROZEN,
    )  # fmt: skip
    after = run.after if better else run.before
    if writes:
        parallel = Parallel(how.parallel, mask, tuple(after["temperatures"])) if how.parallel else None
        _write(student, folder, Path(out), parallel)
    return {
        "agreement_before": run.before[SURVIVAL][0],
        "agreement": after[SURVIVAL][0],
        "trained": better,
        "tokens_read": run.num_tokens,
        "train_seconds": round(run.seconds, 1),
        "losses": trainer.sample_of(run.losses),
        "survival_before": run.before[SURVIVAL],
        SURVIVAL: after[SURVIVAL],
    }


def _examined(texts: Sequence[Dialogue], how: Recipe, student: Any, device: Any) -> dict[str, Any]:
    return {SURVIVAL: [agreement(student, texts, how.batch_tokens, device)]}


def _examined_in_parallel(
    texts: Sequence[Dialogue], how: Recipe, student: Any, device: Any
) -> dict[str, Any]:
    return examine(student, texts, how.parallel, how.batch_tokens, device)


def _write(student: SpeechStudent, source: Path, out: Path, parallel: Parallel | None) -> None:
    """Write the model of `source` with the student's weights, in the types of those there."""
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
    stored = tensors.in_folder(source)
    found: dict[str, Any] = dict(stored)

    def put(name: str, array: Any) -> None:
        found[name] = array.astype(tensors.DTYPES[stored[name].kind])

    for name, weight in student.body.named_parameters():
        if not any(part in name for part in _FROZEN):
            put(_PREFIX + name, weight.detach().cpu().numpy())
    if isinstance(student, ParallelSpeechStudent):
        table = stored[_EMBEDDING].array().copy()
        table[student.mask_token] = student.mask.detach().cpu().numpy()
        put(_EMBEDDING, table)
        head = find_head_tokens(source, student.mask_token + 1)
        write_json(out / FACTS, noted(find_encoder_key(source), head, parallel))
    tensors.write(out / WEIGHTS, found)
