"""Drafts that write a whole chain in one call: the same text, and only where nobody asks in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from support.generations import PROMPT, begin, drafted, run
from support.toys.toy_model import ToyModel

from specport.core.policies.length_rules import Fixed, make_length_rule
from specport.core.ports import Block, Chains, Row
from specport.core.sampling.params import SamplingParams
from specport.drafters.model.drafter import ModelDrafter


class Chaining(ToyModel):
    """A draft that writes whole chains itself; `calls`: rows and depth of each."""

    def __init__(self, most: int = 16, **options: Any) -> None:
        super().__init__(**options)
        self.chain = Chain(self, most)
        self.calls: list[tuple[int, int]] = []


class Chain:
    """The chains of a `Chaining` toy, as `GreedyChain` says."""

    def __init__(self, model: Chaining, most: int) -> None:
        self._model, self.max_tokens = model, most

    def draft(self, rows: Sequence[Row], depth: int, vocab: int | None = None) -> Chains | None:
        model = self._model
        blocks = []
        for row in rows:
            assert row.block.is_chain and 0 < len(row.block) <= self.max_tokens
            text = [0, *row.handle.tokens, *row.block.tokens]
            for _ in range(depth):
                scores = model.table[text[-2] % model.vocab, text[-1] % model.vocab, :vocab]
                text.append(int(scores.argmax()))
            blocks.append(Block.chain(text[1 + row.handle.length :]))
            if model.room(row.handle) < len(blocks[-1]) - 1:
                return None
        model.calls.append((len(rows), depth))
        for row, block in zip(rows, blocks, strict=True):
            row.handle.pending = Block.chain(block.tokens[:-1])
        found = [block.tokens[-depth:] for block in blocks]
        return Chains(np.array(found), np.ones((len(rows), depth), dtype=np.float32))


@pytest.mark.parametrize("policy", ["fixed", "heuristic", "confidence"])
def test_chains_in_one_call_are_those_of_single_steps(policy: str) -> None:
    prompts = [PROMPT, [1], [7, 7, 7]]
    texts, counts = [], []
    for draft in (ToyModel(noise=0.4), Chaining(noise=0.4)):
        target = ToyModel()
        drafter = ModelDrafter(draft, 9)  # columns that the target lacks are never drafted
        engine = drafted(target, drafter, rule=lambda: make_length_rule(policy))
        generations = [begin(p) for p in prompts]
        texts.append(run(engine, *generations))
        counts.append([g.metrics.num_accepted_tokens for g in generations])
        assert draft.num_open == 0
        if isinstance(draft, Chaining):
            assert bool(draft.calls) == (policy in ("fixed", "heuristic"))  # confidence asks after each token
    assert texts[0] == texts[1] == [target.greedy(p, 40) for p in prompts]
    assert counts[0] == counts[1]


def test_a_long_context_is_read_in_steps_before_chains() -> None:
    draft = Chaining(most=4, noise=0.2)
    engine = drafted(ToyModel(), ModelDrafter(draft, 11))
    assert run(engine, begin()) == [ToyModel().greedy(PROMPT, 40)]
    assert draft.calls and max(draft.widths) == len(PROMPT) + 1


def test_no_chains_for_sampled_texts_and_trees() -> None:
    draft = Chaining()
    drafter = ModelDrafter(draft, 11)
    engine = drafted(ToyModel(), drafter)
    run(engine, begin(params=SamplingParams(temperature=1.0, seed=1)))
    run(engine, begin(params=SamplingParams(repetition_penalty=1.3)))
    run(drafted(ToyModel(), drafter, rule=lambda: Fixed(3, (2, 2))), begin())
    assert not draft.calls
