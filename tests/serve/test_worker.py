"""The worker's thread: faults of the model, and an end at any time."""

from __future__ import annotations

import asyncio

from support.processes.served import events, run, served, toy
from support.toys.toy_pipeline import greedy


def test_a_round_that_fails_once_costs_no_text() -> None:
    async def start() -> None:
        pipeline = toy()
        async with served(pipeline) as s:
            model, calls = pipeline.engine.model, []

            def fail() -> None:
                calls.append(1)
                if len(calls) == 10:
                    raise RuntimeError("a passing fault")

            model.during_step = fail
            replies = await asyncio.gather(*(s.chat("abc", max_tokens=60) for _ in range(3)))
            assert {r.json()["choices"][0]["message"]["content"] for r in replies} == {greedy("abc", 60)}
            assert len(calls) > 10
            await s.idle()

    run(start())


def test_what_fails_again_and_again_is_given_up_and_the_server_lives_on() -> None:
    async def start() -> None:
        pipeline = toy()
        async with served(pipeline) as s:

            def fail() -> None:
                raise RuntimeError("for good")

            pipeline.engine.model.during_step = fail
            reply = await s.chat("abc", max_tokens=60)
            assert reply.status_code == 500 and "for good" not in reply.text
            assert reply.json()["error"]["type"] == "server_error"
            *_, last = events(await s.chat("abc", max_tokens=60, stream=True))
            assert last["error"]["type"] == "server_error"
            pipeline.engine.model.during_step = None
            assert (await s.chat("abc", max_tokens=20)).json()["choices"][0]["message"]["content"] == greedy(
                "abc", 20
            )
            await s.idle()
            assert pipeline.engine.model.num_open == 0

    run(start())


def test_the_end_of_the_service_ends_what_runs() -> None:
    async def start() -> None:
        pipeline = toy(step_seconds=0.01)
        async with served(pipeline) as s:
            asked = [asyncio.ensure_future(s.chat("abc", max_tokens=4000, stream=i > 0)) for i in range(2)]
            while pipeline.engine.num_unfinished < 2:
                await asyncio.sleep(0.01)
            await s.service.stop()
            whole, stream = await asyncio.gather(*asked)
            assert whole.status_code == 503
            assert events(stream)[-1]["error"]["message"] == "the server is shutting down"
            assert pipeline.engine.num_unfinished == 0 and pipeline.engine.model.num_open == 0
            assert (await s.chat("abc")).status_code == 503

    run(start())
