"""The training loop: steps, learning rate, checkpoints. The caller's student defines the loss.

Runs on CPU and CUDA, and with `accelerate launch` on several GPUs or machines. A checkpoint holds everything
that the next step depends on, so that a resumed run gives the same model.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from msgspec import Struct
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches
from specport.quantize.train.pace import Pace

from specport.errors import InvalidInput, ModelError
from specport.models.atomic import replacing
from specport.models.os_errors import cause
from specport.outside import Format, plain_values
from specport.outside.numbers import Count
from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

_ANEW = "remove it and run the command again"
CHECKPOINT, SAVE_EVERY_S = "checkpoint.safetensors", 600.0
_WARM_UP, _LAST_RATE, _SMOOTH = 0.05, 0.1, 0.95


def train(
    student: Any,
    texts: Sequence[Dialogue],
    pace: Pace,
    identity: str,
    path: Path,
    examine: Callable[[Any, Any], Any],
    stage: str,
    progress: Progress,
    start: Callable[[], None] | None = None,
) -> tuple[Run, bool]:
    """Train in place. Return the run, and whether this process (of several) writes the model.

    student:  a module, called with a batch, the number of the step and the number of steps. Returns the loss
              and how many of the batch's answer tokens it would propose. Parameters that require a gradient
              are trained.
    identity: hash of the job; a checkpoint at `path` written by another job is ignored.
    examine:  called with student and device before the first step and after the last; returns plain data,
              kept as `Run.before` and `Run.after`.
    stage:    the name for the progress bar.
    start:    called before that: gives the parameters their first values. A run that is resumed has its own.
    Raises ModelError when a checkpoint cannot be read or written.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=_mixed(), cpu=not torch.cuda.is_available())
    torch.manual_seed(pace.seed)
    trained = [p for p in student.parameters() if p.requires_grad]
    fused = accelerator.device.type == "cpu"  # one pass over all weights instead of a dozen
    optimizer = torch.optim.AdamW(
        trained, lr=pace.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=fused
    )
    student, optimizer = accelerator.prepare(student, optimizer)
    plan = [*batches.plan(texts, pace.epochs, pace.batch_tokens, pace.seed, accelerator.num_processes)]
    run = Run(identity, path, trained, optimizer)
    if not run.load():
        if start is not None:
            progress("fitting the start", 0.0)
            start()
        run.before = examine(student, accelerator.device)
    saved = time.monotonic()
    try:
        for step in range(run.step, len(plan)):
            began = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = pace.learning_rate * _schedule(step / len(plan))
            chosen = [texts[i] for i in plan[step][accelerator.process_index]]
            loss, hits = student(batches.batch(chosen, accelerator.device), step, len(plan))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.seconds += time.monotonic() - began
            run.record(loss.item(), hits.item() / sum(len(d.tokens) - d.start for d in chosen))
            progress(f"{stage} (loss {run.loss:.3f}, agreement {run.agreement:.1%})", step / len(plan))
            if accelerator.is_main_process and time.monotonic() - saved > SAVE_EVERY_S:
                run.save()
                saved = time.monotonic()
    except KeyboardInterrupt:
        if accelerator.is_main_process:
            run.save()
        raise
    if not plan:
        run.after = run.before
        return run, accelerator.is_main_process
    if accelerator.is_main_process:
        run.save()
    run.after = examine(student, accelerator.device)
    run.num_tokens = sum(len(texts[i].tokens) for groups in plan for share in groups for i in share)
    return run, accelerator.is_main_process


def autocast(device: Any) -> Any:
    """Return the context in which a measurement computes as the training does."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=_mixed() == "bf16")


def _mixed() -> str:
    """Return bf16 where the hardware has matrix units for it.

    AVX-512's bf16 took 1.6 times as long as f32 on a Xeon.
    """
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if torch.cuda.is_available() or amx() else "no"


class _Kept(Struct):
    """What a checkpoint holds of a run besides its tensors. Losses may be NaN."""

    identity: str
    step: Count
    before: Any
    losses: list[float]
    loss: float
    agreement: float
    seconds: float


_KEPT = Format(_Kept, "a checkpoint of a training", _ANEW, parse=plain_values.from_foreign_json)


class Run:
    """The state of a training, stored atomically in one safetensors file."""

    def __init__(self, identity: str, path: Path, trained: list[Any], optimizer: Any) -> None:
        self.identity, self.path, self.trained, self.optimizer = identity, path, trained, optimizer
        self.step, self.seconds, self.num_tokens = 0, 0.0, 0
        self.before: Any = None
        self.after: Any = None
        self.losses: list[float] = []
        self.loss = self.agreement = 0.0

    def record(self, loss: float, agreement: float) -> None:
        """Add a step, and update the running means for the progress bar."""
        self.losses.append(round(loss, 5))
        keep = _SMOOTH if self.step else 0.0
        self.loss = keep * self.loss + (1 - keep) * loss
        self.agreement = keep * self.agreement + (1 - keep) * agreement
        self.step += 1

    def save(self) -> None:
        """Write the checkpoint. Raises ModelError."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.trained):
            state = self.optimizer.state[parameter]
            tensors |= {f"{i}.weight": parameter.detach()}
            tensors |= {f"{i}.{name}": state[name] for name in ("exp_avg", "exp_avg_sq", "step")}
        about = json.dumps({name: getattr(self, name) for name in _Kept.__struct_fields__})
        try:
            with replacing(self.path) as temporary:
                save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"about": about})
        except (OSError, SafetensorError) as error:
            message, hint = cause(error)
            raise ModelError(f"cannot write {self.path}: {message}", hint) from error

    def load(self) -> bool:
        """Read the checkpoint of the same job; return False where there is none. Raises ModelError."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return False
        try:
            with safe_open(self.path, "pt") as stored:
                kept = _KEPT.decode((stored.metadata() or {}).get("about", "{}"), str(self.path))
                if kept.identity != self.identity:
                    return False
                for i, parameter in enumerate(self.trained):
                    parameter.data.copy_(_shaped(stored.get_tensor(f"{i}.weight"), parameter))
                    moments = {n: stored.get_tensor(f"{i}.{n}") for n in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[parameter] = {
                        name: _shaped(moment, parameter).to(parameter.device)
                        for name, moment in moments.items()
                    } | {"step": stored.get_tensor(f"{i}.step").to("cpu")}
        except OSError as error:
            message, hint = cause(error)
            raise ModelError(f"cannot read {self.path}: {message}", hint) from error
        except (SafetensorError, ValueError) as error:
            raise ModelError(f"{self.path} is damaged: {error}", _ANEW) from error
        for name in _Kept.__struct_fields__:
            setattr(self, name, getattr(kept, name))
        return True


def _shaped(stored: Tensor, parameter: Tensor) -> Tensor:
    """Return a stored tensor. Raises ValueError where it does not have the parameter's shape."""
    if stored.shape != parameter.shape:
        raise ValueError(f"a tensor of shape {tuple(stored.shape)} instead of {tuple(parameter.shape)}")
    return stored


def check_texts(texts: Sequence[Dialogue], held_out: Sequence[Dialogue]) -> None:
    """Raise InvalidInput where there is nothing to learn from or nothing to measure by."""
    if not texts or not held_out:
        raise InvalidInput("there is too little text to learn from", "let the target write more")


def sample_of(losses: Sequence[float]) -> list[float | None]:
    """Return about 50 of the steps' losses, evenly spread, for a record; None where training diverged."""
    return [finite(loss, 3) for loss in losses[:: max(1, len(losses) // 50)]]


def finite(value: float, digits: int) -> float | None:
    """Return a rounded number for a record; None for what is none.

    A record is JSON, which has no infinite numbers and no NaN.
    """
    return round(float(value), digits) if math.isfinite(value) else None


def identity(texts: Sequence[Dialogue], student: Any, *facts: bytes) -> str:
    """Return a hash of the job: the text, the shapes of what is trained, and the facts that decide how."""
    digest = hashlib.sha256(b"".join(facts))
    for text in texts:
        digest.update(text.tokens.tobytes())
        if text.weights is not None:
            digest.update(text.weights.tobytes())
    for parameter in student.parameters():
        if parameter.requires_grad:
            digest.update(str(tuple(parameter.shape)).encode())
    return digest.hexdigest()[:24]


def _schedule(done: float) -> float:
    """Return the share of the learning rate at this share of the steps: linear warm-up, then a cosine."""
    if done < _WARM_UP:
        return (done + 1e-3) / (_WARM_UP + 1e-3)
    rest = (done - _WARM_UP) / (1.0 - _WARM_UP)
    return _LAST_RATE + (1.0 - _LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * rest))
