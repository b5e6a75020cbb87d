"""LLaDA 2 as a transformers decoder whose attention mask is given: a mixture of experts (arXiv 2512.15745).

Made from the configuration and tensor names of the published models (inclusionAI/LLaDA2.0-mini and -flash).
Attention has a norm on each head's queries and keys, and rotary positions on a part of each head. A router
scores experts by sigmoids. A bias only counts in the choice. Experts are chosen from the best groups, as in
DeepSeek-V3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from specport.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

# Entry, the only value that is computed here, and what holds where there is no entry.
_ONLY: tuple[tuple[str, Any, Any], ...] = (
    ("hidden_act", "silu", "silu"), ("use_qk_norm", True, True), ("norm_head", False, False),
    ("score_function", "sigmoid", "sigmoid"), ("use_sliding_window", False, False),
    ("rope_scaling", None, None), ("tie_word_embeddings", False, False),
)  # fmt: skip
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "moe_intermediate_size", "num_experts", "num_experts_per_tok", "n_group",
    "topk_group", "max_position_embeddings",
)  # fmt: skip


class LLaDA2Config(PretrainedConfig):  # type: ignore[misc]
    """The entries of a LLaDA 2 configuration that are computed with."""

    model_type = "llada2_moe"

    def __init__(self, **given: Any) -> None:
        for name in _SIZES:
            setattr(self, name, int(given.pop(name, 0)))
        heads = max(self.num_attention_heads, 1)
        self.head_dim = int(given.pop("head_dim", None) or self.hidden_size // heads)
        self.rotary_dim = int(self.head_dim * given.pop("partial_rotary_factor", 0.5))
        self.rotary_base = float(given.pop("rope_theta", 10000.0))
        self.rms_norm_eps = float(given.pop("rms_norm_eps", 1e-5))
        self.num_shared_experts = int(given.pop("num_shared_experts", 0) or 0)
        self.first_k_dense_replace = int(given.pop("first_k_dense_replace", 0))
        self.routed_scaling_factor = float(given.pop("routed_scaling_factor", 2.5))
        self.use_qkv_bias, self.use_bias = (
            bool(given.pop("use_qkv_bias", False)),
            bool(given.pop("use_bias", True)),
        )
        super().__init__(tie_word_embeddings=False)


def configuration(config: Mapping[str, Any], where: Path) -> LLaDA2Config:
    """Return what a config.json says. Raises ModelError for what is not computed here."""
    for name, only, default in _ONLY:
        if config.get(name, default) != only:
            raise ModelError(f"{where} (llada2_moe): {name} {config[name]!r} is not supported, only {only!r}")
    try:
        found = LLaDA2Config(**config)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{where} (llada2_moe) cannot be read: {error}") from error
    sizes = {name: getattr(found, name) for name in (*_SIZES, "head_dim", "rotary_dim")}
    wrong = [name for name, value in sizes.items() if not 0 < value < 1 << 24]
    if wrong:
        raise ModelError(f"{where} (llada2_moe): {wrong[0]} is {sizes[wrong[0]]}")
    experts, groups = found.num_experts, found.n_group
    if (
        found.num_attention_heads % found.num_key_value_heads or experts % groups or found.rotary_dim % 2
        or found.topk_group > groups or found.num_experts_per_tok > experts // groups * found.topk_group
        or experts // groups < 2 or found.rotary_dim > found.head_dim
    ):  # fmt: skip
        raise ModelError(f"{where} (llada2_moe): its heads, experts and groups do not fit one another")
    return found


class Norm(nn.Module):  # type: ignore[misc]
    """Root mean square norm, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class FeedForward(nn.Module):  # type: ignore[misc]
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return found


class Gate(nn.Module):  # type: ignore[misc]
    """Choose each token's experts, in float32."""

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.register_buffer("expert_bias", torch.zeros(config.num_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the experts [tokens, k] of x [tokens, width] and their weights in the sum."""
        config = self.config
        scores = nn.functional.linear(x.float(), self.weight.float()).sigmoid()
        ranked = (scores + self.expert_bias.float()).unflatten(1, (config.n_group, -1))
        groups = ranked.topk(2, dim=2).values.sum(dim=2).topk(config.topk_group, dim=1).indices
        closed = torch.ones_like(ranked[:, :, 0], dtype=torch.bool).scatter(1, groups, False)
        chosen = ranked.masked_fill(closed[:, :, None], -torch.inf).flatten(1)
        experts = chosen.topk(config.num_experts_per_tok, dim=1).indices
        weights = scores.gather(1, experts)
        if config.num_experts_per_tok > 1:
            weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-20)
        return experts, weights * config.routed_scaling_factor


class Experts(nn.Module):  # type: ignore[misc]
    """A mixture of experts, with those that every token has."""

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.gate = Gate(config)
        self.experts = nn.ModuleList(FeedForward(width, inner) for _ in range(config.num_experts))
        self.shared_experts = (
            FeedForward(width, inner * config.num_shared_experts) if config.num_shared_experts else None
        )

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        experts, weights = self.gate(flat)
        total = torch.zeros_like(flat, dtype=torch.float32)
        for number in experts.unique().tolist():
            token, place = torch.where(experts == number)
            answer = self.experts[number](flat[token]).float()
            total.index_add_(0, token, answer * weights[token, place, None])
        found = total.to(x.dtype).view_as(x)
        return found if self.shared_experts is None else found + self.shared_experts(x)


class Attention(nn.Module):  # type: ignore[misc]
    def __init__(self, config: LLaDA2Config, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.num_key_value_groups, self.is_causal = self.heads // self.kv_heads, False
        width, head = config.hidden_size, config.head_dim
        self.query_key_value = nn.Linear(
            width, (self.heads + 2 * self.kv_heads) * head, bias=config.use_qkv_bias
        )
        self.query_layernorm = Norm(head, config.rms_norm_eps)
        self.key_layernorm = Norm(head, config.rms_norm_eps)
        self.dense = nn.Linear(self.heads * head, width, bias=config.use_bias)

    def forward(self, x: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        shape = (self.heads, self.kv_heads, self.kv_heads)
        qkv = self.query_key_value(x).unflatten(2, (sum(shape), -1)).transpose(1, 2)
        query, key, value = qkv.split(shape, dim=1)
        query = _turned(self.query_layernorm(query), turns)
        key = _turned(self.key_layernorm(key), turns)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        found = attend(
            self, query, key, value, attention_mask=mask, scaling=self.config.head_dim**-0.5, dropout=0.0
        )
        answer: Tensor = self.dense(found[0].flatten(2))
        return answer


def _turned(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Return heads [texts, heads, T, width] with rotary positions on their first part."""
    cos, sin = (part[:, None] for part in turns)
    front, rest = x[..., : cos.shape[3]], x[..., cos.shape[3] :]
    half = front.shape[3] // 2
    swapped = torch.cat([-front[..., half:], front[..., :half]], dim=3)
    return torch.cat([front * cos + swapped * sin, rest], dim=3)


class Layer(nn.Module):  # type: ignore[misc]
    def __init__(self, config: LLaDA2Config, number: int) -> None:
        super().__init__()
        self.attention = Attention(config, number)
        self.input_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Norm(config.hidden_size, config.rms_norm_eps)
        dense = number < config.first_k_dense_replace
        self.mlp = FeedForward(config.hidden_size, config.intermediate_size) if dense else Experts(config)

    def forward(self, x: Tensor, mask: Tensor, turns: tuple[Tensor, Tensor], cache: Any) -> Tensor:
        x = x + self.attention(self.input_layernorm(x), mask, turns, cache)
        found: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return found


class _LLaDA2(PreTrainedModel):  # type: ignore[misc]
    config_class = LLaDA2Config
    base_model_prefix = "model"
    _supports_sdpa = _supports_attention_backend = True

    def _init_weights(self, module: Any) -> None:
        """Leave weights alone: all are read."""


class LLaDA2Decoder(_LLaDA2):
    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, number) for number in range(config.num_hidden_layers))
        self.norm = Norm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.word_embeddings

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any = None,
        **others: Any,
    ) -> BaseModelOutputWithPast:  # fmt: skip
        """Return the states of tokens. attention_mask: [texts, 1, T, rows], added to the scores."""
        x = self.word_embeddings(input_ids)
        size = self.config.rotary_dim
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=x.device) / size
        angles = position_ids[:, :, None].float() * self.config.rotary_base**-exponents
        angles = torch.cat([angles, angles], dim=2)
        turns = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, attention_mask, turns, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)


class LLaDA2(_LLaDA2):
    """The decoder with its head."""

    def __init__(self, config: LLaDA2Config) -> None:
        super().__init__(config)
        self.model = LLaDA2Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def get_decoder(self) -> Any:
        return self.model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, past_key_values: Any = None,
        logits_to_keep: Any = None, **others: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        """Return the logits of the tokens `logits_to_keep`; None = of all."""
        x = self.model(input_ids, attention_mask, position_ids, past_key_values).last_hidden_state
        kept = x if logits_to_keep is None else x[:, logits_to_keep]
        return CausalLMOutputWithPast(logits=self.lm_head(kept))
