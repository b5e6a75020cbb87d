"""A pair model in training: a frozen decoder with low-rank updates, and the parts that PIPO adds.

With pairs i, first tokens x_2i, second ones x_2i+1 or PAD, and the decoder's embeddings e:

    h_i = decoder(compressor(e(x_2i), e(x_2i+1)))          x_2i+2 ~ head h_i
    s_i = norm(layer(fc [rms e(x_2i+2); rms h_i]))         x_2i+3 ~ head s_i
    c_i = sigmoid(confidence [h_i; s_i])                   inputs detached

The layer is a copy of the decoder's last one and is trained whole: small models bring no such module of their
own. `start` gives it its first weights. Embeddings and head are the decoder's and stay frozen. Source: arXiv
2605.27255.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from specport.backends.torch.pipo.embedding import Compressor
from specport.quantize.pipo import lora
from specport.quantize.pipo.recipe import Recipe, check_decoder
from torch.nn import functional

from specport.models.kinds.pipo import EPSILON, PairWeights

if TYPE_CHECKING:
    from torch import Tensor


class Norm(torch.nn.Module):  # type: ignore[misc]
    """RMS norm with a gain, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self._epsilon = torch.nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        found: Tensor = self.weight * wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._epsilon)
        return found


class Confidence(torch.nn.Module):  # type: ignore[misc]
    """Judge a second token from the states of both; its inputs get no gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(2 * width, EPSILON)
        self.judge = torch.nn.Linear(2 * width, width, bias=False)
        self.score = torch.nn.Linear(width, 1, bias=False)

    def forward(self, state: Tensor, second: Tensor) -> Tensor:
        """Return [...] logits of the confidence."""
        both = torch.cat([state.detach(), second.detach()], dim=-1)
        found: Tensor = self.score(functional.silu(self.judge(self.norm(both))))[..., 0]
        return found


@dataclass
class Caches:
    """Hold the caches of decoder and module in a rollout, and which entries are real, [texts, entries]."""

    body: Any
    module: Any
    real: Tensor


class PairNetwork(torch.nn.Module):  # type: ignore[misc]
    """A transformers decoder that is trained to read and write pairs.

    Raises ModelError for a decoder of a kind that `decoders.DECODERS` lacks.
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        super().__init__()
        config = model.config
        check_decoder(config.to_dict())
        torch.manual_seed(recipe.seed)
        self.model, width = model, config.hidden_size
        self.width, self.vocab = width, model.get_input_embeddings().weight.shape[0]
        epsilon = config.rms_norm_eps
        self.compressor = Compressor(width)
        self.fc = torch.nn.Linear(2 * width, width, bias=False)
        self.token_norm, self.state_norm = Norm(width, epsilon), Norm(width, epsilon)
        self.layer = copy.deepcopy(model.model.layers[-1])
        for module in self.layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = 0
        self.norm = Norm(width, epsilon)
        self.confidence = Confidence(width)
        model.requires_grad_(False)
        lora.add(model.model.layers, recipe.rank, recipe.alpha, recipe.dropout)

    def embed(self, ids: Tensor) -> Tensor:
        found: Tensor = self.model.get_input_embeddings()(ids)
        return found

    def head(self, states: Tensor) -> Tensor:
        """Return float32 logits of states."""
        found: Tensor = self.model.get_output_embeddings()(states.to(self.model.dtype)).float()
        return found

    def states(self, first: Tensor, second: Tensor, caches: Caches | None = None) -> Tensor:
        """Return [texts, pairs, width] the decoder's states of pairs. second: ids, or `vocab` for PAD.

        Entries that are not real in `caches` stand on the left; without caches, padding stands on the right.
        """
        padded = second >= self.vocab
        inner = self.embed(second.clamp(max=self.vocab - 1))
        z = self.compressor(self.embed(first), inner, padded).to(self.model.dtype)
        if caches is None:
            found: Tensor = self.model.model(inputs_embeds=z, use_cache=False).last_hidden_state
            return found
        cached: Tensor = self.model.model(
            inputs_embeds=z, past_key_values=caches.body, use_cache=True,
            attention_mask=caches.real.long(), position_ids=_positions(caches.real)[:, -z.shape[1] :],
        ).last_hidden_state  # fmt: skip
        return cached

    def second_states(self, states: Tensor, nexts: Tensor, caches: Caches | None = None) -> Tensor:
        """Return [texts, pairs, width] the module's states. nexts: [texts, pairs] ids behind each pair."""
        count = states.shape[1]
        joined = torch.cat([self.token_norm(self.embed(nexts)), self.state_norm(states)], dim=-1)
        x = self.fc(joined).to(self.model.dtype)
        mask: Tensor | None = None
        if caches is None:
            positions = torch.arange(count, device=x.device)[None].expand(x.shape[0], -1)
        else:
            total = caches.real.shape[1]
            positions = _positions(caches.real)[:, -count:]
            places = torch.arange(total, device=x.device)
            own = places[total - count :]
            mask = (places[None, :] <= own[:, None]) & caches.real[:, None, None, :]
            mask = mask | (places[None, :] == own[:, None])  # what is not real sees itself
        out = self.layer(
            x, attention_mask=mask, position_ids=positions, use_cache=caches is not None,
            past_key_values=None if caches is None else caches.module,
            position_embeddings=self.model.model.rotary_emb(x, positions),
        )  # fmt: skip
        found: Tensor = self.norm(out[0] if isinstance(out, tuple) else out)
        return found

    def original(self, ids: Tensor) -> Tensor:
        """Return [texts, tokens, width] the states of the unmodified model for plain text."""
        with torch.no_grad(), lora.without(self.model.model.layers):
            found: Tensor = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
        return found

    def pair_weights(self) -> PairWeights:
        """Return the weights beside decoder and module, as they are stored."""
        return PairWeights(
            up=_host(self.compressor.up.weight),
            down=_host(self.compressor.down.weight),
            pad=_host(self.compressor.pad),
            gain=_host(self.confidence.norm.weight),
            judge=_host(self.confidence.judge.weight),
            score=_host(self.confidence.score.weight),
        )

    def module_weights(self) -> dict[str, Tensor]:
        """Return the module's weights by Qwen's names (`models.kinds.mtp`)."""
        found = {
            "mtp.fc.weight": self.fc.weight,
            "mtp.pre_fc_norm_embedding.weight": self.token_norm.weight,
            "mtp.pre_fc_norm_hidden.weight": self.state_norm.weight,
            "mtp.norm.weight": self.norm.weight,
        }
        found |= {f"mtp.layers.0.{name}": weight for name, weight in self.layer.named_parameters()}
        return {name: weight.detach() for name, weight in found.items()}


def _positions(real: Tensor) -> Tensor:
    return (real.long().cumsum(dim=1) - 1).clamp(min=0)


def _host(weight: Any) -> np.ndarray:
    return weight.detach().float().cpu().numpy().copy()  # type: ignore[no-any-return]
