"""The planner in a world of known costs and chances: what pays is drafted, what does not is not.

Time is a number here that drafting and verifying move, so nothing depends on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from specport.core.estimates.acceptance_rates import CENTRES
from specport.core.planning.passes import ParallelPasses
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Capabilities, Drafted, DraftRequest, Needs, Outcome, Plan, Prefilled
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree

SLOPE = 0.1  # of a one-token step, for each further token


@dataclass
class World:
    """rates: drafter -> true chance of each of its tokens."""

    rates: dict[str, float]
    now: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def clock(self) -> float:
        return self.now


class Fake:
    """Drafts chains of any depth, each level in `cost` seconds, all tokens of one confidence."""

    prior = CENTRES
    needs = Needs()
    parallel = None

    def __init__(self, world: World, name: str, confidence: float = 0.75, cost: float = 0.0) -> None:
        self.world, self.name, self.confidence, self.cost = world, name, confidence, cost
        self.asked: list[int] = []  # depth of each draft
        self.forgotten: list[int] = []
        self.unread = 0

    def behind(self, request: DraftRequest) -> int:
        return self.unread if self.unread and not self.asked else 1

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._draft(request.plan) for request in requests]

    def _draft(self, plan: Plan) -> TokenTree:
        depth = 0
        while depth < plan.depth:
            depth += 1
            self.world.now += self.cost
            if plan.stop is not None and not plan.stop.goes_on(Drafted((self.confidence,) * depth)):
                break
        self.asked.append(depth)
        confidence = (self.confidence,) * depth
        return TokenTree.chain(range(depth), self.name, confidence=confidence)

    def prefilled(self, events: Sequence[Prefilled]) -> None: ...

    def observe(self, outcomes: Sequence[Outcome]) -> None: ...

    def forget(self, key: int) -> None:
        self.forgotten.append(key)


def table(one: float = 1.0) -> StepCosts:
    widths = (1, 2, 4, 8, 16, 32)
    return StepCosts(widths, (0,), (tuple(one * (1 + SLOPE * (w - 1)) for w in widths),), measured=True)


def play(planner: Planner, world: World, rounds: int, key: int = 0, **params: float) -> list[TokenTree]:
    """Rounds of one sequence; returns the trees that were verified."""
    sampler, context, trees = Sampler(SamplingParams(**params)), [0] * 20, []  # type: ignore[arg-type]
    for _ in range(rounds):
        (tree,) = planner.draft([DraftRequest(key, context, Plan(16), sampler, num_left=500)])
        accepted = 0
        while accepted < len(tree) and world.rng.random() < world.rates[tree.sources[0]]:
            accepted += 1
        seconds = 1.0 + SLOPE * len(tree)
        world.now += seconds
        planner.observe([Outcome(key, tree, tuple(range(accepted)), seconds, len(context))])
        context += [0] * (accepted + 1)
        trees.append(tree)
    return trees


def depths(trees: list[TokenTree]) -> list[int]:
    return [len(tree) for tree in trees]


def best_depth(rate: float, draft: float = 0.0) -> int:
    """The chain with the most expected tokens a second, by trying them all."""
    tokens = 1.0 + np.cumsum(rate ** np.arange(1, 17))
    return int(np.argmin((1.0 + (SLOPE + draft) * np.arange(1, 17)) / tokens)) + 1


@pytest.mark.parametrize("rate", [0.3, 0.6, 0.8, 0.95])
def test_a_free_draft_gets_the_depth_that_pays_best(rate: float) -> None:
    world = World({"free": rate})
    trees = play(Planner([Source(Fake(world, "free"))], table(), clock=world.clock), world, 600)
    assert np.median(depths(trees[200:])) == pytest.approx(best_depth(rate), abs=1)


def test_what_is_never_accepted_is_soon_not_verified() -> None:
    world = World({"free": 0.0})
    trees = play(Planner([Source(Fake(world, "free"))], table(), clock=world.clock), world, 300)
    assert sum(depths(trees[100:])) == 0


@pytest.mark.parametrize(("rate", "cost", "pays"), [(0.9, 0.2, True), (0.9, 2.0, False), (0.2, 0.2, False)])
def test_a_model_is_asked_while_it_pays(rate: float, cost: float, pays: bool) -> None:
    world = World({"model": rate})
    model = Fake(world, "model", confidence=rate, cost=cost)
    planner = Planner([Source(model, table(cost))], table(), clock=world.clock)
    trees = play(planner, world, 400)
    asked = len(model.asked) / 400
    assert asked > 0.95 if pays else asked < 0.1
    if pays:
        assert np.median(depths(trees[100:])) == pytest.approx(best_depth(rate, cost), abs=1)


def test_what_does_not_pay_is_probed_less_and_less_often() -> None:
    world = World({"model": 0.0})
    model = Fake(world, "model", confidence=0.02, cost=0.3)
    planner = Planner([Source(model, table(0.3))], table(), clock=world.clock)
    counts = []
    for _ in range(4):
        before = len(model.asked)
        play(planner, world, 120)
        counts.append(len(model.asked) - before)
    assert counts[0] > counts[-1] and counts[-1] <= 1
    assert max(model.asked[-2:]) <= 2  # a probe is a short draft


def test_a_drafter_that_starts_to_pay_is_found_again() -> None:
    world = World({"model": 0.0})
    model = Fake(world, "model", confidence=0.02, cost=0.1)
    planner = Planner([Source(model, table(0.1))], table(), clock=world.clock)
    play(planner, world, 60)
    world.rates["model"], model.confidence = 0.95, 0.97
    trees = play(planner, world, 300)
    assert np.mean(depths(trees[-50:])) > 3


@pytest.mark.parametrize(("measured", "asked"), [((0.2, 0.05), 0), ((0.9, 0.8), 1), ((), 1), ((0.0, 0.0), 0)])
def test_what_was_measured_of_a_drafter_counts_from_the_first_round(
    measured: tuple[float, ...], asked: int
) -> None:
    world = World({"model": 0.2})
    model = Fake(world, "model", confidence=0.3, cost=0.35)
    play(Planner([Source(model, table(0.35), measured)], table(), clock=world.clock), world, 1)
    assert len(model.asked) == asked


def test_two_drafters_that_do_not_pay_are_both_probed() -> None:
    world = World({"a": 0.0, "b": 0.0})
    fakes = [Fake(world, name, confidence=0.02, cost=0.1) for name in "ab"]
    sources = [Source(fake, table(0.1), (0.05,)) for fake in fakes]
    play(Planner(sources, table(), clock=world.clock), world, 100)
    assert all(fake.asked for fake in fakes)


def test_probes_take_a_small_share_of_the_time() -> None:
    """A draft that is never right costs no more than that, however dear it is."""
    for cost in (0.1, 0.4, 1.0):
        world = World({"model": 0.0})
        model = Fake(world, "model", confidence=0.02, cost=cost)
        play(Planner([Source(model, table(cost), (0.05,))], table(), clock=world.clock), world, 200)
        assert model.asked and world.now < 1.05 * 200


@pytest.mark.parametrize(("free", "expected"), [(0.9, "free"), (0.2, "model")])
def test_the_better_of_two_drafters_is_chosen(free: float, expected: str) -> None:
    world = World({"free": free, "model": 0.85})
    sources = [
        Source(Fake(world, "free", confidence=0.5)),
        Source(Fake(world, "model", confidence=0.85, cost=0.15), table(0.15)),
    ]
    trees = play(Planner(sources, table(), clock=world.clock), world, 300)
    chosen = [tree.sources[0] for tree in trees[100:] if len(tree)]
    assert chosen.count(expected) > 0.9 * len(chosen) > 150


def test_an_unsure_token_ends_the_draft() -> None:
    world = World({"model": 0.3})
    model = Fake(world, "model", confidence=0.35, cost=0.25)
    planner = Planner([Source(model, table(0.25))], table(), clock=world.clock)
    play(planner, world, 50)
    assert max(model.asked) <= 2


def test_reading_a_long_context_waits_until_the_text_is_long_enough() -> None:
    def waits(length: int, num_left: int) -> int:
        """Tokens that are written before the drafter is asked; it reads 50 tokens in a plain step's time."""
        world = World({"model": 0.9})
        model = Fake(world, "model", confidence=0.9, cost=0.2)
        planner = Planner([Source(model, table(0.2))], table(), clock=world.clock)
        sampler, context = Sampler(SamplingParams()), [0] * length
        for written in range(120):
            model.unread = len(context)
            planner.draft([DraftRequest(0, context, Plan(16), sampler, num_left=num_left - written)])
            if model.asked:
                return written
            planner.observe([Outcome(0, TokenTree(), (), 1.0, len(context))])
            context.append(0)
        return 120

    assert waits(400, 500) == 0  # most answers are long enough to earn that back
    assert 3 < waits(2800, 500) < 120
    assert waits(400, 8) == 120  # no more is asked for


def test_a_change_of_width_is_avoided_when_it_costs_more_than_it_brings() -> None:
    world = World({"free": 0.35})
    widths = (1, 2, 4, 8)
    steps = tuple(1.0 + SLOPE * (w - 1) for w in widths)
    for change, drafted in ((0.0, True), (3.0, False)):
        costs = StepCosts(widths, (0,), (steps,), change, measured=True)
        fake = Fake(world, "free", confidence=0.35)
        trees = play(Planner([Source(fake)], costs, clock=world.clock), world, 60)
        # The first step has no other before it; after a plain one, leaving its width does not pay.
        assert (sum(depths(trees[30:])) > 0) == drafted or len({*depths(trees[1:])}) == 1


def test_a_drafter_with_the_table_of_the_target_learns_in_a_copy() -> None:
    """Else the assumed cost of its steps, a share of the target's, would be a share of itself."""
    world = World({"model": 0.7})
    costs = StepCosts.prior({1: 1.0, 32: 4.1})
    play(Planner([Source(Fake(world, "model", cost=0.2), costs)], costs, clock=world.clock), world, 100)
    assert costs.step(1, 0) == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize(("change", "wide"), [(0.5, True), (0.0, False)])
def test_a_pass_is_timed_at_the_width_that_it_has(change: float, wide: bool) -> None:
    """Passes that keep one width take twice what the table says; that says nothing of narrow ones."""
    world = World({"passes": 0.8})
    costs = StepCosts((1, 2, 4, 8), (0,), ((0.2, 0.21, 0.22, 0.24),), change, measured=True)
    passes = ParallelPasses(4, costs.fixed())
    taken: list[int] = []

    class Passes(Fake):
        parallel = passes

        def _draft(self, plan: Plan) -> TokenTree:
            taken.append(passes.width(1, plan.depth, 0))
            world.now += 2.0 * costs.fixed().step(taken[-1], 0)
            return super()._draft(plan)

    play(Planner([Source(Passes(world, "passes"), costs)], table(), clock=world.clock), world, 150)
    assert (({*taken} == {8}) == wide) and len(taken) > 50
    usual = max({*taken}, key=taken.count)
    assert costs.step(usual, 0) == pytest.approx(2.0 * costs.fixed().step(usual, 0), rel=0.05)


def test_what_a_lone_token_is_padded_to_is_drafted_for_nothing() -> None:
    world = World({"free": 0.1})
    fake = Fake(world, "free", confidence=0.15)
    # Two tokens cost as much as one, and so does going from one width to the other.
    costs = StepCosts((1, 2, 4), (0,), ((1.0, 1.0, 1.6),), 0.5, measured=True)
    planner = Planner([Source(fake)], costs, Capabilities(min_width=2), clock=world.clock)
    assert np.mean([len(tree) == 1 for tree in play(planner, world, 60)[5:]]) > 0.9


def test_a_draft_that_cannot_read_all_of_a_long_text_is_expected_to_do_worse() -> None:
    asked = []
    for length in (40, 400):
        world = World({"model": 0.8})
        model = Fake(world, "model", confidence=0.8, cost=0.5)
        model.unread = 40
        planner = Planner([Source(model, table(0.5))], table(), clock=world.clock)
        request = DraftRequest(0, [0] * length, Plan(16), Sampler(SamplingParams()), num_left=10**6)
        planner._states[0] = state = planner._open(request)
        state.num_prompt_tokens = -(10**6)  # a text that goes on for long: reading does not matter
        planner.draft([request])
        asked.append(len(model.asked))
    assert asked == [1, 0]


def test_the_end_of_a_text_is_planned_where_rows_are_padded_wider_than_what_is_left() -> None:
    planner = Planner([Source(Fake(World({}), "free"))], table(), Capabilities(min_width=8))
    for left in range(1, 8):
        request = DraftRequest(left, [0] * 9, Plan(left), Sampler(SamplingParams()), num_left=left + 1)
        (tree,) = planner.draft([request])
        assert len(tree) == left  # padding is free


def test_a_measured_draft_is_not_compared_in_seconds_with_a_target_that_was_never_timed() -> None:
    plans = []
    for one in (1e-3, 1.0, 50.0):
        world = World({"model": 0.8})
        model = Fake(world, "model", confidence=0.8)
        target = StepCosts.prior({1: 1.0, 32: 4.1})
        planner = Planner([Source(model, table(one))], target, clock=world.clock)
        plans.append(depths(play(planner, world, 40, temperature=1.0, seed=1)))
    assert plans[0] == plans[1] == plans[2] and max(plans[0]) > 0


def test_a_seeded_sampled_text_gets_the_same_plans_whatever_the_clock_says() -> None:
    plans = []
    for speed in (0.01, 5.0):
        world = World({"free": 0.7, "model": 0.8})
        sources = [
            Source(Fake(world, "free", confidence=0.6)),
            Source(Fake(world, "model", confidence=0.8, cost=speed), table(0.2)),
        ]
        planner = Planner(sources, table(), clock=world.clock)
        if speed == 5.0:
            play(planner, world, 100, key=1)  # another text before it
        world.rng = np.random.default_rng(3)
        trees = play(planner, world, 100, key=2, temperature=1.0, seed=1)
        plans.append([(tree.sources[:1], len(tree)) for tree in trees])
    assert plans[0] == plans[1]


def test_a_seeded_sampled_text_is_planned_alike_alone_and_in_a_batch() -> None:
    world = World({"free": 0.5})
    steep = StepCosts((1, 2, 4, 8), (0,), ((1.0, 1.02, 1.1, 4.0),), measured=True)
    planner = Planner([Source(Fake(world, "free"))], steep, clock=world.clock)

    def request(key: int) -> DraftRequest:
        return DraftRequest(
            key, [0] * 9, Plan(8), Sampler(SamplingParams(temperature=1.0, seed=1)), num_left=100
        )

    (alone,) = planner.draft([request(0)])
    assert len(alone) and planner.draft([request(key) for key in range(1, 5)])[0] == alone


def test_sequences_of_a_batch_are_planned_together_and_forgotten() -> None:
    world = World({"free": 0.8, "model": 0.8})
    free, model = Fake(world, "free", confidence=0.1), Fake(world, "model", confidence=0.8, cost=0.1)
    planner = Planner([Source(free), Source(model, table(0.1))], table(), clock=world.clock)
    sampler = Sampler(SamplingParams())
    requests = [
        DraftRequest(key, [0] * 9, Plan(depth), sampler, num_left=100) for key, depth in enumerate((4, 1, 8))
    ]
    trees = planner.draft(requests)
    assert len(trees) == 3 and all(len(t) <= r.plan.depth for t, r in zip(trees, requests, strict=True))
    assert planner.name == "free|model"
    for key in range(3):
        planner.forget(key)
    assert free.forgotten == model.forgotten == [0, 1, 2]
    assert planner._states == {}
