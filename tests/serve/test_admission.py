"""Who runs and who waits: turns, the limit of the queue, and the time limit of a request."""

from __future__ import annotations

import asyncio

import pytest
from support.processes.served import events, run, served, toy
from support.toys.toy_pipeline import greedy

from specport.errors import InvalidInput
from specport.serve.admission import Admission, QueueFull, Ticket
from specport.serve.settings import Limits


def admitted(*tickets: Ticket) -> list[bool]:
    return [ticket.admitted.is_set() for ticket in tickets]


def test_clients_take_turns_and_keep_their_order() -> None:
    admission = Admission(1, 10)
    first = admission.enter("a", 1)
    greedy_ones = [admission.enter("a", 1) for _ in range(3)]
    other, third = admission.enter("b", 1), admission.enter("c", 1)
    assert admitted(first, *greedy_ones, other, third) == [True] + [False] * 5
    order = []
    for _ in range(5):
        before = admitted(*greedy_ones, other, third)
        admission.leave()
        order.append(
            [b != a for b, a in zip(before, admitted(*greedy_ones, other, third), strict=True)].index(True)
        )
    assert order == [0, 3, 4, 1, 2]
    assert (admission.num_running, admission.num_waiting) == (1, 0)


def test_nobody_overtakes_a_request_that_is_too_large_for_now() -> None:
    admission = Admission(4, 10)
    admission.enter("a", 3)
    large, small = admission.enter("b", 4), admission.enter("c", 1)
    assert admitted(large, small) == [False, False]
    admission.leave(2)
    assert admitted(large, small) == [False, False]
    admission.leave()
    assert admitted(large, small) == [True, False]


def test_who_gives_up_frees_the_place() -> None:
    admission = Admission(1, 2)
    admission.enter("a", 1)
    gone, waits = admission.enter("b", 1), admission.enter("c", 1)
    with pytest.raises(QueueFull):
        admission.enter("d", 1)
    admission.withdraw(gone)
    admission.withdraw(gone)
    late = admission.enter("d", 1)
    admission.leave()
    admission.leave()
    assert admitted(gone, waits, late) == [False, True, True] and admission.num_waiting == 0


def test_a_queue_without_places_takes_what_can_run_at_once() -> None:
    admission = Admission(2, 0)
    assert admission.enter("a", 2).admitted.is_set()
    with pytest.raises(QueueFull):
        admission.enter("a", 1)
    assert admission.num_waiting == 0


def test_a_full_queue_is_told_with_the_time_to_wait() -> None:
    async def start() -> None:
        async with served(toy(step_seconds=0.01), Limits(max_running=2, max_queue=2, max_choices=2)) as s:
            running = [asyncio.ensure_future(s.chat("abc", max_tokens=60)) for _ in range(4)]
            while s.service._admission.num_waiting < 2:
                await asyncio.sleep(0.005)
            refused = await s.chat("abc", max_tokens=60)
            assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["type"] == "rate_limit_error"
            replies = await asyncio.gather(*running)
            assert {r.json()["choices"][0]["message"]["content"] for r in replies} == {greedy("abc", 60)}
            assert (await s.chat("abc", max_tokens=5)).status_code == 200
            await s.idle()

    run(start())


def test_a_request_that_takes_too_long_is_ended_and_frees_its_place() -> None:
    async def start() -> None:
        async with served(toy(step_seconds=0.02), Limits(max_running=1, request_seconds=0.5)) as s:
            long, waiting = await asyncio.gather(s.chat("abc", max_tokens=3000), s.chat("b", max_tokens=3000))
            for reply in (long, waiting):
                assert reply.status_code == 408 and reply.json()["error"]["code"] == "request_timeout"
                assert reply.headers["x-should-retry"] == "false"
            *chunks, last = events(await s.chat("abc", max_tokens=3000, stream=True))
            assert last["error"]["code"] == "request_timeout"
            written = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
            assert written and greedy("abc", len(written)) == written
            await s.idle()

    run(start())


def test_a_stream_that_waits_says_that_it_is_alive() -> None:
    async def start() -> None:
        limits = Limits(max_running=1, beat_seconds=0.05)
        async with served(toy(step_seconds=0.01), limits) as s:
            running = asyncio.ensure_future(s.chat("abc", max_tokens=50))
            while s.service._admission.num_running < 1:  # who comes first does not wait
                await asyncio.sleep(0.005)
            waited = await s.chat("abc", max_tokens=5, stream=True)
            await running
            assert "\n: waiting\n\n" in "\n" + waited.text and len(events(waited)) >= 3

    run(start())


def test_a_request_has_no_more_sequences_than_can_run() -> None:
    async def start() -> None:
        async with served(toy(), Limits(max_running=2)) as s:
            assert (await s.chat("abc", n=3)).status_code == 400
            assert (await s.chat("abc", n=2, max_tokens=3)).status_code == 200

    run(start())


@pytest.mark.parametrize("wrong", [{"max_running": 0}, {"max_queue": -1}, {"request_seconds": -1.0}])
def test_limits_that_are_none(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]
