"""What to tune, and how long. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from specport.bench.prompts import Prompt
from specport.drafters.registry import MODEL
from specport.drafters.spec import parse
from specport.errors import InvalidInput
from specport.outside.places import expanded
from specport.quantize.text.prompts import HELD_OUT


@dataclass(frozen=True)
class Options:
    """Hold what to tune, and how long.

    prompts: to measure on; () = built-in ones. drafts: models to try as drafts, as for `--draft`.
    precision: weights of the target; None = choose them. build: whether to build a draft where time allows.
    Others as for `specport.load`. Raises InvalidInput for numbers that cannot be used.
    """

    model: str | None = None
    prompts: tuple[Prompt, ...] = ()
    budget_s: float = 1800.0
    drafts: tuple[str, ...] = ()
    device: str = "auto"
    precision: str | None = None
    draft_precision: str | None = None
    exact: bool = True
    threads: int | None = None
    max_new_tokens: int = 128
    build: bool = True
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise InvalidInput(f"max_new_tokens is {self.max_new_tokens}; it must be 2 or more")
        object.__setattr__(self, "drafts", tuple(map(_model, self.drafts)))

    @property
    def chosen_prompts(self) -> tuple[Prompt, ...]:
        """The prompts to measure on."""
        own = (Prompt(str(i), "built-in", text) for i, text in enumerate(HELD_OUT, start=1))
        return self.prompts or tuple(own)


def _model(draft: str) -> str:
    """Return the model that a draft expression consists of. Raises InvalidInput for any other."""
    spec = parse(draft)
    if len(spec.parts) != 1 or spec.kinds != [MODEL]:
        raise InvalidInput(
            f"--draft {draft} names no model", "name the models to try; combinations are tried anyway"
        )
    (model,) = spec.models
    if model != "default" and "/" not in model and not expanded(model).exists():
        raise InvalidInput(
            f"there is no file or folder {model!r}", "give a model folder, a .gguf file or a hub id"
        )
    return model
