"""Log-probabilities of a drafted text: those of plain decoding, bit for bit, whatever drafts."""

from __future__ import annotations

import pytest

from specport.conformance.pair import Pair, policy
from specport.conformance.steps import Probe
from specport.core.engine import Engine
from specport.core.ports import Block, Row
from specport.core.sampling.logprobs import TokenLogprob, token_logprob
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation

pytestmark = pytest.mark.needs("exact")
NUM_TOKENS, NUM_TOP = 24, 5
PARAMS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(
        temperature=0.8, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.3, seed=3
    ),
}


def plain(probe: Probe, tokens: list[int], num_prompt_tokens: int) -> list[TokenLogprob]:
    """Return what plain decoding of these tokens gives: the prompt in one step, then one token a step."""
    handle = probe.model.open()
    logits = probe.step(Row(handle, Block.chain(tokens[:num_prompt_tokens]), logits="last"))[0][-1]
    probe.model.commit(handle, range(num_prompt_tokens))
    found = []
    for token in tokens[num_prompt_tokens:]:
        found.append(token_logprob(logits, token, NUM_TOP))
        logits = probe.feed(handle, [[token]])[0]
    probe.model.close(handle)
    return found


@pytest.mark.parametrize("params", PARAMS.values(), ids=PARAMS)
@pytest.mark.parametrize("name", [None, "ngram", "recycle", "model"])
def test_they_are_those_of_plain_decoding(
    pair: Pair, probe: Probe, ids: list[int], name: str | None, params: SamplingParams
) -> None:
    """Two texts at once, one of which repeats itself."""
    engine = Engine(pair.target.model, policy(pair, name) if name else None)
    generations = [
        Generation([*prompt], params, NUM_TOKENS, logprobs=NUM_TOP) for prompt in (ids[:9], ids[50:62] * 4)
    ]
    for _ in engine.run(generations):
        pass
    for generation in generations:
        assert len(generation.token_logprobs) == NUM_TOKENS
        assert generation.token_logprobs == plain(probe, generation.tokens, generation.num_prompt_tokens)
    # A sampled text may repeat nothing that could be drafted from.
    if name and (params.greedy or name == "model"):
        assert sum(g.metrics.num_draft_tokens for g in generations) > 0
