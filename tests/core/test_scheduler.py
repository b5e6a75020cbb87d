"""The scheduler: who is admitted, what each round reads, and whose memory is taken back."""

from __future__ import annotations

import pytest
from support.generations import GREEDY, PROMPT, begin, drafted, output, run
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
    Heuristic,
)
from specport.core.sampling.params import SamplingParams
from specport.core.scheduler import PREFILL_BESIDE, PREFILL_CHUNK, Scheduler
from specport.core.sequence import Generation, KeptCache

SAMPLED = [SamplingParams(temperature=1.0, seed=seed) for seed in range(4)]
PROMPTS = [PROMPT, [1], [7, 7, 7], PROMPT[::-1]]


def long(n: int) -> list[int]:
    return [(3 * i + i // 7) % 11 for i in range(n)]


def finish(engine: Engine) -> None:
    for _ in range(2000):
        if not engine.num_unfinished:
            return
        engine.step()
    raise AssertionError("sequences do not come to their ends")


def test_a_sequence_joins_at_any_round_and_leaves_when_done() -> None:
    target = ToyModel()
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)))
    generations = [begin(p, 30 + 15 * i) for i, p in enumerate(PROMPTS)]
    for generation in generations:
        engine.add(generation)
        engine.step()
    assert target.steps == [1, 2, 3, 4]
    finish(engine)
    assert [output(g) for g in generations] == [target.greedy(p, 30 + 15 * i) for i, p in enumerate(PROMPTS)]
    assert target.steps[-1] == 1 and target.steps == sorted(target.steps[:4]) + sorted(target.steps[4:])[::-1]
    assert target.num_open == 0 and engine.num_unfinished == 0


def test_no_more_than_max_running_share_a_round_first_come_first_served() -> None:
    target = ToyModel()
    engine = Engine(target, max_running=2)
    generations = [begin([i], 5) for i in range(6)]
    for generation in generations:
        engine.add(generation)
    ended: list[int] = []
    while engine.num_unfinished:
        engine.step()
        ended += [i for i, g in enumerate(generations) if g.finish_reason and i not in ended]
    assert max(target.steps) == 2 and ended == [*range(6)]


@pytest.mark.parametrize("cache", [80, 72, 64])
@pytest.mark.parametrize("params", [[GREEDY] * 4, SAMPLED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("rule", [None, lambda: Fixed(4), lambda: Fixed(3, (2, 2)), Heuristic])
def test_in_a_full_cache_each_text_is_as_it_is_alone(cache: int, params: list[SamplingParams], rule) -> None:
    """One sequence never ends another: what gives its cache back is computed anew."""

    def engine_of(target: ToyModel) -> Engine:
        return drafted(target, rule and ToyDrafter(ToyModel(noise=0.4)), rule=rule or Heuristic)

    alone = [
        run(engine_of(ToyModel()), begin(p, 30, params=s))[0] for p, s in zip(PROMPTS, params, strict=True)
    ]
    target = ToyModel(cache_tokens=cache, max_context=50)
    generations = [begin(p, 30, params=s) for p, s in zip(PROMPTS, params, strict=True)]
    assert run(engine_of(target), *generations) == alone
    assert [g.finish_reason for g in generations] == ["length"] * 4
    assert all(g.num_output_tokens == 30 for g in generations)
    assert sum(g.metrics.num_preemptions for g in generations) > 0
    assert generations[0].metrics.num_preemptions == 0  # the oldest goes on
    assert target.num_open == target.num_used == 0


def test_who_gives_its_cache_back_is_the_last_admitted_and_goes_first_when_there_is_room() -> None:
    target = ToyModel(cache_tokens=80, max_context=40)
    engine = Engine(target)
    generations = [begin([i], 35) for i in range(4)]
    ended: list[int] = []
    for generation in generations:
        engine.add(generation)
    while engine.num_unfinished:
        engine.step()
        ended += [i for i, g in enumerate(generations) if g.finish_reason and i not in ended]
    assert ended == [0, 1, 2, 3]
    assert [output(g) for g in generations] == [target.greedy([i], 35) for i in range(4)]
    counts = [g.metrics.num_preemptions for g in generations]
    assert counts[0] == 0 and max(counts) > 0


@pytest.mark.parametrize("rule", [None, lambda: Fixed(4), lambda: Fixed(3, (3, 2))])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED[0]], ids=["greedy", "seeded"])
def test_alone_in_a_full_cache_a_text_ends_at_the_cache_s_last_token(params: SamplingParams, rule) -> None:
    """Also where a draft would not have fitted: the text is as long as that of plain decoding."""
    target = ToyModel(cache_tokens=30)
    engine = drafted(target, rule and ToyDrafter(ToyModel(noise=0.4)), rule=rule or Heuristic)
    generation = begin(n=100, params=params)
    (text,) = run(engine, generation)
    assert generation.finish_reason == "length"
    assert len(text) == 31 - len(PROMPT)  # the last token need not be in the cache
    assert params != GREEDY or text == target.greedy(PROMPT, len(text))
    assert run(engine, begin([1], 8)) == [target.greedy([1], 8)]


@pytest.mark.parametrize("cache", range(44, 60))
def test_two_texts_near_the_end_of_the_context_do_not_push_each_other_out_for_ever(cache: int) -> None:
    """The one that waits would fit again at once, and the older one would be refused again."""
    target = ToyModel(cache_tokens=cache, max_context=31)
    engine = drafted(target, ToyDrafter(target), rule=lambda: Fixed(6, (2,)))
    prompts = [long(16), long(28)]
    generations = [begin(p, 31 - len(p)) for p in prompts]
    for generation in generations:
        engine.add(generation)
        engine.step()
    finish(engine)
    assert [output(g) for g in generations] == [target.greedy(p, 31 - len(p)) for p in prompts]
    assert max(g.metrics.num_preemptions for g in generations) <= 1


def test_a_prompt_that_the_cache_cannot_hold_ends_and_those_behind_it_go_on() -> None:
    target = ToyModel(cache_tokens=40)
    generations = [begin(long(60)), begin([1], 20), begin([2], 20)]
    assert run(Engine(target), *generations) == [[], target.greedy([1], 20), target.greedy([2], 20)]
    assert generations[0].finish_reason == "length" and target.num_open == 0
    assert {*target.widths} == {1}  # those of the other two: nothing of the first was read


def test_admission_waits_until_there_is_room() -> None:
    target = ToyModel(cache_tokens=260, max_context=200)
    engine = Engine(target)
    first, second, third = begin(long(100), 60), begin(long(90), 5), begin([1], 5)
    for generation in (first, second, third):
        engine.add(generation)
    engine.step()
    # The second would leave them no room to grow; the third does not overtake it.
    assert first.handle is not None and second.handle is None and third.handle is None
    first.cancel()
    engine.step()
    assert second.handle is not None and third.handle is not None
    finish(engine)
    assert second.metrics.num_preemptions == third.metrics.num_preemptions == 0
    assert second.metrics.queue_s > first.metrics.queue_s


def test_prompts_are_read_in_chunks_smaller_beside_decoding_ones() -> None:
    target = ToyModel(max_context=4096)
    engine = Engine(target)
    first, second = begin(long(PREFILL_CHUNK + 200), 10), begin(long(3 * PREFILL_BESIDE - 10), 10)
    engine.add(first)
    engine.step()
    engine.step()
    assert target.widths == [PREFILL_CHUNK, 200] and first.decoding
    engine.add(second)
    finish(engine)
    # The first decodes in every round in which the second's prompt is read.
    assert target.widths[2:8] == [1, PREFILL_BESIDE, 1, PREFILL_BESIDE, 1, PREFILL_BESIDE - 10]
    for generation in (first, second):
        prompt = generation.tokens[: generation.num_prompt_tokens]
        assert output(generation) == target.greedy(prompt, 10)


def test_one_budget_serves_all_prompts_of_a_round_in_order() -> None:
    target = ToyModel(max_context=4096)
    engine = Engine(target)
    generations = [begin(long(PREFILL_CHUNK - 100), 3), begin(long(300), 3), begin(long(50), 3)]
    for generation in generations:
        engine.add(generation)
    engine.step()
    assert target.widths == [PREFILL_CHUNK - 100, 100]
    engine.step()
    assert target.widths[2:] == [1, PREFILL_BESIDE]
    finish(engine)


def turn(engine: Engine, kept: KeptCache, tokens: list[int], n: int = 10) -> Generation:
    generation = begin(tokens, n, kept=kept)
    run(engine, generation)
    return generation


def test_a_kept_cache_is_begun_with_cut_and_released() -> None:
    target = ToyModel()
    engine = drafted(target, ToyDrafter(target))
    kept = KeptCache()
    first = turn(engine, kept, PROMPT)
    assert first.metrics.num_cached_tokens == 0 and kept.handle is not None
    assert kept.tokens == first.tokens[:-1] == kept.handle.tokens
    second = turn(engine, kept, [*first.tokens, 4, 4])
    assert second.metrics.num_cached_tokens == len(first.tokens) - 1
    third = turn(engine, kept, [*first.tokens[:5], 9])  # goes back
    assert third.metrics.num_cached_tokens == 5
    fourth = turn(engine, kept, third.tokens[:4])  # nothing new: its last token is read anew
    assert fourth.metrics.num_cached_tokens == 3
    for g in (first, second, third, fourth):
        assert output(g) == target.greedy(g.tokens[: g.num_prompt_tokens], 10)
    assert target.num_open == 1
    engine.release(kept)
    engine.tidy()
    assert target.num_open == 0 and kept.handle is None


def test_a_kept_cache_that_is_released_while_a_text_uses_it_ends_with_the_text() -> None:
    target = ToyModel()
    engine, kept = Engine(target), KeptCache()
    commits = engine.run([begin(kept=kept)])
    next(commits)
    engine.release(kept)
    rest = [token for commit in commits for token in commit.tokens]
    assert len(rest) == 39 and target.num_open == 0 and kept.handle is None


def test_two_texts_of_one_kept_cache_leave_one_behind() -> None:
    target = ToyModel()
    engine, kept = Engine(target), KeptCache()
    turn(engine, kept, PROMPT)
    both = [begin([*PROMPT, i], 10, kept=kept) for i in range(2)]
    assert run(engine, *both) == [target.greedy([*PROMPT, i], 10) for i in range(2)]
    assert target.num_open == 1
    assert sorted(g.metrics.num_cached_tokens for g in both) == [0, len(PROMPT)]


def test_under_pressure_kept_caches_go_first_the_longest_unused_before_others() -> None:
    target = ToyModel(cache_tokens=100, max_context=60)
    engine = Engine(target)
    kept = [KeptCache() for _ in range(3)]
    for i in range(3):
        turn(engine, kept[i], [i], 20)  # 20 tokens each
    generation = begin([5], 50)
    run(engine, generation)
    assert generation.metrics.num_preemptions == 0
    assert [k.handle is None for k in kept] == [True, False, False]
    again = turn(engine, kept[0], [0, *target.greedy([0], 20)], 5)  # read anew
    assert again.metrics.num_cached_tokens == 0
    assert output(again) == target.greedy([0], 25)[20:]


def test_a_kept_cache_is_not_freed_for_the_text_that_begins_with_it() -> None:
    target = ToyModel(cache_tokens=84, max_context=64)
    engine = Engine(target)
    kept, other = KeptCache(), KeptCache()
    first = turn(engine, kept, PROMPT, 10)
    turn(engine, other, [1], 40)
    second = turn(engine, kept, first.tokens, 10)
    assert second.metrics.num_cached_tokens == len(first.tokens) - 1
    assert other.handle is None


def test_a_text_with_a_kept_cache_that_had_to_wait_is_computed_anew_and_keeps_its_cache() -> None:
    target = ToyModel(cache_tokens=70, max_context=50)
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)))
    kept = KeptCache()
    first, second = begin([1], 45), begin([2], 45, kept=kept)
    assert run(engine, first, second) == [target.greedy([p], 45) for p in (1, 2)]
    assert second.metrics.num_preemptions > 0
    assert kept.handle is not None and kept.tokens == second.tokens[:-1] and target.num_open == 1


def test_an_ended_sequence_gives_its_room_to_others_before_any_has_to_wait() -> None:
    target = ToyModel(cache_tokens=40, max_context=40)
    scheduler = Scheduler(target)
    first, second = begin([1] * 10), begin([2] * 10)
    scheduler.add(first)
    scheduler.add(second)
    scheduler.running += [first, second]
    scheduler.waiting.clear()
    second.finish_reason = "stop"
    scheduler.refused([(first, "cache")])
    assert scheduler.running == [first, second] and not first.ended
    assert scheduler.ended() == [second]
    scheduler.refused([(first, "cache")])
    assert first.finish_reason == "length"


def test_one_full_round_makes_no_more_than_one_sequence_wait() -> None:
    scheduler = Scheduler(ToyModel())
    generations = [begin([i]) for i in range(3)]
    scheduler.running += generations
    scheduler.refused([(g, "cache") for g in generations])
    assert scheduler.running == generations[:2] and [*scheduler.waiting] == generations[2:]


def test_a_cache_that_does_not_open_loses_no_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    target = ToyModel()
    engine, generation = Engine(target), begin()
    engine.add(generation)
    with monkeypatch.context() as patch:
        patch.setattr(target, "open", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    finish(engine)
    assert output(generation) == target.greedy(PROMPT, 40)


def test_drafters_hear_of_a_sequence_s_end_once_and_of_no_preemption() -> None:
    target = ToyModel(cache_tokens=80, max_context=50)
    drafter = ToyDrafter(ToyModel(noise=0.4))
    engine = Engine(target, FirstProposal([drafter], lambda: Fixed(2)))
    generations = [begin([i], 30) for i in range(3)]
    run(engine, *generations)
    assert sum(g.metrics.num_preemptions for g in generations) > 0
    assert sorted(drafter.forgotten) == [g.key for g in generations] and not drafter.keys
