"""Random lives of sequences on one engine: whatever comes and goes, each text is that of plain decoding."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.generations import begin, output
from support.toys.toy_blocks import keeping
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyHandle, ToyModel

from specport.core.engine import Engine
from specport.core.metrics import Metrics
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    ConfidenceThreshold,
    Fixed,
    Heuristic,
)
from specport.core.ports import Policy
from specport.core.prefix_cache import PrefixCache
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Commit, Generation, KeptCache

POLICIES = ["none", "chain", "tree", "heuristic", "confidence", "planned"]


def policy_of(name: str, target: ToyModel) -> tuple[Policy | None, ToyDrafter]:
    drafter = ToyDrafter(ToyModel(noise=0.4))
    if name == "none":
        return None, drafter
    if name == "planned":
        costs = StepCosts.prior({1: 1.0, 8: 1.3})
        return Planner([Source(drafter, costs.fixed())], costs, target.capabilities), drafter
    rule = {
        "chain": lambda: Fixed(4), "tree": lambda: Fixed(3, (2, 2)), "heuristic": Heuristic,
        "confidence": ConfidenceThreshold,
    }[name]  # fmt: skip
    return FirstProposal([drafter], rule, tree=target.capabilities.tree), drafter


def assert_empty(engine: Engine, target: ToyModel, drafter: ToyDrafter) -> None:
    """Nothing is left of any sequence, anywhere."""
    assert engine.num_unfinished == 0 and target.num_open == target.num_used == 0 and not drafter.keys
    scheduler = engine._scheduler
    assert not scheduler.waiting and not scheduler.running and not scheduler.caches.idle
    assert scheduler._cramped is None and not engine._added and not engine._released
    if isinstance(engine.policy, Planner):
        assert engine.policy._states == {}
    if isinstance(engine.policy, FirstProposal):
        assert engine.policy._rules == {}


class Life:
    """One random case: an engine on a small cache, and what happens to it, round by round."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.cache, self.context = int(rng.integers(40, 160)), int(rng.integers(30, 90))
        any_mask = bool(rng.random() < 0.3)
        self.target = ToyModel(
            cache_tokens=self.cache, max_context=self.context, any_mask=any_mask,
            batch=bool(rng.random() < 0.8), tree=any_mask or bool(rng.random() < 0.7),
        )  # fmt: skip
        policy, self.drafter = policy_of(POLICIES[seed % len(POLICIES)], self.target)
        self.prefixes = (
            PrefixCache.of(keeping(self.target, int(rng.integers(1, 40)))) if seed // 6 % 2 else None
        )
        self.engine = Engine(self.target, policy, max_running=int(rng.integers(1, 9)), prefixes=self.prefixes)
        self.generations: list[Generation] = []
        self.kept: list[KeptCache] = []
        self.forks: list[ToyHandle] = []  # held by someone else
        self.most_held = 0
        self.fault_at = int(rng.integers(2, 60)) if rng.random() < 0.3 else 0
        self.target.during_step = self._maybe_fault

    def live(self, num_sequences: int) -> None:
        rng = self.rng
        while len(self.generations) < num_sequences or self.engine.num_unfinished:
            if len(self.generations) < num_sequences and rng.random() < 0.4:
                self._arrive()
            if self.generations and rng.random() < 0.05:
                self.engine.cancel(self.generations[int(rng.integers(len(self.generations)))])
            self._fork()
            with contextlib.suppress(ZeroDivisionError):
                self.engine.step()
        for fork in self.forks:
            self.target.close(fork)
        for kept in self.kept:
            self.engine.release(kept)
        self.engine.tidy()

    def check(self) -> None:
        for g in self.generations:
            prompt, text = g.tokens[: g.num_prompt_tokens], output(g)
            whole = self.target.greedy(prompt, g.max_new_tokens, g.eos_ids)
            assert [token for commit in g.inbox for token in commit.tokens] == text
            assert text == whole[: len(text)]
            if g.finish_reason == "length" and len(text) < len(whole):
                # It was alone and had all there was.
                assert len(g.tokens) > min(self.context, self.cache - self.most_held)
            elif g.finish_reason != "cancelled":
                assert text == whole
        if self.prefixes is not None:
            self.prefixes.clear()
        assert_empty(self.engine, self.target, self.drafter)

    def _arrive(self) -> None:
        rng = self.rng
        fields: dict[str, Any] = {}
        prompt = rng.integers(0, 11, int(rng.integers(1, 25))).tolist()
        ended = [g for g in self.generations if g.kept and g.ended]
        if ended and rng.random() < 0.5:  # the next turn of a conversation, or an earlier one anew
            last = ended[int(rng.integers(len(ended)))]
            fields["kept"] = last.kept
            prompt = [*last.tokens[: int(rng.integers(1, len(last.tokens) + 1))], *prompt[:5]]
        elif self.generations and rng.random() < 0.4:  # another text with the same beginning
            last = self.generations[int(rng.integers(len(self.generations)))]
            prompt = [*last.tokens[: int(rng.integers(1, len(last.tokens) + 1))], *prompt[:5]]
        elif rng.random() < 0.4:
            fields["kept"] = KeptCache()
            self.kept.append(fields["kept"])
        if rng.random() < 0.3:
            fields["eos_ids"] = frozenset([int(rng.integers(11))])
        self.generations.append(begin(prompt, int(rng.integers(1, 40)), **fields))
        self.engine.add(self.generations[-1])

    def _fork(self) -> None:
        """Someone else forks a running sequence and writes into the fork, or closes one."""
        rng, running = self.rng, [g for g in self.engine._scheduler.running if g.handle is not None]
        if self.forks and rng.random() < 0.2:
            self.target.close(self.forks.pop(int(rng.integers(len(self.forks)))))
        elif running and rng.random() < 0.05 and len(self.forks) < 2:
            handle = running[int(rng.integers(len(running)))].handle
            assert isinstance(handle, ToyHandle)
            fork = self.target.fork(handle, int(rng.integers(0, min(handle.length, 10) + 1)))
            self.target.truncate(fork, fork.length // 2)
            self.forks.append(fork)
        self.most_held = max(self.most_held, sum(fork.length for fork in self.forks))

    def _maybe_fault(self) -> None:
        if self.fault_at and len(self.target.steps) == self.fault_at:
            raise ZeroDivisionError("a fault in the middle of a step")


@pytest.mark.parametrize("part", range(6))
def test_every_text_is_that_of_plain_decoding(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specport.core.scheduler.PREFILL_CHUNK", 13)
    monkeypatch.setattr("specport.core.scheduler.PREFILL_BESIDE", 5)
    monkeypatch.setattr("specport.core.scheduler._RESERVE", 2)
    preemptions = 0
    for seed in range(part * 50, part * 50 + 50):
        life = Life(seed)
        life.live(int(life.rng.integers(1, 10)))
        life.check()
        preemptions += sum(g.metrics.num_preemptions for g in life.generations)
    assert preemptions > 20


@pytest.mark.parametrize("name", ["chain", "planned"])
def test_of_a_thousand_sequences_nothing_is_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled, abandoned, preempted, kept and released: no cache, no state and no object stays behind."""
    monkeypatch.setattr("specport.core.scheduler._RESERVE", 2)
    rng = np.random.default_rng(5)
    target = ToyModel(cache_tokens=170, max_context=60)
    policy, drafter = policy_of(name, target)
    engine = Engine(target, policy, max_running=16)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    metrics: list[Metrics] = []
    iterators: list[Iterator[Commit]] = []
    conversations = [KeptCache() for _ in range(4)]
    for number in range(1000):
        kept = conversations[number % 4] if number % 3 == 0 else None
        params = SamplingParams(temperature=float(number % 2), seed=number)
        prompt = [*[number % 11] * 5, *rng.integers(0, 11, int(rng.integers(1, 25))).tolist()]
        if kept is not None:  # a conversation begins alike in every turn
            prompt[:5] = [1, 2, 3, 4, 5]
        generation = begin(prompt, 25, kept=kept, params=params)
        alive.add(generation)
        metrics.append(generation.metrics)
        iterators.append(engine.run([generation]))
        next(iterators[-1], None)
        while len(iterators) > (12 if number % 200 < 100 else 1):  # a full cache by turns
            chosen = iterators.pop(int(rng.integers(len(iterators))))
            what = number % 5
            if what == 0:
                del chosen  # abandoned
            elif what == 1:
                next(chosen, None)
                generation.cancel()
            else:
                list(chosen)
        if number % 60 == 0:
            engine.release(conversations[number % 4])
            conversations[number % 4] = KeptCache()
    iterators.clear()
    for kept in conversations:
        engine.release(kept)
    engine.step()
    del chosen, generation
    drafter.outcomes.clear()
    drafter.events.clear()
    gc.collect()
    assert_empty(engine, target, drafter)
    assert not alive
    assert sum(m.num_preemptions for m in metrics) > 20 and sum(m.num_cached_tokens > 0 for m in metrics) > 20
    assert 100 < sum(0 < m.num_output_tokens < 25 for m in metrics) < 900  # ended early, or not
