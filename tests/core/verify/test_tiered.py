"""Tiered verification on toy models: what each tier decides, and that escalating everywhere is lossless."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.generations import GREEDY, PROMPT, begin, output, run
from support.laws.sampling_law import check_law
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import Fixed
from specport.core.ports import Drafter
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import Prefix
from specport.core.sampling.sampler import Sampler
from specport.core.sequence import KeptCache
from specport.core.verify.gates import EntropyGate, Gate, Law, RatioGate, check_logprobs, parse
from specport.core.verify.tiered import TieredVerifier
from specport.core.verify.tiered_model import TieredModel
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.errors import InvalidInput

ALL = [RatioGate(3.0, 2.0), EntropyGate(0.0)]  # everything is the target's
NOTHING = RatioGate(0.0, -1.0)  # every draft is accepted
SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, repetition_penalty=1.2, seed=3)
CHAIN: Callable[[], Fixed] = lambda: Fixed(4)  # noqa: E731
TREE: Callable[[], Fixed] = lambda: Fixed(3, (3, 2))  # noqa: E731


def pair(*, slim_noise: float = 0.3, **options: Any) -> tuple[ToyModel, ToyModel]:
    full, slim = ToyModel(**options), ToyModel(noise=slim_noise, **options)
    full.slim = slim
    return full, slim


def engine_of(
    full: ToyModel, gate: Gate, drafter: Drafter | None, rule: Callable[[], Fixed] = CHAIN
) -> Engine:
    model = TieredModel(full)
    policy = FirstProposal([drafter], rule, tree=full.capabilities.tree) if drafter else None
    return Engine(
        model, policy, TieredVerifier(model, gate, policy.needs if policy else NgramDrafter().needs)
    )


@pytest.mark.parametrize("rule", [CHAIN, TREE], ids=["chain", "tree"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("gate", ALL, ids=lambda gate: gate.name)
def test_where_everything_escalates_the_text_is_that_of_lossless_verification(gate, params, rule) -> None:
    full, slim = pair()
    drafter = ToyDrafter(ToyModel(noise=0.4))
    texts = [begin(p, 40, params=params) for p in (PROMPT, [7, 7])]
    found = run(engine_of(full, gate, drafter, rule), *texts)
    plain = [begin(p, 40, params=params) for p in (PROMPT, [7, 7])]
    assert found == run(Engine(ToyModel(), FirstProposal([drafter], rule, tree=True)), *plain)
    if params.greedy:
        assert found == [ToyModel().greedy(p, 40) for p in (PROMPT, [7, 7])]
    for text in texts:
        counts = text.metrics.tiers
        assert counts is not None and counts.full_calls == counts.slim_steps == text.metrics.num_steps
        assert (counts.accepted, counts.regenerated, counts.escalated) == (0, 0, 39)
    assert full.num_open == slim.num_open == 0


def test_where_nothing_escalates_the_target_is_called_only_without_a_draft() -> None:
    full, _ = pair()
    text = begin(n=40)
    draft = ToyModel(noise=0.4)
    run(engine_of(full, NOTHING, ToyDrafter(draft)), text)
    counts = text.metrics.tiers
    assert counts is not None and counts.regenerated == 0
    first = ToyModel().greedy(PROMPT, 1)
    # The last token has no draft: a step may add one token more than it drafted.
    assert output(text)[:-1] == [*first, *draft.greedy([*PROMPT, *first], 38)]
    assert (counts.full_calls, counts.escalated, counts.accepted) == (1, 1, 38)
    assert text.metrics.mean_acceptance_length == 38 / text.metrics.num_drafts
    assert text.metrics.rejection_rate == 0.0 and len(full.steps) == 2
    # In its last call the target read all that was accepted without it, in one step.
    assert full.widths == [len(PROMPT), 39]


def test_steps_in_which_the_target_catches_up_are_counted() -> None:
    """Before a tree with branches it reads in a step of its own what was accepted without it."""
    full, _ = pair(slim_noise=0.8)
    text = begin(n=60)
    run(engine_of(full, RatioGate(0.9, 0.8), ToyDrafter(ToyModel(noise=2.0)), TREE), text)
    counts = text.metrics.tiers
    assert counts is not None and counts.full_calls == len(full.steps) - 1  # one read the prompt
    assert counts.full_calls > counts.slim_steps


def test_tiers_are_chosen_by_the_ratio_to_the_likeliest_token() -> None:
    """A walk that is written out again, token by token."""
    full, slim = pair(slim_noise=0.8)
    draft, gate = ToyModel(noise=2.0), RatioGate(0.6, 0.2)
    text = begin(n=60)
    run(engine_of(full, gate, ToyDrafter(draft)), text)
    tokens, accepted, regenerated, escalated, calls = [*PROMPT, *full.greedy(PROMPT, 1)], 0, 0, 0, 0

    def best(model: ToyModel) -> int:
        return int(model.table[tokens[-2], tokens[-1]].argmax())

    while len(tokens) < len(PROMPT) + 60:
        depth = min(4, len(PROMPT) + 60 - len(tokens) - 1)
        drafted = draft.greedy(tokens, depth)
        asked = depth == 0
        calls += asked
        for token in [*drafted, None]:
            row = slim.table[tokens[-2], tokens[-1]]
            ratio = 0.0 if token is None else float(np.exp(row[token] - row.max()))
            if token is None and not asked:
                break
            if not asked and ratio >= 0.6:
                tokens.append(token)  # type: ignore[arg-type]
                accepted += 1
                continue
            if not asked and ratio >= 0.2:
                tokens.append(best(slim))
                regenerated += 1
                break
            calls += not asked
            asked = True
            tokens.append(best(full))
            escalated += 1
            if tokens[-1] != token:
                break
    assert text.tokens == tokens
    counts = text.metrics.tiers
    assert counts is not None and min(accepted, regenerated, escalated) > 3
    assert (counts.accepted, counts.regenerated, counts.escalated) == (accepted, regenerated, escalated)
    assert counts.full_calls == calls < counts.slim_steps


@pytest.mark.parametrize("rule", [CHAIN, TREE], ids=["chain", "tree"])
def test_with_a_perfect_slim_verifier_an_entropy_gate_gives_the_target_s_text(rule) -> None:
    full, _ = pair(slim_noise=0.0)
    text = begin(n=60)
    run(engine_of(full, EntropyGate(1.2), ToyDrafter(ToyModel(noise=0.9)), rule), text)
    counts = text.metrics.tiers
    assert output(text) == full.greedy(PROMPT, 60)
    assert counts is not None and min(counts.accepted, counts.escalated) > 0
    assert counts.regenerated > 0 or rule is TREE


@pytest.mark.parametrize("gate", [ALL[0], EntropyGate(0.9)], ids=lambda gate: gate.name)
def test_sampled_texts_have_the_target_s_law(gate) -> None:
    """Also with an entropy gate, where the slim verifier is as good as the target."""
    full, _ = pair(vocab=4, slim_noise=0.0, sharpness=1.0)
    engine = engine_of(full, gate, ToyDrafter(ToyModel(vocab=4, noise=0.6, sharpness=1.0)))
    counts = np.zeros((4, 4, 4))
    params = [SamplingParams(temperature=1.0, seed=seed) for seed in range(1800)]
    for start in range(0, len(params), 60):
        texts = [begin([2, 1], 3, params=each) for each in params[start : start + 60]]
        for text in run(engine, *texts):
            counts[tuple(text)] += 1
    check_law(counts, full, [2, 1], SamplingParams(temperature=1.0))


@pytest.mark.parametrize("cache_tokens", [None, 60])
@pytest.mark.parametrize("any_mask", [False, True])
def test_texts_do_not_depend_on_batches_and_memory(any_mask: bool, cache_tokens: int | None) -> None:
    def texts(**options: Any) -> list[list[int]]:
        full, slim = pair(any_mask=any_mask, **options)
        engine = engine_of(full, RatioGate(0.5, 0.1), ToyDrafter(ToyModel(noise=0.6)), TREE)
        prompts, found = [PROMPT, [7, 7], [1, 2, 3]], []
        if options:
            found = run(engine, *(begin(p, 30) for p in prompts))
        else:
            found = [run(engine, begin(p, 30))[0] for p in prompts]
        assert full.num_open == slim.num_open == 0 and full.num_used == slim.num_used == 0
        return found

    options = {} if cache_tokens is None else {"cache_tokens": cache_tokens}
    assert texts(batch=True, **options) == texts()
    if cache_tokens is None:
        assert texts(batch=False) == texts()


def test_a_text_ends_at_its_end_token_and_leaves_its_cache_for_the_next_turn() -> None:
    full, slim = pair()
    drafter = ToyDrafter(ToyModel(noise=0.4))
    whole = run(engine_of(full, NOTHING, drafter), begin(n=30))[0]
    engine, kept = engine_of(full, NOTHING, drafter), KeptCache()
    end = next(token for token in whole[4:] if token not in whole[:4])
    text = begin(n=30, eos_ids=frozenset([end]), kept=kept)
    assert run(engine, text) == [whole[: whole.index(end) + 1]] and text.finish_reason == "stop"
    again = begin([*text.tokens, 5], 10, kept=kept)
    fresh = begin([*text.tokens, 5], 10)
    assert run(engine, again) == run(engine_of(*pair()[:1], NOTHING, drafter), fresh)
    assert again.metrics.num_cached_tokens == len(text.tokens) - 1
    engine.release(kept)
    engine.tidy()
    assert full.num_open == slim.num_open == 0


def test_a_step_that_the_target_refuses_changes_nothing() -> None:
    full, slim = pair(slim_noise=0.0)
    engine = engine_of(full, RatioGate(0.9, 0.8), ToyDrafter(ToyModel(noise=0.8)))
    want = run(engine, begin(n=100))[0]
    full.cache_tokens = 200  # the slim verifier has room for both texts, the target has not
    texts = [begin(n=100) for _ in range(2)]
    assert run(engine, *texts) == [want, want]
    assert sum(text.metrics.num_preemptions for text in texts) > 0
    assert full.num_open == slim.num_open == 0


def test_drafters_that_learn_from_likeliest_tokens_get_them() -> None:
    full, _ = pair()
    text = begin(n=40)
    run(engine_of(full, RatioGate(3.0, 2.0), RecycleDrafter(11)), text)
    assert output(text) == full.greedy(PROMPT, 40) and text.metrics.num_accepted_tokens > 0


def test_a_law_has_the_ratio_and_the_entropy_of_the_sampling_distribution() -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    greedy = Law(logits, Sampler(GREEDY), Prefix([0]))
    assert [greedy.ratio(t) for t in (0, 1, 2, 9)] == pytest.approx([1.0, 0.5, 0.25, 0.0])
    assert greedy.entropy() == pytest.approx(1.75 * np.log(2), rel=1e-6)
    cut = Law(logits, Sampler(SamplingParams(temperature=1.0, top_k=2)), Prefix([0]))
    assert [cut.ratio(t) for t in (0, 1, 2)] == pytest.approx([1.0, 0.5, 0.0])
    assert cut.entropy() == pytest.approx(np.log(3) - 2 / 3 * np.log(2), rel=1e-6)


def test_gates_are_parsed_and_refused_without_agreement() -> None:
    assert parse("lossless", lossy=False) is None
    assert parse("tiered:0.6,0.3", lossy=True) == RatioGate(0.6, 0.3)
    assert parse("entropy:1.5", lossy=True) == EntropyGate(1.5)
    with pytest.raises(InvalidInput, match="may change the text"):
        parse("tiered:0.6,0.3", lossy=False)
    with pytest.raises(InvalidInput, match="first threshold must be the larger"):
        parse("tiered:0.3,0.6", lossy=True)
    for wrong in (
        "",
        "tiered",
        "tiered:1",
        "tiered:nan,0",
        "tiered:1,-1",
        "entropy:x",
        "entropy:1,2",
        "typical",
    ):
        with pytest.raises(InvalidInput, match="unknown verification"):
            parse(wrong, lossy=True)
    check_logprobs(None)
    with pytest.raises(InvalidInput, match="log-probabilities"):
        check_logprobs(0)


def test_what_cannot_be_tiered_is_refused() -> None:
    with pytest.raises(ValueError, match="no slim verifier"):
        TieredModel(ToyModel())
    full, _ = pair()
    with pytest.raises(ValueError, match="hidden states"):
        TieredVerifier(TieredModel(full), ALL[0], ToyDrafter(full).needs.__class__(hidden=True))
