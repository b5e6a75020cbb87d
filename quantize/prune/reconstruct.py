"""Pruning with reconstruction: the remaining weights are fitted by least squares, without training.

Layer by layer, on some text, the last matrix of each remaining feed-forward part is solved for, so that the
residual stream after it comes close to the whole model's stream before the next remaining layer. That makes
up for dropped channels, dropped layers and the remaining error of earlier layers. The idea is that of
second-order pruning (SparseGPT, arXiv 2301.00774) and of ReplaceMe (arXiv 2505.02819), which replaces a block
of layers by one linear map. Here the map costs nothing, since the matrix exists anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from specport.quantize.prune.prune import (
    decoder_layers,
    drop_layers,
    feed_forward,
    is_gated,
    keep_channels,
    num_channels,
)

from specport.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

# Pull towards the old weights, in mean squares of a channel: ten thousand tokens do not determine thousands
# of weights per row.
RIDGE = 0.1


def prune(
    model: Any,
    dropped: Collection[int],
    share: float,
    texts: Sequence[Sequence[int]],
    progress: Progress = silent,
) -> tuple[int, int]:
    """Drop layers and keep this share of each feed-forward part's channels, in place.

    model: a float32 decoder, as for `prune.drop_layers`. texts: token ids.

    A channel is ranked by what it adds to the stream: its mean activation times the norm of its column in the
    last matrix (width pruning as in Minitron, arXiv 2407.14679). Layers whose feed-forward output is
    normalised (Gemma) are pruned, but not fitted.

    Returns the number of channels kept, and of all; (0, 0) where the feed-forward part has no gate, up and
    down projections and `share` is 1.
    Raises ModelError for layers that do not exist, and for channels that cannot be dropped.
    """
    layers = list(decoder_layers(model))
    if share == 1.0 and not is_gated(layers[0]):
        drop_layers(model, dropped)
        return 0, 0
    width = feed_forward(layers[0]).down_proj.in_features
    count = num_channels(width, share)
    progress("fitting the remaining weights", 0.0)
    streams, calls = _calls(model, layers, texts)
    drop_layers(model, dropped)
    kept = [number for number in range(len(layers)) if number not in dropped]
    walk = _Walk(streams, list(streams), calls)
    with torch.no_grad():
        for number in range(kept[0]):
            walk.original(layers[number], number)
        for done, (number, following) in enumerate(zip(kept, [*kept[1:], len(layers)], strict=True)):
            progress("fitting the remaining weights", (1 + done) / (1 + len(kept)))
            for whole in range(number, following):  # before the remaining layer is changed
                walk.original(layers[whole], whole)
            walk.fit(layers[number], number, count)
    model.config.intermediate_size = count
    return count, width


@dataclass
class _Walk:
    """The residual streams of all texts, layer by layer.

    reference: [1, tokens, width] of each text in the whole model.
    current:   the same in the pruned model, up to the layers that are fitted.
    calls:     for each text and layer the arguments beside the stream.
    """

    reference: list[Tensor]
    current: list[Tensor]
    calls: list[list[dict[str, Any]]]

    def original(self, layer: Any, number: int) -> None:
        """Take the whole model's streams through a layer."""
        self.reference = self._through(layer, number, self.reference)

    def fit(self, layer: Any, number: int, count: int) -> None:
        """Keep `count` channels of a layer, fit its weights, and take the pruned model's streams on."""
        part = feed_forward(layer)
        down = part.down_proj
        inputs: list[Tensor] = []
        added: list[Tensor] = []

        def keep(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.append(arguments[0])
            added.append(output)

        hook = down.register_forward_hook(keep)
        outputs = self._through(layer, number, self.current)
        hook.remove()
        hook = down.register_forward_hook(lambda *_: torch.zeros_like(added[0]))
        without = _run(layer, self.current[0], self.calls[0][number])
        hook.remove()
        tolerance = 1e-4 * float(outputs[0].abs().max())
        # Whether the output of the last matrix is added to the stream without a norm.
        plain = torch.allclose(without + added[0], outputs[0], atol=tolerance)
        score = sum(x.abs().sum(dim=(0, 1)) for x in inputs) * down.weight.norm(dim=0)
        chosen = score.topk(count).indices.sort().values
        keep_channels(part, chosen)
        if not plain:
            self.current = self._through(layer, number, self.current)
            return
        inputs = [x[..., chosen] for x in inputs]
        before = [output - more for output, more in zip(outputs, added, strict=True)]
        missing = [goal - b for goal, b in zip(self.reference, before, strict=True)]
        down.weight.copy_(_solved(down.weight, inputs, missing, self.reference))
        self.current = [b + down(x) for b, x in zip(before, inputs, strict=True)]

    def _through(self, layer: Any, number: int, streams: Sequence[Tensor]) -> list[Tensor]:
        return [_run(layer, stream, calls[number]) for stream, calls in zip(streams, self.calls, strict=True)]


def _calls(
    model: Any, layers: Sequence[Any], texts: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """Return for each text the stream before the first layer, and each layer's other arguments."""
    streams: list[Tensor] = []
    calls: list[list[dict[str, Any]]] = []

    def keep(_: Any, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        if not calls[-1]:
            streams.append(arguments[0])
        calls[-1].append(named)

    hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
    with torch.no_grad():
        for text in texts:
            calls.append([])
            model.model(torch.tensor([list(text)], device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return streams, calls


def _run(layer: Any, stream: Tensor, named: dict[str, Any]) -> Tensor:
    output = layer(stream, **named)
    return output if torch.is_tensor(output) else output[0]


def _solved(
    weight: Tensor, inputs: Sequence[Tensor], missing: Sequence[Tensor], reference: Sequence[Tensor]
) -> Tensor:
    """Return weights [out, in] that map the inputs [1, tokens, in] to what is missing [1, tokens, out].

    Errors are weighted by the inverse norm of a token's stream: the next layer normalises the stream, and a
    few tokens have streams a hundred times as long as others.
    """
    size = weight.shape[1]
    gram, moment = weight.new_zeros(size, size), weight.new_zeros(size, weight.shape[0])
    for x, r, stream in zip(inputs, missing, reference, strict=True):
        scale = stream[0].pow(2).mean(dim=-1, keepdim=True).rsqrt()
        gram.addmm_((x[0] * scale).T, x[0] * scale)
        moment.addmm_((x[0] * scale).T, r[0] * scale)
    ridge = RIDGE * float(gram.diagonal().mean()) + 1e-12
    off = (moment - gram @ weight.T).double()
    gram.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(gram.double())
    return weight + torch.cholesky_solve(off, factor).T.to(weight.dtype)
