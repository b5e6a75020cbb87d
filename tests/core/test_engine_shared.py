"""One engine for many threads, for iterators that are dropped at any time, and for faults inside a round."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.generations import PROMPT, begin, drafted, output, run
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Commit, Generation, KeptCache

PROMPTS = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]


def in_threads(*work: Callable[[], object]) -> None:
    faults: list[BaseException] = []

    def safely(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=safely, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    if faults:
        raise faults[0]


@pytest.mark.parametrize("drafts", [False, True])
def test_threads_share_steps_and_each_text_is_as_it_is_alone(drafts: bool) -> None:
    target = ToyModel(step_seconds=0.002)
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)) if drafts else None)
    prompts = [[i, 3, 5] for i in range(8)]
    texts: dict[int, list[int]] = {}
    ready = threading.Barrier(8)

    def write(i: int) -> None:
        ready.wait()
        texts[i] = run(engine, begin(prompts[i]))[0]

    in_threads(*(lambda i=i: write(i) for i in range(8)))
    assert [texts[i] for i in range(8)] == [target.greedy(p, 40) for p in prompts]
    # Were no step shared there would be as many steps as rows.
    assert sum(target.steps) >= 4 * len(target.steps)
    assert drafts or sum(target.steps) == 8 * 40
    assert target.num_open == 0 and engine.num_unfinished == 0


def test_a_thread_finds_the_tokens_that_others_steps_brought() -> None:
    target = ToyModel()
    engine = Engine(target)
    first, second = begin([1], 30), begin([2], 30)
    engine.add(second)
    run(engine, first)  # steps both to the end
    assert second.finish_reason == "length" and len(second.inbox) == 30
    found: list[Commit] = []
    in_threads(lambda: found.extend(engine.run([begin([3], 1)])))
    assert len(found) == 1 and len(second.inbox) == 30  # and nobody else's


def test_a_slow_reader_holds_nobody_up() -> None:
    target = ToyModel()
    engine = Engine(target)
    slow = engine.run([begin([1], 30)])
    next(slow)
    assert run(engine, begin([2], 50)) == [target.greedy([2], 50)]
    assert [token for commit in slow for token in commit.tokens] == target.greedy([1], 30)[1:]


def test_cancelling_from_another_thread_ends_only_that_sequence() -> None:
    target = ToyModel(step_seconds=0.001, max_context=4096)
    engine = Engine(target)
    doomed, other = begin([1], 4000), begin([2], 60)
    in_threads(lambda: run(engine, doomed), lambda: (run(engine, other), engine.cancel(doomed)))
    assert doomed.finish_reason == "cancelled" and other.finish_reason == "length"
    assert output(doomed) == target.greedy([1], len(output(doomed)))
    assert target.num_open == 0


class Holder:
    """Holds a running iterator in a circle, so that only the garbage collector ends it."""

    def __init__(self, commits: Iterator[Commit]) -> None:
        self.commits, self.circle = commits, self
        next(commits)


@pytest.mark.parametrize("place", ["step", "draft", "forget"])
def test_an_iterator_that_is_dropped_within_a_round_re_enters_nothing(place: str) -> None:
    """The garbage collector runs where it likes: the round goes on, and the next one frees the sequence."""
    gc.collect()
    target = ToyModel()
    drafter = ToyDrafter(ToyModel(noise=0.4))
    engine = drafted(target, drafter)
    dropped, other = begin([1]), begin([2])
    holder: list[Holder] = [Holder(engine.run([dropped]))]
    inside: list[str] = []

    def guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def guard(*args: Any) -> Any:
            assert not inside, f"{name} was called within {inside}"
            inside.append(name)
            try:
                if name == place and holder:
                    holder.clear()
                    gc.collect()
                    assert dropped.ended and dropped.finish_reason is None  # asked for, no more
                return call(*args)
            finally:
                inside.pop()

        return guard

    for name, owner, method in [("step", target, "step"), ("draft", drafter, "propose"),
                                ("forget", drafter, "forget"), ("close", target, "close")]:  # fmt: skip
        setattr(owner, method, guarded(name, getattr(owner, method)))
    if place == "forget":
        run(engine, begin([3], 2))
    assert run(engine, other) == [target.greedy([2], 40)]
    assert not holder and dropped.finish_reason == "cancelled"
    assert output(dropped) == target.greedy([1], len(output(dropped)))
    assert target.num_open == 0 and not drafter.keys and engine.num_unfinished == 0


def test_a_cache_may_be_released_within_a_round() -> None:
    target = ToyModel()
    engine, kept = Engine(target), KeptCache()
    run(engine, begin([1], 5, kept=kept))
    target.during_step = lambda: engine.release(kept)
    assert run(engine, begin([2], 5)) == [target.greedy([2], 5)]
    assert target.num_open == 0


class Faulty:
    """Raises once, in the given step."""

    def __init__(self, fault: BaseException, at: int) -> None:
        self.fault, self.left = fault, at

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.fault


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3, 6, 10])
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("the device took fire")])
def test_a_fault_inside_a_step_ends_one_iterator_and_no_other_text(
    fault: BaseException, at: int, batch: bool
) -> None:
    target = ToyModel(batch=batch)
    drafter = ToyDrafter(ToyModel(noise=0.4))
    engine = drafted(target, drafter)
    mine, others = begin([9]), [begin(p) for p in PROMPTS]
    found: dict[int, list[int]] = {g.key: [] for g in others}
    for g in others:
        engine.add(g)
    target.during_step = Faulty(fault, at)
    with pytest.raises(type(fault)):
        run(engine, mine)
    assert mine.ended
    while engine.num_unfinished:
        engine.step()
    for g in others:
        # What a step without batches brought before the fault is not lost on the way either.
        for commit in g.inbox:
            found[g.key] += commit.tokens
        assert found[g.key] == output(g) == target.greedy(g.tokens[: g.num_prompt_tokens], 40)
    assert target.num_open == 0 and not drafter.keys
    assert run(engine, begin()) == [target.greedy(PROMPT, 40)]


def test_the_thread_that_waits_takes_over_from_one_that_was_interrupted() -> None:
    target = ToyModel(step_seconds=0.001)
    engine = Engine(target)
    target.during_step = Faulty(KeyboardInterrupt(), 5)
    texts: list[list[int]] = []
    interrupted: list[int] = []
    ready = threading.Barrier(2)

    def write(prompt: list[int]) -> None:
        ready.wait()
        try:
            texts.append(run(engine, begin(prompt))[0])
        except KeyboardInterrupt:
            interrupted.append(prompt[0])

    in_threads(lambda: write([1]), lambda: write([2]))
    assert len(interrupted) == 1 and texts == [target.greedy([3 - interrupted[0]], 40)]
    engine.tidy()
    assert target.num_open == 0


def test_one_forget_that_fails_does_not_skip_the_others() -> None:
    target = ToyModel()
    drafter = ToyDrafter(target)
    engine = drafted(target, drafter)
    generations = [begin(p, 10) for p in PROMPTS]
    forget, bad = drafter.forget, generations[1].key

    def failing(key: int) -> None:
        forget(key)
        if key == bad:
            raise OSError("the disk is full")

    drafter.forget = failing
    with pytest.raises(OSError, match="disk"):
        run(engine, *generations)
    engine.tidy()
    assert sorted(drafter.forgotten) == [g.key for g in generations] and target.num_open == 0
    assert [output(g) for g in generations] == [target.greedy(p, 10) for p in PROMPTS]


def test_a_forget_that_fails_after_a_fault_keeps_nobody_from_being_computed_anew() -> None:
    target = ToyModel()
    drafter = ToyDrafter(target)
    engine = drafted(target, drafter)
    generations = [begin(p) for p in PROMPTS]
    for g in generations:
        engine.add(g)
    engine.step()
    forget = drafter.forget
    drafter.forget = lambda key: 1 / 0
    target.during_step = Faulty(RuntimeError("fire"), 1)
    with pytest.raises(RuntimeError, match="fire"):
        engine.step()
    drafter.forget = forget
    while engine.num_unfinished:
        engine.step()
    assert [output(g) for g in generations] == [target.greedy(p, 40) for p in PROMPTS]


def test_a_watcher_that_raises_ends_one_iterator_and_no_other_text() -> None:
    target = ToyModel()
    engine = Engine(target)

    def watch(token: int, source: str) -> bool:
        if len(bad.tokens) == 5:
            raise ValueError("no such character")
        return False

    bad, good = begin([1], on_token=watch), begin([2])
    engine.add(good)
    with pytest.raises(ValueError, match="no such"):
        run(engine, bad)
    while engine.num_unfinished:
        engine.step()
    assert output(good) == [t for commit in good.inbox for t in commit.tokens] == target.greedy([2], 40)
    assert target.num_open == 0


def test_a_watcher_s_exception_reaches_the_thread_that_added_the_sequence() -> None:
    """Another thread steps it up to the fault, and goes on."""
    target = ToyModel()
    drafter = ToyDrafter(ToyModel(noise=0.4))
    engine = drafted(target, drafter)

    def watch(token: int, source: str) -> bool:
        if bad.num_output_tokens == 9:
            raise ValueError("no such character")
        return False

    bad, good = begin([1], on_token=watch, logprobs=0), begin([2])
    mine = engine.run([bad])
    found = [next(mine)]
    texts: list[list[int]] = []
    in_threads(lambda: texts.extend(run(engine, good)))
    assert texts == [target.greedy([2], 40)] and bad.finish_reason == "cancelled"
    assert target.num_open == 0 and not drafter.keys
    with pytest.raises(ValueError, match="no such"):
        found.extend(mine)  # keeps those before the exception
    tokens = [token for commit in found for token in commit.tokens]
    assert tokens == output(bad) == target.greedy([1], 9) and len(bad.token_logprobs) == 9
    assert engine.num_unfinished == 0 and run(engine, begin()) == [target.greedy(PROMPT, 40)]


def test_watchers_that_raise_in_two_threads_each_raise_in_their_own() -> None:
    target = ToyModel(step_seconds=0.001)
    engine = Engine(target)
    raised: dict[int, str] = {}
    ready = threading.Barrier(2)

    def write(i: int) -> None:
        def watch(token: int, source: str) -> bool:
            if generation.num_output_tokens == 10 + i:
                raise ValueError(f"of {i}")
            return False

        generation = begin([i], on_token=watch)
        ready.wait()
        try:
            run(engine, generation)
        except ValueError as error:
            raised[i] = str(error)

    in_threads(lambda: write(0), lambda: write(1))
    assert raised == {0: "of 0", 1: "of 1"}
    engine.tidy()
    assert target.num_open == 0


def test_a_seed_means_the_same_text_beside_threads_that_come_and_go() -> None:
    params = SamplingParams(temperature=1.0, seed=11)
    target = ToyModel(step_seconds=0.0005)
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)))
    (alone,) = run(engine, begin(params=params, n=80))
    seeded = begin(params=params, n=80)

    def come_and_go() -> None:
        for i in range(6):
            commits = engine.run([begin([i], 10 + i)])
            next(commits)
            if i % 2:
                commits.close()
            else:
                list(commits)

    in_threads(lambda: run(engine, seeded), come_and_go, come_and_go)
    engine.tidy()
    assert output(seeded) == alone and target.num_open == 0


def kept_by_nobody(engine: Engine, generation: Generation) -> None:
    next(engine.run([generation]))


def test_an_iterator_that_goes_out_of_scope_is_freed_by_the_next_step_of_anyone() -> None:
    target = ToyModel()
    engine = Engine(target)
    kept_by_nobody(engine, begin([1], 100))
    gc.collect()
    assert run(engine, begin([2], 3)) == [target.greedy([2], 3)]
    assert target.num_open == 0 and max(target.steps) == 1
