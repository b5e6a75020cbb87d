"""What is asked of a draft build: plain data, checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from specport.quantize.prune import depth
from specport.quantize.train.recipe import Recipe

from specport.errors import InvalidInput

AGREEMENT = "agreement"


@dataclass(frozen=True)
class Request:
    """What to build. Raises InvalidInput for values that contradict each other or are out of range.

    layers, speed_up: how many layers to keep, or how many times as fast a draft step must become. With
                   neither, the number of layers that gives the most tokens per second.
    by:            how layers are ranked: "agreement" (how often the draft still proposes the target's token,
                   layer by layer), or a measure of `depth.MEASURES`.
    mlp:           share of the feed-forward channels to keep; below 1 only with distillation.
    head_tokens:   token ids that the head keeps; 0 keeps all, None chooses the fastest size.
    distil_tokens: tokens that the target writes for the draft to learn from; 0 = no distillation.
    prompts:       the user's own turns, which the target answers and the draft is chosen and measured by (see
                   `prompts.divide`).
    loss, epochs, learning_rate, seed, parallel: see `train.recipe.Recipe`.
    """

    layers: int | None = None
    speed_up: float | None = None
    by: str = AGREEMENT
    mlp: float = 1.0
    head_tokens: int | None = None
    distil_tokens: int = 0
    prompts: tuple[str, ...] = ()
    loss: str = "kl"
    epochs: float = 3.0
    learning_rate: float = 2e-5
    seed: int = 0
    parallel: int = 0

    def __post_init__(self) -> None:
        if self.layers is not None and self.speed_up is not None:
            raise InvalidInput("layers and speed_up exclude each other", "give one of them")
        if self.layers is not None and self.layers < 1:
            raise InvalidInput(f"layers is {self.layers}; it must be 1 or more")
        if self.speed_up is not None and not 1.0 <= self.speed_up <= 20.0:
            raise InvalidInput(f"speed_up is {self.speed_up}; it must be from 1 to 20")
        if not 0.1 <= self.mlp <= 1.0:
            raise InvalidInput(f"mlp is {self.mlp}; it must be from 0.1 to 1")
        if self.mlp < 1.0 and not self.distil_tokens:
            raise InvalidInput("a draft with fewer channels has to be distilled", "add --distil TOKENS")
        if self.by not in (AGREEMENT, *depth.MEASURES):
            known = ", ".join((AGREEMENT, *depth.MEASURES))
            raise InvalidInput(f"unknown measure {self.by!r}", f"choose one of {known}")
        if self.head_tokens is not None and self.head_tokens < 0:
            raise InvalidInput(f"head_tokens is {self.head_tokens}; it must be 0 or more")
        if self.distil_tokens < 0:
            raise InvalidInput(f"distil_tokens is {self.distil_tokens}; it must be 0 or more")
        if self.parallel and not self.distil_tokens:
            raise InvalidInput("a draft must be trained to draft in parallel", "add --distil TOKENS")
        if self.prompts and len(set(self.prompts)) < 4:
            raise InvalidInput(
                "fewer than four different prompts are too few to choose and measure a draft", "give more"
            )
        self.recipe()

    def recipe(self, precision: str = "fp32") -> Recipe:
        """Return the part of the request that training reads. precision: of the stored draft."""
        return Recipe(
            self.loss, self.epochs, self.learning_rate,
            seed=self.seed, precision=precision, parallel=self.parallel,
        )  # fmt: skip

    def check_bundle(self) -> None:
        """Raise InvalidInput where the request does not suit a draft bundle as the source."""
        fixed = (self.layers, self.speed_up, self.head_tokens)
        if self.mlp < 1.0 or any(value is not None for value in fixed):
            raise InvalidInput(
                "a draft bundle keeps its layers, channels and head",
                "leave out --layers, --speed-up, --mlp and --head-tokens, or name the model it was made from",
            )
