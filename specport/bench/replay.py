"""Replay drafting policies over recorded texts, without a model: `specport bench --replay`.

Time is the sum of modelled steps: the target's by their width, the draft's by its tokens. So policies are
compared on the same texts and the same costs within seconds, on any machine, for any device with known costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from specport.bench.recording import DEPTH, Costs, RecordedText, Recording
from specport.core.estimates.acceptance_rates import CENTRES
from specport.core.planning.passes import ParallelPasses
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Capabilities, Drafted, DraftRequest, Needs, Outcome, Plan, Policy, Prefilled
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.tree import TokenTree
from specport.drafters.retrieval.ngram import NgramDrafter

# Makes a policy from the recorded draft and the clock, with the costs that it is told.
MakePolicy = Callable[[Source, Costs, Callable[[], float]], Policy]


@dataclass
class Noise:
    """Disturb steps as a machine does: each by a random factor, and now and then by a stall.

    sigma:  standard deviation of the logarithm of the factor.
    stalls: share of steps that take twice as long.
    """

    sigma: float = 0.0
    stalls: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def factor(self) -> float:
        """Return the factor of the next step."""
        return float(np.exp(self._rng.normal(0.0, self.sigma))) * (1.0 + (self._rng.random() < self.stalls))


@dataclass
class Clock:
    """Hold simulated seconds."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class RecordedDrafter:
    """Propose the recorded chains, and take the time that the draft model would.

    It reads a context as a draft model with a cache does: what was not read yet, in one step, then one step
    per drafted token. A parallel draft takes no further steps.
    """

    costs: Costs
    clock: Clock
    noise: Noise
    parallel: ParallelPasses | None = None
    window: int = 4096
    name: str = "draft"
    prior: Sequence[float] = CENTRES
    needs: Needs = field(default_factory=Needs)
    text: RecordedText | None = None
    num_drafted: int = 0
    _read: int = 0  # tokens of the text, prompt included, in the draft's cache
    _width: int = 0  # of the last step

    def begin(self, text: RecordedText) -> None:
        """Start a text: nothing of it is read."""
        self.text, self._read = text, 0

    def behind(self, request: DraftRequest) -> int:
        unread = len(request.context) - min(self._read, len(request.context) - 1)
        return min(unread, self.window)

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [self._propose(request) for request in requests]

    def _propose(self, request: DraftRequest) -> TokenTree:
        assert self.text is not None  # begin was called
        at = len(request.context) - len(self.text.prompt) - 1
        chain, confidences = self.text.chains[at], self.text.confidences[at]
        context, plan = len(request.context), request.plan
        width = self.behind(request)
        num = 0
        if self.parallel:
            width = self.parallel.width(width, min(plan.depth, len(chain)), context)
        while num < min(plan.depth, len(chain)):
            if width:
                seconds = self.costs.draft.step(width, context)
                if self.parallel and width != self._width:
                    seconds += self.costs.draft.change_seconds(context)
                self.clock.now += seconds * self.noise.factor()
                self._width = width
            num, width = num + 1, 0 if self.parallel else 1
            if plan.stop is not None and not plan.stop.goes_on(Drafted(confidences[:num])):
                break
        self.num_drafted += num
        # The last drafted token was not read. What the target does not accept is cut at the next proposal.
        answer = self.text.tokens[at + 1 :]
        kept = 0
        while not self.parallel and kept < min(num - 1, len(answer)) and chain[kept] == answer[kept]:
            kept += 1
        self._read = context + kept
        confidence = confidences[:num] if plan.stop is not None else ()
        return TokenTree.chain(chain[:num], self.name, confidence=confidence)

    def prefilled(self, events: Sequence[Prefilled]) -> None: ...

    def observe(self, outcomes: Sequence[Outcome]) -> None: ...

    def forget(self, key: int) -> None: ...


@dataclass(frozen=True)
class Replayed:
    """Hold the result of one policy on one text: simulated seconds of decoding, and its steps."""

    id: str
    category: str
    seconds: float
    num_tokens: int
    num_steps: int
    num_drafted: int
    draft_s: float


def replay(
    recording: Recording,
    device: str,
    make_policy: MakePolicy | None,
    *,
    believed: Costs | None = None,
    noise: Noise | None = None,
) -> list[Replayed]:
    """Decode all texts with a policy, in order, as one process would; None decodes plainly.

    device:   whose costs the steps take.
    believed: the costs that the policy is told; None = the true ones.
    """
    costs, noise, clock = recording.costs[device], noise or Noise(), Clock()
    believed = believed or costs
    told = Costs(believed.target.fixed(), believed.draft.fixed(), believed.min_width)
    passes = ParallelPasses(DEPTH, believed.draft.fixed()) if recording.parallel else None
    drafter = RecordedDrafter(costs, clock, noise, passes)
    policy = make_policy(Source(drafter, told.draft), told, clock) if make_policy else None
    results = []
    for key, text in enumerate(recording.texts):
        drafter.begin(text)
        results.append(_replayed(key, text, recording.max_new_tokens, policy, drafter))
        if policy is not None:
            policy.forget(key)
    return results


def _replayed(
    key: int, text: RecordedText, limit: int, policy: Policy | None, drafter: RecordedDrafter
) -> Replayed:
    """Decode one text."""
    clock, noise, target = drafter.clock, drafter.noise, drafter.costs.target
    sampler, context = Sampler(SamplingParams()), [*text.prompt, text.tokens[0]]
    began, drafted, draft_s, steps, last = clock.now, drafter.num_drafted, 0.0, 0, 0
    if policy is not None:
        policy.prefilled([Prefilled(key, 0, text.prompt)])
    while (done := len(context) - len(text.prompt)) < len(text.tokens):
        tree, before = TokenTree(), clock.now
        most = min(DEPTH, limit - done - 1)
        if policy is not None and most > 0:
            (tree,) = policy.draft([DraftRequest(key, context, Plan(most), sampler, num_left=limit - done)])
        draft_s += clock.now - before
        path = _accepted(tree, text.tokens[done:])
        width = max(1 + len(tree), drafter.costs.min_width)
        seconds = target.step(width, len(context))
        if last not in (0, width):
            seconds += target.change_seconds(len(context))
        seconds *= noise.factor()
        last, steps = width, steps + 1
        clock.now += seconds
        if policy is not None:
            policy.observe([Outcome(key, tree, path, seconds, len(context) - 1, root=context[-1])])
        context += text.tokens[done : done + len(path) + 1]
    return Replayed(
        text.id, text.category, clock.now - began, len(text.tokens) - 1, steps,
        drafter.num_drafted - drafted, draft_s,
    )  # fmt: skip


def _accepted(tree: TokenTree, answer: Sequence[int]) -> tuple[int, ...]:
    """Return the path of the tree that the answer takes, root to leaf."""
    path: list[int] = []
    end = -1
    for token in answer:
        child = next((n for n, p in enumerate(tree.parents) if p == end and tree.tokens[n] == token), None)
        if child is None:
            break
        path.append(child)
        end = child
    return tuple(path)


def by_category(results: Sequence[Replayed]) -> Mapping[str, float]:
    """Return category -> seconds per token, with "all" behind them."""
    names = dict.fromkeys(result.category for result in results)
    groups = {name: [r for r in results if r.category == name] for name in names} | {"all": [*results]}
    return {
        name: sum(r.seconds for r in group) / sum(r.num_tokens for r in group)
        for name, group in groups.items()
    }


def planned(source: Source, costs: Costs, clock: Callable[[], float], *others: Source) -> Policy:
    """Make the planner for the recorded draft, behind `others`."""
    capabilities = Capabilities(min_width=costs.min_width)
    return Planner([*others, source], costs.target, capabilities, max_depth=DEPTH, clock=clock)


def with_ngram(source: Source, costs: Costs, clock: Callable[[], float]) -> Policy:
    """Make the planner for n-grams and the recorded draft."""
    return planned(source, costs, clock, Source(NgramDrafter(tokens_per_match=None)))


def fixed(num_draft_tokens: int) -> MakePolicy:
    """Return what makes a policy that always drafts this many tokens."""
    rule = Fixed(num_draft_tokens)
    return lambda source, costs, clock: FirstProposal([source.drafter], lambda: rule)


@dataclass(frozen=True)
class Comparison:
    """Hold the figures of one category.

    plain_s: seconds per token of plain decoding.
    best:    number of tokens of the best fixed length in hindsight; 0 = plain decoding.
    best_speedup, planned, with_ngram: speed-ups over plain decoding.
    """

    category: str
    plain_s: float
    best: int
    best_speedup: float
    planned: float
    with_ngram: float


def compare(recording: Recording, device: str, noise: Noise | None = None) -> list[Comparison]:
    """Compare the planner with the best fixed length, by category, with "all" behind them.

    noise: of the steps; each policy gets the same.
    """

    def seconds(make: MakePolicy | None) -> Mapping[str, float]:
        return by_category(replay(recording, device, make, noise=noise and replace(noise)))

    lengths = {0: seconds(None)} | {n: seconds(fixed(n)) for n in range(1, DEPTH + 1)}
    alone, both = seconds(planned), seconds(with_ngram)
    results = []
    for category, plain in lengths[0].items():
        best = min(lengths, key=lambda n: lengths[n][category])
        results.append(
            Comparison(
                category, plain, best, plain / lengths[best][category],
                plain / alone[category], plain / both[category],
            )
        )  # fmt: skip
    return results
