"""Time ways to decode: what each of them owes a comparison, and specport's own on one loaded target.

A method is named as DRAFT, DRAFT@POLICY or DRAFT@POLICY=N: `plain`, `ngram`, `ngram|MODEL@fixed=4`. A tree is
drafted by `DRAFT@fixed=N:B,B,...` with the number of branches at depth 1, 2, ...: `ngram@fixed=4:2`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from specport.core.engine import Engine
from specport.core.policies.drafting import Drafting
from specport.core.ports import Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.errors import InvalidInput

PLAIN = "plain"


@dataclass(frozen=True)
class Run:
    """One prompt decoded once.

    tokens:  output token ids, the end token included if there was one.
    ttft_s:  until the first of them; total_s: until the last.
    metrics: the method's own counters (`core.metrics`), where it has them.
    num_first: tokens that came at once with the first; they are no part of the time per output token.
    """

    tokens: list[int]
    ttft_s: float
    total_s: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    num_first: int = 1


class Method(Protocol):
    """What is compared. `settings` says everything that a reader needs to run it again."""

    name: str
    settings: Mapping[str, Any]

    def run(self, prompt: Sequence[int], max_new_tokens: int) -> Run:
        """Decode greedily until an end token or the limit."""
        ...


@dataclass(frozen=True)
class Spec:
    """A parsed name. drafting: the policy with its numbers."""

    name: str
    draft: str
    drafting: Drafting


def parse(name: str) -> Spec:
    """Raises InvalidInput for a name that means nothing."""
    if name == PLAIN:
        return Spec(name, "none", Drafting("fixed", 0))
    draft, _, policy = name.partition("@")
    policy, _, numbers = policy.partition("=")
    number, _, tree = numbers.partition(":")
    try:
        num = int(number) if number else None
        branches = tuple(int(n) for n in tree.split(",")) if tree else ()
    except ValueError:
        raise InvalidInput(
            f"cannot read the method {name!r}", "write it like 'ngram@fixed=4' or 'ngram@fixed=4:2,2'"
        ) from None
    return Spec(name, draft, Drafting(policy or "planned", num, branches))


class Own:
    """One of specport's methods. A drafter learns from prompt to prompt, as in a pipeline."""

    def __init__(
        self, name: str, engine: Engine, eos_ids: frozenset[int], settings: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.settings = settings
        self._engine = engine
        self._eos_ids = eos_ids

    def run(self, prompt: Sequence[int], max_new_tokens: int) -> Run:
        began = time.perf_counter()
        generation = Generation(list(prompt), SamplingParams(), max_new_tokens, self._eos_ids)
        for _ in self._engine.run([generation]):
            pass
        total = time.perf_counter() - began
        metrics = generation.metrics
        tokens = generation.tokens[generation.num_prompt_tokens :]
        return Run(tokens, metrics.ttft_s, total, metrics.as_dict())


def own(
    spec: Spec, policy: Policy | None, engine: Engine, eos_ids: frozenset[int], about: Mapping[str, Any]
) -> Own:
    """Return a method that drafts by this policy on the model of `engine`, which other methods share."""
    how = {f.name: getattr(spec.drafting, f.name) for f in fields(spec.drafting) if f.name != "classifier"}
    settings = {**about, "draft": spec.draft, **how}
    return Own(spec.name, engine.beside(policy), eos_ids, settings)
