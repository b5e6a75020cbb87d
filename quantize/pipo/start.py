"""Where the training of a pair model starts: the module for second tokens is fitted by least squares.

What the head reads for a second token should be the unmodified model's state behind the token before it. Each
linear map of the module that adds to its stream is fitted to what is still missing there, in their order:
`fc`, the attention's output, the feed-forward network's output. The rest of the layer stays that of the
decoder's last one. Without this, the module's first cross-entropy is twice that of a uniform guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.quantize.pipo import pairing
from specport.quantize.pipo.network import PairNetwork
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.train import batches, ridge, trainer

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = 24_000  # tokens of text that are read, about
RIDGE = 0.1  # strength of the ridge
_BATCH_TOKENS = 4096


def fit(network: PairNetwork, texts: Sequence[Dialogue], seed: int) -> None:
    """Fit the module of a network in place, on about EXAMPLES tokens of the texts, all in whole pairs.

    The module's norm gets the gains of the decoder's last one, times the share of a state that was explained:
    it would be too sure of itself otherwise.
    """
    device, training = network.fc.weight.device, network.training
    network.eval()
    with torch.no_grad():
        _fit(network, _Stream.read(network, texts, seed, device))
    network.train(training)


def _fit(network: PairNetwork, stream: _Stream) -> None:
    if not len(stream.wanted):
        return  # no text is longer than a pair
    for norm, values in ((network.token_norm, stream.tokens), (network.state_norm, stream.states)):
        norm.weight.fill_(1.0)
        found = stream.chosen([norm(x) for x in values])
        norm.weight.copy_(ridge.unit_gain(found))
    joined = [
        torch.cat([network.token_norm(token), network.state_norm(state)], dim=-1)
        for token, state in zip(stream.tokens, stream.states, strict=True)
    ]
    network.fc.weight.copy_(stream.add(joined))
    layer, rotary = network.layer, network.model.model.rotary_emb

    def attend(x: Tensor) -> None:
        positions = torch.arange(x.shape[1], device=x.device)[None].expand(x.shape[0], -1)
        layer.self_attn(
            hidden_states=layer.input_layernorm(x), attention_mask=None,
            position_embeddings=rotary(x, positions),
        )  # fmt: skip

    def feed(x: Tensor) -> None:
        layer.mlp(layer.post_attention_layernorm(x))

    for run, last in ((attend, layer.self_attn.o_proj), (feed, layer.mlp.down_proj)):
        last.weight.copy_(stream.add(_inputs(run, last, stream.values)))
    network.norm.weight.fill_(1.0)
    found = stream.chosen([network.norm(x) for x in stream.values])
    share = ridge.share_explained(found, stream.wanted)
    network.norm.weight.copy_(network.model.model.norm.weight * share)


class _Stream:
    """The module's residual stream for texts in pairs, and what it should be.

    tokens, states: for each batch the [texts, pairs, width] embeddings of the tokens behind the pairs, and
                    the decoder's states. values: what the stream holds so far, of that shape.
    wanted:         [m, width] what it should hold behind the chosen pairs: those that a token follows.
    """

    def __init__(
        self, tokens: list[Tensor], states: list[Tensor], rows: list[Tensor], wanted: Tensor
    ) -> None:
        self.tokens, self.states, self._rows, self.wanted = tokens, states, rows, wanted
        self.values = [torch.zeros_like(x) for x in tokens]

    @classmethod
    def read(cls, network: PairNetwork, texts: Sequence[Dialogue], seed: int, device: Any) -> _Stream:
        """Let the decoder read texts in pairs, and the unmodified one read them as they are."""
        tokens, states, rows, wanted, count = [], [], [], [], 0
        gains = network.model.model.norm.weight.float()
        for groups in batches.plan(texts, 1.0, _BATCH_TOKENS, seed):
            chosen = [texts[i] for i in groups[0]]
            paired = [
                pairing.in_pairs(t.tokens, t.start, np.zeros(len(t.tokens), np.bool_), network.vocab)
                for t in chosen
            ]
            found = pairing.batch(paired, device)
            ids = torch.from_numpy(batches.padded([t.tokens for t in chosen])[0]).long().to(device)
            followed = [np.flatnonzero(p.ends < len(p.tokens)) for p in paired]
            # Places in flat order of [texts, pairs], and of [texts, tokens] the tokens behind these pairs.
            pairs = [i * found["first"].shape[1] + f for i, f in enumerate(followed)]
            nexts = [
                i * ids.shape[1] + p.ends[f] for i, (p, f) in enumerate(zip(paired, followed, strict=True))
            ]
            rows.append(torch.from_numpy(np.concatenate(pairs)).to(device))
            with trainer.autocast(device):
                state, plain = network.states(found["first"], found["second"]), network.original(ids)
            tokens.append(network.embed(found["nexts"]).float())
            states.append(state.float())
            behind = torch.from_numpy(np.concatenate(nexts)).to(device)
            wanted.append(plain.flatten(0, 1)[behind].float() / gains)
            count += sum(len(t.tokens) for t in chosen)
            if count >= EXAMPLES:
                break
        return cls(tokens, states, rows, torch.cat(wanted))

    def chosen(self, values: Sequence[Tensor]) -> Tensor:
        """Return [m, size] the rows that are compared with `wanted`."""
        pairs = zip(values, self._rows, strict=True)
        return torch.cat([x.flatten(0, 1)[rows].float() for x, rows in pairs])

    def add(self, inputs: Sequence[Tensor]) -> Tensor:
        """Add to the stream the linear map of these inputs that explains most of what is missing; return it.

        It is found by ridge regression. inputs: for each batch [texts, pairs, size].
        """
        missing = self.wanted - self.chosen(self.values)
        weight = ridge.linear_map(self.chosen(inputs), missing, RIDGE)
        self.values = [v + i.float() @ weight.T for v, i in zip(self.values, inputs, strict=True)]
        return weight


def _inputs(run: Callable[[Tensor], None], module: Any, values: Sequence[Tensor]) -> list[Tensor]:
    """Return what a module reads while `run` is called with each of these values."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        for x in values:
            run(x)
    finally:
        hook.remove()
    return seen
