"""Distillation of a cut Whisper decoder, in a process of its own: read, train, write.

It learns the target's ids and the likeliest tokens at each, from the target's own encoder states. Encoder and
embeddings stay the target's. `train/trainer.py` has the training loop.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from specport.quantize.convert import package_faults, whole_model
from specport.quantize.convert.whisper.export import WEIGHTS
from specport.quantize.speech.material import Material
from specport.quantize.speech.recipe import Recipe
from specport.quantize.train import trainer
from specport.quantize.train.distil import agreement, train_student
from specport.quantize.train.losses import cross_entropies, divergences, picked

from specport.models import tensors
from specport.models.kinds.whisper import find_head_tokens, read_shape
from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "model.decoder."
_FROZEN = ("embed_tokens", "embed_positions")


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
        states = batch["hidden"].unflatten(0, (len(batch["ids"]), -1))
        # Padding is on the right, where no token of the text sees it.
        hidden = self.body(
            input_ids=batch["ids"], encoder_hidden_states=states, use_cache=False
        ).last_hidden_state
        outputs = hidden[batch["rows"], batch["columns"]]
        logits = outputs @ self.body.embed_tokens.weight[self.kept].T.to(outputs.dtype)
        log_q = torch.log_softmax(logits.float(), dim=-1)
        answer = self.column[batch["answer"]]
        top = picked(log_q, self.column[batch["top_ids"]])
        divergence = divergences(top, batch["top_probs"], "kl").mean()
        entropy = cross_entropies(picked(log_q, answer[:, None])[:, 0])[0].mean()
        hits = (log_q.argmax(dim=-1) == answer).sum()
        return self._recipe.kl * divergence + self._recipe.ce * entropy, hits


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
    student = SpeechStudent(model.model.decoder, how, find_head_tokens(folder, shape.vocab))
    del model  # the encoder has done its work
    run, writes, better = train_student(
        student, learnt, how, (b"speech", json.dumps(asdict(how), sort_keys=True).encode()), Path(work),
        lambda student, device: agreement(student, kept, how.batch_tokens, device), float, "distilling",
        progress, _FROZEN,
    )  # fmt: skip
    if writes:
        _write(student, folder, Path(out))
    return {
        "agreement_before": run.before,
        "agreement": run.after if better else run.before,
        "trained": better,
        "tokens_read": run.num_tokens,
        "train_seconds": round(run.seconds, 1),
        "losses": trainer.sample_of(run.losses),
    }


def _write(student: SpeechStudent, source: Path, out: Path) -> None:
    """Write the model of `source` with the student's weights, in the types of those there."""
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
    found: dict[str, Any] = dict(tensors.in_folder(source))
    for name, weight in student.body.named_parameters():
        if not any(part in name for part in _FROZEN):
            full = _PREFIX + name
            found[full] = weight.detach().cpu().numpy().astype(tensors.DTYPES[found[full].kind])
    tensors.write(out / WEIGHTS, found)
