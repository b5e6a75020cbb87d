"""LayerSkip's training: a target learns to say early what it would say at its end (arXiv 2404.16710).

Two things make early layers draft well. Layer dropout, the more the deeper a layer, makes the model lean on
its late layers less; a loss at early exits, all through the model's own norm and head, makes the early ones
say something. Whole and exits learn what the target itself said before training, its likeliest tokens with
their probabilities, rather than the bare tokens: the model should stay the one it was.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from specport.quantize.convert import export
from specport.quantize.text import teacher
from specport.quantize.text.teacher import Dialogue
from specport.quantize.train import batches, trainer
from specport.quantize.train.distil import token_loss
from specport.quantize.train.layerskip.recipe import (
    Recipe,
    Sweep,
    dropout_rates,
    enabled_layers,
    exit_weights,
)

from specport.errors import InvalidInput
from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor


class ExitStudent(torch.nn.Module):  # type: ignore[misc]
    """A decoder whose layers can be left out and listened to; gives loss and the whole model's hits."""

    def __init__(self, model: Any, recipe: Recipe) -> None:
        super().__init__()
        self.body = model.model
        weight = model.get_output_embeddings().weight
        self.register_buffer("head", weight.detach(), persistent=False)
        self.register_buffer("column", torch.arange(weight.shape[0]), persistent=False)
        self._recipe = recipe
        layers = self.body.layers
        self.num_layers = len(layers)
        self._rates = dropout_rates(self.num_layers, recipe.dropout)
        self._left_out: Tensor | None = None  # [layers, texts]
        self._streams: list[Tensor] = []
        for number, layer in enumerate(layers):
            layer.register_forward_hook(self._behind(number))

    def _behind(self, number: int) -> Any:
        """Puts a layer's input in the place of its output where it is left out, and notes what leaves it."""

        def hook(layer: Any, inputs: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            if self._left_out is not None:
                stream = torch.where(self._left_out[number][:, None, None], inputs[0], stream)
            self._streams.append(stream)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    def streams(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """[layers] the residual stream behind each at the places that predict answers, [tokens, width]."""
        self._streams = []
        self.body(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False)
        found = [stream[batch["rows"], batch["columns"]] for stream in self._streams]
        self._streams = []
        return found

    def logits(self, stream: Tensor) -> Tensor:
        hidden = self.body.norm(stream)
        return hidden @ self.head.T.to(hidden.dtype)

    def forward(self, batch: dict[str, Tensor], step: int, num_steps: int) -> tuple[Tensor, Tensor]:
        """What is left out depends on seed and step alone, so that a run that was stopped goes on alike."""
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + step)
        chances = torch.rand((self.num_layers, batch["ids"].shape[0]), generator=generator)
        self._left_out = (chances < torch.tensor(self._rates)[:, None]).to(batch["ids"].device)
        streams = self.streams(batch)
        self._left_out = None
        enabled = enabled_layers(self._recipe, self.num_layers, step, num_steps)
        total, hits = torch.zeros((), device=self.head.device), torch.zeros((), device=self.head.device)
        for layer, weight in exit_weights(self.num_layers, self._recipe.exit_scale, enabled).items():
            loss, hits = token_loss(self.logits(streams[layer]), batch, self.column, "kl")
            total = total + weight * loss  # the last layer comes last: its hits are the model's
        return total, hits


def sweep(student: Any, texts: Sequence[Dialogue], batch_tokens: int, device: Any) -> Sweep:
    """Every exit on these texts, with all layers in their places."""
    student = getattr(student, "module", student)  # what several processes wrap it in
    hits, surprise, count = torch.zeros(student.num_layers), 0.0, 0
    student.eval()
    with torch.no_grad():
        for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
            batch = batches.batch([texts[i] for i in groups[0]], device)
            for layer, stream in enumerate(student.streams(batch)):
                logits = student.logits(stream).float()
                hits[layer] += int((logits.argmax(dim=-1) == batch["answer"]).sum())
            surprise += float(torch.nn.functional.cross_entropy(logits, batch["answer"], reduction="sum"))
            count += len(batch["answer"])
    student.train()
    return Sweep(
        tuple(round(float(share), 4) for share in hits / count), round(math.exp(surprise / count), 3)
    )


@dataclass(frozen=True)
class Trained:
    """before, after: on text that was not trained on. writes: as in `distil.Healed`."""

    before: Sweep
    after: Sweep
    losses: tuple[float, ...]
    num_tokens: int
    seconds: float
    writes: bool = True


def train(
    model: Any,
    texts: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    recipe: Recipe,
    work: Path,
    progress: Progress,
) -> Trained:
    """Train `model` in place, all but its embeddings and head. work: folder of the checkpoint.

    Raises InvalidInput, and ModelError when a checkpoint cannot be written.
    """
    if not texts or not held_out:
        raise InvalidInput("there is too little text to learn from", "let the target write more")
    student = ExitStudent(model, recipe).float()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_("embed_tokens" not in name)
    facts = b"layerskip", json.dumps(asdict(recipe), sort_keys=True).encode()
    run, writes = trainer.train(
        student, texts, recipe, trainer.identity(texts, student, *facts), work / trainer.CHECKPOINT,
        lambda student, device: asdict(sweep(student, held_out, recipe.batch_tokens, device)),
        "training early exits", progress,
    )  # fmt: skip
    before, after = (Sweep(tuple(s["agreement"]), s["perplexity"]) for s in (run.before, run.after))
    return Trained(before, after, tuple(run.losses), run.num_tokens, run.seconds, writes)


def layerskip(
    source: str,
    work: str,
    out: str,
    shards: Sequence[str],
    recipe: Mapping[str, Any],
    trust_remote_code: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Train the model at `source` on `shards` and write the Hugging Face folder `out`; what came of it.

    work: folder of the checkpoint. The first shard is not trained on. Arguments are plain data, since this
    runs in a process of its own (`worker.run`).
    """
    progress("reading weights", 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(Path(source), Path(temporary), trust_remote_code)
    texts = [dialogue for path in shards[1:] for dialogue in teacher.read_shard(Path(path))]
    unseen = [*teacher.read_shard(Path(shards[0]))]
    result = train(model, texts, unseen, Recipe(**recipe), Path(work), progress)
    if result.writes:
        model.save_pretrained(out, safe_serialization=True)
        export.finish(Path(source), Path(out), trust_remote_code)
    return {
        "before": asdict(result.before),
        "after": asdict(result.after),
        "tokens_read": result.num_tokens,
        "seconds": round(result.seconds),
        "losses": [round(loss, 3) for loss in result.losses[:: max(1, len(result.losses) // 50)]],
    }
