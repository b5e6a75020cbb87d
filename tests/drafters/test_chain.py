"""Drafts that write a whole chain in one call: the same text, and only where nobody asks in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.generations import PROMPT, begin, run
from support.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.model_kinds import Chains
from specport.core.planning.policies import Fixed, make_policy
from specport.core.ports import Row
from specport.core.sampling.sampler import SamplingParams
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import ModelDrafter


class Chaining(ToyModel):
    """A draft that writes whole chains itself; `calls`: rows and depth of each."""

    def __init__(self, most: int = 16, **options: Any) -> None:
        super().__init__(**options)
        self.capabilities = replace(self.capabilities, chain=most)
        self.calls: list[tuple[int, int]] = []

    def chain(self, rows: Sequence[Row], depth: int, vocab: int | None = None) -> Chains:
        self.calls.append((len(rows), depth))
        found = []
        for row in rows:
            assert row.tree.is_chain and 0 < len(row.tree) <= self.capabilities.chain
            text = [0, *row.handle.tokens, *row.tree.tokens]
            for _ in range(depth):
                text.append(int(self.table[text[-2] % self.vocab, text[-1] % self.vocab, :vocab].argmax()))
            found.append(text[-depth:])
            row.handle.pending = TokenTree.chain((*row.tree.tokens, *found[-1][:-1]))
        return Chains(np.array(found), np.ones((len(rows), depth), dtype=np.float32))


@pytest.mark.parametrize("policy", ["fixed", "heuristic", "confidence"])
def test_chains_in_one_call_are_those_of_single_steps(policy: str) -> None:
    prompts = [PROMPT, [1], [7, 7, 7]]
    texts, counts = [], []
    for draft in (ToyModel(noise=0.4), Chaining(noise=0.4)):
        target = ToyModel()
        engine = Engine(target, ModelDrafter(draft, 9))  # columns that the target lacks are never drafted
        generations = [begin(engine, p, policy=make_policy(policy)) for p in prompts]
        texts.append(run(engine, *generations))
        counts.append([g.metrics.num_accepted_tokens for g in generations])
        assert draft.num_open == 0
        if isinstance(draft, Chaining):
            assert bool(draft.calls) == (policy in ("fixed", "heuristic"))  # confidence asks after each token
    assert texts[0] == texts[1] == [target.greedy(p, 40) for p in prompts]
    assert counts[0] == counts[1]


def test_a_long_context_is_read_in_steps_before_chains() -> None:
    draft = Chaining(most=4, noise=0.2)
    engine = Engine(ToyModel(), ModelDrafter(draft, 11))
    assert run(engine, begin(engine)) == [ToyModel().greedy(PROMPT, 40)]
    assert draft.calls and max(draft.widths) == len(PROMPT) + 1


def test_no_chains_for_sampled_texts_and_trees() -> None:
    draft = Chaining()
    engine = Engine(ToyModel(), ModelDrafter(draft, 11))
    run(engine, begin(engine, params=SamplingParams(temperature=1.0, seed=1)))
    run(engine, begin(engine, policy=Fixed(3, (2, 2))))
    run(engine, begin(engine, params=SamplingParams(repetition_penalty=1.3)))
    assert not draft.calls
