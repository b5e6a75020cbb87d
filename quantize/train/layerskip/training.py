"""LayerSkip's training: exits learn to predict what the whole model predicts (arXiv 2404.16710).

Layer dropout, higher for deeper layers, makes the model depend less on its late layers. Losses at early
exits, through the model's own norm and head, make early layers predict tokens. The whole model and the exits
learn the likeliest tokens of the target before training, with their probabilities, rather than bare tokens,
so that the model changes little.
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
from specport.quantize.text import dialogues
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches, trainer
from specport.quantize.train.layerskip.recipe import (
    Recipe,
    Sweep,
    dropout_rates,
    enabled_layers,
    exit_weights,
)
from specport.quantize.train.log_probabilities import HeadPart, log_probabilities
from specport.quantize.train.losses import columns_of, token_loss

from specport.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor


class ExitStudent(torch.nn.Module):  # type: ignore[misc]
    """A decoder whose layers can be skipped, with a loss at its exits.

    Returns loss and the whole model's hits.
    """

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
        self._skipped: Tensor | None = None  # [layers, texts]
        self._streams: list[Tensor] = []
        for number, layer in enumerate(layers):
            layer.register_forward_hook(self._hook(number))

    def _hook(self, number: int) -> Any:
        """Return a hook that passes a layer's input on where it is skipped, and keeps its output stream."""

        def hook(layer: Any, inputs: Any, output: Any) -> Any:
            stream = output[0] if isinstance(output, tuple) else output
            if self._skipped is not None:
                stream = torch.where(self._skipped[number][:, None, None], inputs[0], stream)
            self._streams.append(stream)
            return (stream, *output[1:]) if isinstance(output, tuple) else stream

        return hook

    def streams(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """Return [layers]: the stream [tokens, width] after each, where answers are predicted."""
        self._streams = []
        self.body(input_ids=batch["ids"], attention_mask=batch["mask"], use_cache=False)
        streams = [stream[batch["rows"], batch["columns"]] for stream in self._streams]
        self._streams = []
        return streams

    def logits(self, stream: Tensor) -> Tensor:
        """Return the head's logits of a residual stream."""
        hidden = self.body.norm(stream)
        return hidden @ self.head.T.to(hidden.dtype)

    def forward(self, batch: dict[str, Tensor], step: int, num_steps: int) -> tuple[Tensor, Tensor]:
        """Return loss and hits.

        What is skipped depends on seed and step only, so that a run can be resumed.
        """
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + step)
        chances = torch.rand((self.num_layers, batch["ids"].shape[0]), generator=generator)
        self._skipped = (chances < torch.tensor(self._rates)[:, None]).to(batch["ids"].device)
        streams = self.streams(batch)
        self._skipped = None
        enabled = enabled_layers(self._recipe, self.num_layers, step, num_steps)
        total, hits = torch.zeros((), device=self.head.device), torch.zeros((), device=self.head.device)
        wanted = columns_of(batch, self.column)
        for layer, weight in exit_weights(self.num_layers, self._recipe.exit_scale, enabled).items():
            hidden = self.body.norm(streams[layer])
            loss, hits = token_loss(*log_probabilities(hidden, [HeadPart(self.head)], wanted), batch, "kl")
            total = total + weight * loss  # the last layer comes last: its hits are the model's
        return total, hits


def sweep(student: Any, texts: Sequence[Dialogue], batch_tokens: int, device: Any) -> Sweep:
    """Measure every exit on these texts, with no layer skipped."""
    student = getattr(student, "module", student)  # unwrap it where several processes train
    hits, loss, count = torch.zeros(student.num_layers), 0.0, 0
    student.eval()
    with torch.no_grad():
        for groups in batches.plan(texts, 1.0, batch_tokens, seed=0):
            batch = batches.batch([texts[i] for i in groups[0]], device)
            for layer, stream in enumerate(student.streams(batch)):
                logits = student.logits(stream).float()
                hits[layer] += int((logits.argmax(dim=-1) == batch["answer"]).sum())
            loss += float(torch.nn.functional.cross_entropy(logits, batch["answer"], reduction="sum"))
            count += len(batch["answer"])
    student.train()
    perplexity = trainer.finite(math.exp(min(loss / count, 700.0)), 3)
    return Sweep(tuple(round(float(share), 4) for share in hits / count), perplexity)


@dataclass(frozen=True)
class Trained:
    """Result of a training. before, after: on held-out text. writes: as in `distil.Distillation`."""

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
    """Train all of `model` but its embeddings and head, in place.

    work: folder of the checkpoint.
    Raises InvalidInput for too little text, and ModelError when a checkpoint cannot be read or written.
    """
    trainer.check_texts(texts, held_out)
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
    """Train the model at `source` on `shards`, and write the Hugging Face folder `out`.

    work: folder of the checkpoint. The first shard is held out. Arguments are plain data, since this runs in
    a process of its own (`worker.run`). Returns entries of `about.About`, and a sample of the losses.
    """
    progress("reading weights", 0.0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(Path(source), Path(temporary), trust_remote_code)
    held_out, texts = dialogues.read_shards(shards[:1]), dialogues.read_shards(shards[1:])
    result = train(model, texts, held_out, Recipe(**recipe), Path(work), progress)
    if result.writes:
        model.save_pretrained(out)
        export.finish(Path(source), Path(out), trust_remote_code)
    return {
        "before": asdict(result.before),
        "after": asdict(result.after),
        "tokens_read": result.num_tokens,
        "seconds": round(result.seconds),
        "losses": trainer.sample_of(result.losses),
    }
