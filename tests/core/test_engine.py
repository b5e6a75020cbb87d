"""The loop on toy models: same text as plain decoding whatever is drafted, and nothing left behind."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from support.generations import PROMPT, begin, run
from support.sampling_law import check_law
from support.toy_model import ToyExitModel, ToyModel

from specport.core.engine import Engine
from specport.core.planning.planner import Planner, Source
from specport.core.planning.policies import Fixed, make_policy
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Drafted, Drafter, Plan
from specport.core.sampling.sampler import SamplingParams
from specport.drafters.cascade import Cascade
from specport.drafters.model.drafter import EarlyExitDrafter, ModelDrafter
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter


def drafter(kind: str, target: ToyModel, noise: float = 0.4) -> Drafter | None:
    draft = ModelDrafter(ToyModel(noise=noise), target.vocab_size)
    cut = [8, 3, 1, 10, 6, 9, 4]
    small = ToyModel(noise=noise)
    small.table = small.table[:, :, cut]
    return {
        "none": None,
        "ngram": NgramDrafter(),
        "model": draft,
        "cut": ModelDrafter(small, target.vocab_size, cut),
        "ngram|model": Cascade(NgramDrafter(), draft),
        "suffix": SuffixDrafter(History()),
        "planned": Planner(
            [Source(NgramDrafter(tokens_per_match=None)), Source(draft, StepCosts.prior({1: 1.0, 8: 1.5}))],
            StepCosts.prior({1: 1.0, 8: 1.5}),
            target.capabilities,
        ),
    }[kind]


@pytest.mark.parametrize("kind", ["none", "ngram", "suffix", "model", "cut", "ngram|model", "planned"])
@pytest.mark.parametrize("policy", ["planned", "fixed", "heuristic", "confidence"])
@pytest.mark.parametrize("batch", [True, False])
def test_greedy_text_equals_plain_decoding(kind: str, policy: str, batch: bool) -> None:
    target = ToyModel(batch=batch)
    engine = Engine(target, drafter(kind, target))
    prompts = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]
    texts = run(engine, *(begin(engine, p, policy=make_policy(policy)) for p in prompts))
    assert texts == [target.greedy(p, 40) for p in prompts]
    assert target.num_open == 0


@pytest.mark.parametrize("kind", ["ngram", "suffix", "model", "cut"])
@pytest.mark.parametrize("branches", [(2,), (3, 2), (2, 2, 2), (1, 3)])
def test_trees_give_the_same_text(kind: str, branches: tuple[int, ...]) -> None:
    target = ToyModel()
    engine = Engine(target, drafter(kind, target, noise=0.8))
    generation = begin(engine, policy=Fixed(4, branches))
    assert run(engine, generation) == [target.greedy(PROMPT, 40)]
    assert generation.metrics.num_accepted_tokens > 0


def test_trees_accept_more_than_chains() -> None:
    lengths = []
    for branches in ((), (3, 2)):
        target = ToyModel()
        engine = Engine(target, drafter("model", target, noise=0.8))
        generation = begin(engine, n=80, policy=Fixed(4, branches))
        run(engine, generation)
        lengths.append(generation.metrics.mean_acceptance_length)
    assert lengths[1] > lengths[0]


def test_branches_are_dropped_where_the_target_has_no_trees() -> None:
    target = ToyModel(tree=False)
    engine = Engine(target, drafter("model", target))
    assert run(engine, begin(engine, policy=Fixed(3, (2, 2)))) == [target.greedy(PROMPT, 40)]


@pytest.mark.parametrize(("draft_vocab", "width"), [(11, 16), (16, 11), (11, 13)])
def test_padded_vocabularies_of_different_size(draft_vocab: int, width: int) -> None:
    target = ToyModel(width=13)
    draft = ModelDrafter(ToyModel(width=max(width, 11), noise=0.3), target.vocab_size)
    engine = Engine(target, draft)
    assert run(engine, begin(engine)) == [target.greedy(PROMPT, 40)]
    sampled = begin(engine, params=SamplingParams(temperature=1.0, seed=draft_vocab))
    assert max(run(engine, sampled)[0]) < 13


@pytest.mark.parametrize("n", [1, 2, 3, 39, 40])
def test_never_more_than_max_new_tokens(n: int) -> None:
    target = ToyModel()
    engine = Engine(target, ModelDrafter(ToyModel(), target.vocab_size))  # a perfect draft
    generation = begin(engine, n=n, policy=Fixed(6))
    assert run(engine, generation) == [target.greedy(PROMPT, n)]
    assert generation.finish_reason == "length"
    assert generation.metrics.num_output_tokens == n


def test_end_token_inside_an_accepted_path_ends_the_text_there() -> None:
    target = ToyModel()
    text = target.greedy(PROMPT, 40)
    eos = frozenset([text[7]])
    expected = target.greedy(PROMPT, 40, eos)
    engine = Engine(target, ModelDrafter(ToyModel(), target.vocab_size))
    generation = begin(engine, policy=Fixed(6), eos_ids=eos)
    for _ in engine.run([generation]):
        pass
    assert generation.tokens[len(PROMPT) :] == expected
    assert generation.finish_reason == "stop"
    # The cache holds nothing that the text does not have.
    assert generation.handle.length <= len(generation.tokens)
    assert target.handles[0].tokens == generation.tokens[: generation.handle.length]


def test_context_is_filled_to_its_last_token() -> None:
    target = ToyModel(max_context=32)
    engine = Engine(target, ModelDrafter(ToyModel(max_context=32), target.vocab_size))
    generation = begin(engine, n=32 - len(PROMPT), policy=Fixed(5, (2, 2)))
    assert run(engine, generation) == [target.greedy(PROMPT, 32 - len(PROMPT))]
    assert len(generation.tokens) == 32


def test_prompts_longer_than_a_chunk_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specport.core.engine.PREFILL_CHUNK", 4)
    monkeypatch.setattr("specport.drafters.model.kv_cache.PREFILL_CHUNK", 3)
    target = ToyModel()
    engine = Engine(target, drafter("model", target))
    prompts = [PROMPT, PROMPT[:5]]
    assert run(engine, *(begin(engine, p) for p in prompts)) == [target.greedy(p, 40) for p in prompts]
    assert max(target.widths) <= 5


@pytest.mark.parametrize("kind", ["none", "ngram", "suffix", "model", "ngram|model"])
def test_a_seed_gives_the_same_text_twice_and_alone_or_in_a_batch(kind: str) -> None:
    params = SamplingParams(temperature=1.0, seed=5)
    target = ToyModel()
    engine = Engine(target, drafter(kind, target))
    alone = run(engine, begin(engine, params=params))
    assert run(engine, begin(engine, params=params)) == alone
    both = run(engine, begin(engine, [2, 2], params=params), begin(engine, params=params))
    assert both[1:] == alone


class Unsure(Fixed):
    """Stops where the drawn distribution is spread wide, as a classifier might."""

    top_k = 2

    def plan(self) -> Plan:
        return replace(super().plan(), stop=self)

    def goes_on(self, token: Drafted) -> bool:
        return token.top[0] - token.top[1] > 0.2 and token.entropy < 1.2 and token.position < 3


@pytest.mark.parametrize(
    "kind", ["ngram", "suffix", "model", "cut", "ngram|model", "planned", "stopped", "early-exit"]
)
@pytest.mark.parametrize("branches", [(), (3, 2)])
@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_sampling_law_of_the_whole_loop(kind: str, branches: tuple[int, ...], rule: str) -> None:
    """Chi-square of three-token texts against the exact law by enumeration."""
    from specport.core.verify.rules import rule_for

    vocab, samples = 4, 1500
    params = [
        SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=i) for i in range(samples)
    ]
    target = ToyExitModel(vocab=vocab, sharpness=1.0, exit_noise=0.7)
    draft = ToyModel(vocab, sharpness=1.0, noise=0.7)
    cut = [2, 0, 3]
    drafters: dict[str, Drafter] = {"ngram": NgramDrafter(min_ngram=1), "model": ModelDrafter(draft, vocab)}
    drafters["ngram|model"] = Cascade(NgramDrafter(min_ngram=1), drafters["model"])
    drafters["suffix"] = SuffixDrafter(History(), least=0.0)
    drafters["early-exit"] = EarlyExitDrafter(target)
    # A round's draft depends on what was drawn before it; what is drawn must be verified all the same.
    cheap = StepCosts((1, 2, 8), (0,), ((0.01, 0.011, 0.014),), measured=True)
    sources = [Source(NgramDrafter(tokens_per_match=None)), Source(ModelDrafter(draft, vocab), cheap)]
    drafters["planned"] = Planner(sources, StepCosts((1, 8), (0,), ((1.0, 5.0),), measured=True))
    drafters["stopped"] = drafters["model"]
    policy = Unsure if kind == "stopped" else Fixed
    if kind == "cut":
        draft.table = draft.table[:, :, cut]
        drafters["cut"] = ModelDrafter(draft, vocab, cut)
    engine = Engine(target, drafters[kind])
    prompt = [1, 2, 1, 3, 2]
    counts = np.zeros((vocab,) * 3)
    for p in params:
        g = begin(engine, prompt, 3, params=p, policy=policy(3, branches), rule=rule_for(p, rule))
        if kind in (
            "planned",
            "suffix",
        ):  # as if without a seed: with one, nothing is learnt from text to text
            g.sampler.params = replace(p, seed=None)
        counts[tuple(run(engine, g)[0])] += 1

    check_law(counts, target, prompt, params[0])


def test_cancel_ends_before_the_next_step_and_keeps_the_text() -> None:
    target = ToyModel(step_seconds=0.002)
    engine = Engine(target)
    generation = begin(engine, n=200)
    timer = threading.Timer(0.05, generation.cancel)
    timer.start()
    texts = run(engine, generation)
    assert generation.finish_reason == "cancelled"
    assert 0 < len(texts[0]) < 200
    assert texts[0] == target.greedy(PROMPT, len(texts[0]))


def test_dropping_the_iterator_frees_the_draft() -> None:
    target, draft = ToyModel(), ToyModel()
    engine = Engine(target, ModelDrafter(draft, target.vocab_size))
    commits = engine.run([begin(engine)])
    next(commits)
    next(commits)
    assert draft.num_open == 1
    commits.close()
    assert draft.num_open == 0


def test_threads_share_an_engine() -> None:
    target = ToyModel(step_seconds=0.0005)
    engine = Engine(target, drafter("model", target))
    prompts = [[i % 11, 3, 5] for i in range(6)]
    texts: dict[int, list[int]] = {}

    def work(i: int) -> None:
        texts[i] = run(engine, begin(engine, prompts[i]))[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [texts[i] for i in range(6)] == [target.greedy(p, 40) for p in prompts]


def test_metrics_count_what_happened() -> None:
    target = ToyModel()
    engine = Engine(target, ModelDrafter(ToyModel(), target.vocab_size))  # a perfect draft
    generation = begin(engine, n=11, policy=Fixed(4))
    run(engine, generation)
    metrics = generation.metrics
    # 1 token from the prompt, then two rounds of 4 drafted and 1 bonus token.
    assert (metrics.num_steps, metrics.num_drafts, metrics.num_draft_tokens) == (2, 2, 8)
    assert metrics.num_accepted_tokens == 8
    assert metrics.mean_acceptance_length == 5.0
    assert metrics.acceptance_rate == 1.0
    assert metrics.acceptance_rate_per_position == [1.0] * 4
    assert metrics.drafted_by == metrics.accepted_by == {"model": 8}
    assert metrics.num_output_tokens == 11


def test_sources_name_who_proposed_each_token() -> None:
    target = ToyModel()
    engine = Engine(target, ModelDrafter(ToyModel(), target.vocab_size))
    sources: list[str] = []
    generation = begin(engine, n=6, on_token=lambda _, source: bool(sources.append(source)))
    run(engine, generation)
    assert sources == ["", "model", "model", "model", "model", ""]


def test_plan_max_nodes() -> None:
    assert Plan(0).max_nodes == 0
    assert Plan(3).max_nodes == 3
    assert Plan(3, (2, 2)).max_nodes == 2 + 4 + 4
