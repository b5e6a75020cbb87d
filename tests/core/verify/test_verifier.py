"""The verifier: what it commits, and the log-probabilities and hidden states that come with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support.generations import GREEDY, PROMPT, begin, drafted, output, run
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyHandle, ToyModel

from specport.core.block import Block
from specport.core.policies.length_rules import Fixed
from specport.core.ports import Drafter, Needs, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.core.verify.rules import Greedy, rule_for
from specport.core.verify.verifier import TargetVerifier, Verification, VerifyRequest
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter

SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=3)
NOTHING = TokenTree()
RULES: list[Callable[[], Fixed] | None] = [None, lambda: Fixed(4), lambda: Fixed(3, (3, 2))]


def logprobs_of(model: ToyModel, tokens: list[int], start: int) -> list[float]:
    """Of each token from `start` on, out of the table alone."""
    found = []
    for i in range(start, len(tokens)):
        row = model.table[tokens[i - 2], tokens[i - 1]].astype(np.float64)
        found.append(float(row[tokens[i]] - np.log(np.exp(row).sum())))
    return found


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_logprobs_are_the_target_s_own_whatever_drafts(params: SamplingParams, rule) -> None:
    target = ToyModel()
    drafter = ToyDrafter(ToyModel(noise=0.4)) if rule else None
    engine = drafted(target, drafter, rule=rule or (lambda: Fixed(0)))
    generations = [begin(p, 30, params=params, logprobs=0) for p in (PROMPT, [7, 7])]
    silent = begin(n=30, params=params)
    run(engine, *generations, silent)
    for g in generations:
        found = [entry.logprob for entry in g.token_logprobs]
        assert found == pytest.approx(logprobs_of(target, g.tokens, g.num_prompt_tokens), abs=1e-6)
        assert [entry.token for entry in g.token_logprobs] == output(g) and len(found) == 30
        assert not any(entry.top for entry in g.token_logprobs)
    assert silent.token_logprobs == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_the_likeliest_tokens_are_the_row_s_largest(count: int, params: SamplingParams, rule) -> None:
    target = ToyModel(vocab=11, width=16)
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)), rule=rule or (lambda: Fixed(0)))
    generation = begin(n=20, params=params, logprobs=count)
    run(engine, generation)
    for i, entry in enumerate(generation.token_logprobs, len(PROMPT)):
        row = target.table[generation.tokens[i - 2], generation.tokens[i - 1]].astype(np.float64)
        logprobs = row - np.log(np.exp(row).sum())
        tokens = [token for token, _ in entry.top]
        assert len(set(tokens)) == min(count, 16)
        np.testing.assert_array_equal(row[tokens], -np.sort(-row)[:count])
        assert [logprob for _, logprob in entry.top] == pytest.approx(logprobs[tokens].tolist(), abs=1e-9)
        assert dict(entry.top).get(entry.token, entry.logprob) == entry.logprob
        if params.greedy:
            assert tokens[0] == entry.token == generation.tokens[i]


@pytest.mark.parametrize(
    "drafter",
    [
        NgramDrafter(),
        RecycleDrafter(11),
        ModelDrafter(ToyModel(noise=0.4), 11),
        ToyDrafter(ToyModel(noise=1.0)),
    ],
    ids=["ngram", "recycle", "model", "toy"],
)
@pytest.mark.parametrize("rule", [lambda: Fixed(4), lambda: Fixed(3, (3, 2))], ids=["chain", "tree"])
def test_logprobs_are_those_of_plain_decoding_bit_for_bit(
    drafter: Drafter, rule: Callable[[], Fixed]
) -> None:
    plain, drafted_ = (begin(n=60, logprobs=4) for _ in range(2))
    run(drafted(ToyModel()), plain)
    run(drafted(ToyModel(), drafter, rule=rule), drafted_)
    assert drafted_.token_logprobs == plain.token_logprobs and len(plain.token_logprobs) == 60
    assert drafted_.metrics.num_draft_tokens > 0


def test_logprobs_end_where_the_text_ends() -> None:
    target = ToyModel()
    eos = frozenset([target.greedy(PROMPT, 40)[7]])
    generation = begin(eos_ids=eos, logprobs=2)
    run(drafted(target, ToyDrafter(target), rule=lambda: Fixed(6)), generation)
    assert len(generation.token_logprobs) == len(output(generation)) < 40


def read(model: ToyModel, tokens: list[int]) -> ToyHandle:
    handle = model.open()
    if tokens:
        model.step([Row(handle, Block.chain(tokens), logits="none")])
        model.commit(handle, range(len(tokens)))
    return handle


def request(handle: ToyHandle, context: list[int], count: int, tree: TokenTree = NOTHING) -> VerifyRequest:
    return VerifyRequest(handle, context, count, tree, Greedy(), Sampler(GREEDY), logprobs=0)


def test_a_prompt_s_part_commits_its_tokens_and_brings_none() -> None:
    model = ToyModel(hidden_layers=(2,))
    handle = read(model, [])
    (answer,), _ = TargetVerifier(model, Needs(hidden=True, top_k=2)).verify([request(handle, PROMPT, 4)])
    assert isinstance(answer, Verification)
    assert (answer.tokens, answer.path, answer.logprobs, answer.top) == ((), (), (), None)
    assert handle.tokens == PROMPT[:4]
    assert answer.hidden[2].argmax(axis=1).tolist() == [(t + 2) % 11 for t in PROMPT[:4]]


def test_the_end_of_a_prompt_brings_one_token() -> None:
    model = ToyModel(hidden_layers=(0,))
    handle = read(model, PROMPT[:4])
    verifier = TargetVerifier(model, Needs(hidden=True, top_k=2))
    (answer,), _ = verifier.verify([request(handle, PROMPT, len(PROMPT) - 4)])
    assert isinstance(answer, Verification)
    assert [*answer.tokens] == model.greedy(PROMPT, 1) and handle.tokens == PROMPT
    assert answer.top is not None and answer.top.tolist()[0][0] == answer.tokens[0]
    assert len(answer.hidden[0]) == len(PROMPT) - 4
    found = [entry.logprob for entry in answer.logprobs]
    assert found == pytest.approx(logprobs_of(model, [*PROMPT, *answer.tokens], len(PROMPT)))


def test_a_tree_commits_the_path_that_the_rule_accepts() -> None:
    model = ToyModel(hidden_layers=(1,))
    text = model.greedy(PROMPT, 4)
    wrong = (text[0] + 1) % 11
    tree = TokenTree((wrong, text[0], 0, text[1], (text[2] + 1) % 11), (-1, -1, 0, 1, 3))
    handle = read(model, PROMPT[:-1])
    verifier = TargetVerifier(model, Needs(hidden=True, top_k=3))
    (answer,), _ = verifier.verify([request(handle, PROMPT, 1, tree)])
    assert isinstance(answer, Verification)
    assert (answer.path, [*answer.tokens]) == ((1, 3), text[:3])
    assert handle.tokens == [*PROMPT, *text[:2]]
    found = [entry.logprob for entry in answer.logprobs]
    assert found == pytest.approx(logprobs_of(model, [*PROMPT, *text[:3]], len(PROMPT)))
    assert answer.hidden[1].argmax(axis=1).tolist() == [(t + 1) % 11 for t in (PROMPT[-1], *tree.tokens)]
    assert answer.top is not None and answer.top.shape == (6, 3)
    assert answer.top[[0, 2, 4], 0].tolist() == text[:3]


def test_hidden_states_and_likeliest_tokens_come_only_where_they_are_needed() -> None:
    model = ToyModel(hidden_layers=(1,))
    asked: list[str] = []
    step = model.step
    model.step = lambda rows: (asked.extend(row.hidden for row in rows), step(rows))[1]  # type: ignore[assignment]
    (answer,), _ = TargetVerifier(model).verify([request(read(model, PROMPT[:-1]), PROMPT, 1)])
    assert isinstance(answer, Verification) and answer.hidden == {} and answer.top is None
    assert {*asked} == {"none"}


def test_rows_of_all_kinds_share_a_step_and_each_gets_its_own() -> None:
    model = ToyModel(hidden_layers=(1,), cache_tokens=40, max_context=20)
    part, end, tree, none = (read(model, tokens) for tokens in ([], [1, 2], [3, 4], [5] * 19))
    big = read(model, [6] * 5)
    requests = [
        request(part, [7] * 9, 3),
        request(none, [5] * 21, 2),
        request(end, [1, 2, 8, 9], 2),
        request(big, [6] * 18, 13),
        request(tree, [3, 4, 1], 1, TokenTree.chain(model.greedy([3, 4, 1], 2))),
    ]
    answers, _ = TargetVerifier(model, Needs(hidden=True)).verify(requests)
    assert (answers[1], answers[3]) == ("context", "cache")
    done = [answers[i] for i in (0, 2, 4)]
    assert all(isinstance(answer, Verification) for answer in done)
    assert [[*answer.tokens] for answer in done] == [
        [],
        model.greedy([1, 2, 8, 9], 1),
        model.greedy([3, 4, 1], 3),
    ]
    assert [len(answer.hidden[1]) for answer in done] == [3, 2, 3]
    assert done[1].hidden[1].argmax(axis=1).tolist() == [9, 10]
    assert [h.length for h in (part, none, end, big, tree)] == [3, 19, 4, 5, 5]


def test_a_step_of_prompts_alone_asks_for_no_logits() -> None:
    model = ToyModel()
    outputs = []
    step = model.step
    model.step = lambda rows: outputs.append(step(rows)) or outputs[-1]  # type: ignore[assignment, func-returns-value]
    handles = [read(model, []) for _ in range(2)]
    outputs.clear()
    TargetVerifier(model).verify([request(handle, PROMPT, 4) for handle in handles])
    assert outputs[0].logits.shape == (0, 11) and [h.length for h in handles] == [4, 4]


def test_a_rule_may_accept_nothing_of_a_drawn_tree() -> None:
    model = ToyModel()
    q = np.zeros(11, dtype=np.float32)
    q[4] = 1.0
    handle = read(model, PROMPT[:-1])
    never = int(model.table[PROMPT[-2], PROMPT[-1]].argmin())
    q = np.eye(11, dtype=np.float32)[never]
    params = SamplingParams(temperature=0.01, seed=1)
    asked = VerifyRequest(
        handle, PROMPT, 1, TokenTree.chain([never], probs=[q]), rule_for(params), Sampler(params)
    )
    (answer,), _ = TargetVerifier(model).verify([asked])
    assert isinstance(answer, Verification) and answer.path == () and handle.tokens == PROMPT
    assert [*answer.tokens] == model.greedy(PROMPT, 1)
