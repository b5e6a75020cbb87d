"""Heals a pruned draft: it learns the target's distribution on text that the target wrote.

Embeddings and head stay as they are; the softmax runs over the tokens that the draft's head keeps. Runs on
CPU and CUDA, and with `accelerate launch` on several GPUs or machines. A checkpoint holds everything that the
next step depends on, so that a run that was stopped gives the same draft.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.quantize import batches
from specport.quantize.teacher import Dialogue

from specport.errors import InvalidInput, ModelError
from specport.models.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = ("kl", "ce", "tv")
CHECKPOINT, SAVE_EVERY_S = "checkpoint.safetensors", 600.0
_WARM_UP, _LAST_RATE, _SMOOTH = 0.05, 0.1, 0.95


@dataclass(frozen=True)
class Recipe:
    """loss: "kl" (to the target's top probabilities), "ce" (its tokens) or "tv" (total variation, which is
    what sampled acceptance depends on; LK losses, arXiv 2602.23881).

    batch_tokens: prompt and answer tokens of a step; epochs: times that each text is read.
    """

    loss: str = "kl"
    epochs: float = 3.0
    learning_rate: float = 1e-4
    batch_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InvalidInput(f"unknown loss {self.loss!r}", f"choose one of {', '.join(LOSSES)}")
        if self.epochs <= 0 or self.learning_rate <= 0 or self.batch_tokens < 1:
            raise InvalidInput("epochs, learning rate and batch tokens must be greater than 0")


@dataclass(frozen=True)
class Healed:
    """Agreement with the target on held-out text before and after, and the loss along the way.

    writes: whether it is this process, of several that trained together, that writes the model.
    """

    before: float
    after: float
    losses: tuple[float, ...]
    num_tokens: int
    seconds: float
    writes: bool = True


class Student(torch.nn.Module):  # type: ignore[misc]
    """A decoder and the rows of its head that are kept; gives loss and hits of a batch."""

    def __init__(self, model: Any, head: Sequence[int], loss: str) -> None:
        super().__init__()
        self.body = model.model
        weight = model.get_output_embeddings().weight
        kept = torch.as_tensor(list(head))
        self.register_buffer("head", weight.detach()[kept].clone(), persistent=False)
        column = torch.full((weight.shape[0],), -1)
        column[kept] = torch.arange(len(kept))
        self.register_buffer("column", column, persistent=False)
        self._loss = loss

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean loss over the answers' tokens, and how many of them the student would propose."""
        hidden = self.body(
            input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False
        ).last_hidden_state
        logits = hidden[batch["rows"], batch["columns"]] @ self.head.T.to(hidden.dtype)
        log_q = torch.log_softmax(logits.float(), dim=-1)
        answer = self.column[batch["answer"]]
        hits = (log_q.argmax(dim=-1) == answer).sum()
        if self._loss == "ce":
            return torch.nn.functional.nll_loss(log_q, answer, ignore_index=-1), hits
        ids = self.column[batch["top_ids"]]
        p = torch.where(ids >= 0, batch["top_probs"], 0.0)
        log_top = torch.where(ids >= 0, log_q.gather(1, ids.clamp(min=0)), -math.inf)
        # What lies outside the listed tokens counts as one more token.
        rest_p = (1.0 - p.sum(dim=1)).clamp(min=0.0)
        rest_q = (1.0 - log_top.exp().sum(dim=1)).clamp(min=1e-7)
        if self._loss == "tv":
            return 0.5 * ((p - log_top.exp()).abs().sum(dim=1) + (rest_p - rest_q).abs()).mean(), hits
        own = torch.where(p > 0, p * (p.clamp(min=1e-12).log() - log_top), 0.0).sum(dim=1)
        other = torch.where(rest_p > 0, rest_p * (rest_p.clamp(min=1e-12).log() - rest_q.log()), 0.0)
        return (own + other).mean(), hits


def distil(
    model: Any,
    head: Sequence[int],
    texts: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    recipe: Recipe,
    work: Path,
    progress: Progress,
) -> Healed:
    """Train `model` in place. head: token ids that the draft's head will keep.

    work: folder of the checkpoint; one of another recipe, model or text is not gone on with.
    Raises InvalidInput, and ModelError when a checkpoint cannot be written.
    """
    from accelerate import Accelerator

    if not texts or not held_out:
        raise InvalidInput("there is too little text to learn from", "let the target write more")
    accelerator = Accelerator(mixed_precision=_mixed(), cpu=not torch.cuda.is_available())
    torch.manual_seed(recipe.seed)
    student = Student(model, head, recipe.loss).float()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("embed_tokens" not in name)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    student, optimizer = accelerator.prepare(student, optimizer)
    processes = accelerator.num_processes
    plan = [*batches.plan(texts, recipe.epochs, recipe.batch_tokens, recipe.seed, processes)]
    run = _Run(_identity(recipe, head, texts, trained), work / CHECKPOINT, trained, optimizer)
    before = run.load()
    if before is None:
        before = run.before = _agreement(student, held_out, recipe.batch_tokens, accelerator.device)
    saved = time.monotonic()
    try:
        for step in range(run.step, len(plan)):
            began = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _rate(step / len(plan))
            chosen = [texts[i] for i in plan[step][accelerator.process_index]]
            loss, hits = student(batches.batch(chosen, accelerator.device))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.seconds += time.monotonic() - began
            run.record(loss.item(), hits.item() / sum(len(d.tokens) - d.start for d in chosen))
            progress(f"distilling (loss {run.loss:.3f}, agreement {run.agreement:.1%})", step / len(plan))
            if accelerator.is_main_process and time.monotonic() - saved > SAVE_EVERY_S:
                run.save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            run.save()
        raise
    if accelerator.is_main_process:
        run.save()
    after = _agreement(student, held_out, recipe.batch_tokens, accelerator.device)
    count = sum(len(texts[i].tokens) for step_ in plan for share in step_ for i in share)
    return Healed(before, after, tuple(run.losses), count, run.seconds, accelerator.is_main_process)


def _mixed() -> str:
    """bf16 where the machine has units for it. AVX-512's own bf16 took 1.6 times as long as f32 on a Xeon."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if torch.cuda.is_available() or amx() else "no"


class _Run:
    """Where a training stands; kept in one file, which appears all at once. No pickles."""

    def __init__(self, identity: str, path: Path, trained: list[Any], optimizer: Any) -> None:
        self.identity, self.path, self.trained, self.optimizer = identity, path, trained, optimizer
        self.step, self.before, self.seconds = 0, 0.0, 0.0
        self.losses: list[float] = []
        self.loss = self.agreement = 0.0

    def record(self, loss: float, agreement: float) -> None:
        """Also running means, for the progress bar."""
        self.losses.append(round(loss, 5))
        keep = _SMOOTH if self.step else 0.0
        self.loss = keep * self.loss + (1 - keep) * loss
        self.agreement = keep * self.agreement + (1 - keep) * agreement
        self.step += 1

    def save(self) -> None:
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.trained):
            state = self.optimizer.state[parameter]
            tensors |= {f"{i}.weight": parameter.detach()}
            tensors |= {f"{i}.{name}": state[name] for name in ("exp_avg", "exp_avg_sq", "step")}
        names = ("identity", "step", "before", "losses", "loss", "agreement", "seconds")
        about = json.dumps({name: getattr(self, name) for name in names})
        temporary = self.path.with_suffix(".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"about": about})
            os.replace(temporary, self.path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise ModelError(f"cannot write {self.path}: {error}", "free some space") from error

    def load(self) -> float | None:
        """The agreement that the run began with, or None where there is nothing to go on with."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as stored:
                about = json.loads((stored.metadata() or {}).get("about", "{}"))
                if about.get("identity") != self.identity:
                    return None
                for i, parameter in enumerate(self.trained):
                    parameter.data.copy_(stored.get_tensor(f"{i}.weight"))
                    names = ("exp_avg", "exp_avg_sq", "step")
                    self.optimizer.state[parameter] = {
                        name: stored.get_tensor(f"{i}.{name}").to(
                            parameter.device if name != "step" else "cpu"
                        )
                        for name in names
                    }
        except (OSError, SafetensorError, ValueError) as error:
            raise ModelError(f"{self.path} is damaged: {error}", "remove it and start again") from error
        for name, value in about.items():
            setattr(self, name, value)
        return self.before


def _identity(recipe: Recipe, head: Sequence[int], texts: Sequence[Dialogue], trained: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    digest.update(np.asarray(head, dtype=np.int64).tobytes())
    for text in texts:
        digest.update(text.tokens.tobytes())
    for parameter in trained:
        digest.update(str(tuple(parameter.shape)).encode())
    return digest.hexdigest()[:24]


def _rate(done: float) -> float:
    """Share of the learning rate: warm-up, then a cosine."""
    if done < _WARM_UP:
        return (done + 1e-3) / (_WARM_UP + 1e-3)
    rest = (done - _WARM_UP) / (1.0 - _WARM_UP)
    return _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * rest))


def _agreement(student: Any, texts: Sequence[Dialogue], batch_tokens: int, device: Any) -> float:
    hits = count = 0
    student.eval()
    with torch.no_grad():
        for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
            chosen = [texts[i] for i in groups[0]]
            hits += int(student(batches.batch(chosen, device))[1])
            count += sum(len(text.tokens) - text.start for text in chosen)
    student.train()
    return hits / count
