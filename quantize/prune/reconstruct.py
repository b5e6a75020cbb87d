"""Prunes a model, and fits what stays to do what is gone. Least squares instead of training.

Layer by layer, on some text: the last matrix of each feed-forward part that stays is solved for, so that the
residual stream behind it is as close as can be to the one that the whole model has before the next layer that
stays. That covers channels that are gone, layers that are gone, and what earlier layers could not make up
for. The idea is that of second-order pruning (SparseGPT, arXiv 2301.00774) and of ReplaceMe
(arXiv 2505.02819), which puts one linear map in the place of a block of layers; here the map costs nothing,
since it is a matrix that is there anyway.
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

# Towards the weights as they were, in mean squares of a channel: some ten thousand tokens do not settle
# thousands of weights a row.
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
    Returns how many channels stay, and of how many. A channel counts by what it adds to the stream: its mean
    activation times the length of its column behind it (width pruning as in Minitron, arXiv 2407.14679).
    Layers whose feed-forward part is normalised behind its last matrix (Gemma) are pruned, but not fitted;
    of a part that is not gate, up and down no channel can go (0, 0).
    Raises ModelError for layers that are not there, and for channels that cannot go.
    """
    layers = list(decoder_layers(model))
    if share == 1.0 and not is_gated(layers[0]):
        drop_layers(model, dropped)
        return 0, 0
    width = feed_forward(layers[0]).down_proj.in_features
    count = num_channels(width, share)
    progress("fitting what stays", 0.0)
    streams, calls = _calls(model, layers, texts)
    drop_layers(model, dropped)
    kept = [number for number in range(len(layers)) if number not in dropped]
    walk = _Walk(streams, list(streams), calls)
    with torch.no_grad():
        for number in range(kept[0]):
            walk.original(layers[number], number)
        for done, (number, following) in enumerate(zip(kept, [*kept[1:], len(layers)], strict=True)):
            progress("fitting what stays", (1 + done) / (1 + len(kept)))
            for same in range(number, following):  # before the layer that stays is changed
                walk.original(layers[same], same)
            walk.fit(layers[number], number, count)
    model.config.intermediate_size = count
    return count, width


@dataclass
class _Walk:
    """wanted: the residual stream of each text in the whole model, [1, tokens, width]; have: in the pruned
    one, as far as it is done. calls: for each text and layer the arguments beside the stream."""

    wanted: list[Tensor]
    have: list[Tensor]
    calls: list[list[dict[str, Any]]]

    def original(self, layer: Any, number: int) -> None:
        self.wanted = self._through(layer, number, self.wanted)

    def fit(self, layer: Any, number: int, count: int) -> None:
        """Keep `count` channels of the layer, and go through it with its new weights."""
        part = feed_forward(layer)
        down = part.down_proj
        inputs: list[Tensor] = []
        added: list[Tensor] = []

        def look(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            inputs.append(arguments[0])
            added.append(output)

        hook = down.register_forward_hook(look)
        outputs = self._through(layer, number, self.have)
        hook.remove()
        hook = down.register_forward_hook(lambda *_: torch.zeros_like(added[0]))
        without = _run(layer, self.have[0], self.calls[0][number])
        hook.remove()
        tolerance = 1e-4 * float(outputs[0].abs().max())
        plain = torch.allclose(without + added[0], outputs[0], atol=tolerance)  # goes to the stream as it is
        worth = sum(x.abs().sum(dim=(0, 1)) for x in inputs) * down.weight.norm(dim=0)
        chosen = worth.topk(count).indices.sort().values
        keep_channels(part, chosen)
        if not plain:
            self.have = self._through(layer, number, self.have)
            return
        inputs = [x[..., chosen] for x in inputs]
        before = [output - more for output, more in zip(outputs, added, strict=True)]
        missing = [wanted - b for wanted, b in zip(self.wanted, before, strict=True)]
        down.weight.copy_(_solved(down.weight, inputs, missing, self.wanted))
        self.have = [b + down(x) for b, x in zip(before, inputs, strict=True)]

    def _through(self, layer: Any, number: int, streams: Sequence[Tensor]) -> list[Tensor]:
        return [_run(layer, stream, own[number]) for stream, own in zip(streams, self.calls, strict=True)]


def _calls(
    model: Any, layers: Sequence[Any], texts: Sequence[Sequence[int]]
) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """The stream before the first layer, and what each layer is called with beside it, for each text."""
    streams: list[Tensor] = []
    calls: list[list[dict[str, Any]]] = []

    def look(_: Any, arguments: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        if not calls[-1]:
            streams.append(arguments[0])
        calls[-1].append(named)

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
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
    weight: Tensor, inputs: Sequence[Tensor], missing: Sequence[Tensor], wanted: Sequence[Tensor]
) -> Tensor:
    """The weights, [out, in], with which inputs [1, tokens, in] give what is missing, [1, tokens, out].

    A token counts by how far its stream is off for its length: the next layer normalises it, and a few
    tokens have streams a hundred times as long as others.
    """
    size = weight.shape[1]
    gram, moment = weight.new_zeros(size, size), weight.new_zeros(size, weight.shape[0])
    for x, r, stream in zip(inputs, missing, wanted, strict=True):
        scale = stream[0].pow(2).mean(dim=-1, keepdim=True).rsqrt()
        gram.addmm_((x[0] * scale).T, x[0] * scale)
        moment.addmm_((x[0] * scale).T, r[0] * scale)
    ridge = RIDGE * float(gram.diagonal().mean()) + 1e-12
    off = (moment - gram @ weight.T).double()
    gram.diagonal().add_(ridge)
    factor = torch.linalg.cholesky(gram.double())
    return weight + torch.cholesky_solve(off, factor).T.to(weight.dtype)
