"""A server on a diffusion model: its texts are those of the library, and what it cannot do is said."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.processes.served import Served, events, run, served
from support.tiny.tiny_diffusion import tiny_diffusion
from support.toys.toy_pipeline import ToyTokenizer

from specport.diffusion.engine import DiffusionEngine
from specport.diffusion.options import DiffusionOptions
from specport.pipeline import Pipeline

PROMPTS = ["bad cafe", "abc", "dead beef"]


def pipeline(draft: bool) -> Pipeline:
    target = tiny_diffusion(2, vocab=12)
    small = tiny_diffusion(2, vocab=12, noise=0.1) if draft else None
    options = DiffusionOptions(order="position", layout="grouped") if draft else DiffusionOptions()
    return Pipeline(DiffusionEngine(target, options, small, "small"), ToyTokenizer(), model_name="tiny")


async def _asked(loaded: Pipeline, ask: Callable[[Served], Awaitable[None]]) -> None:
    async with served(loaded) as s:
        await ask(s)
        await s.idle()


@pytest.mark.parametrize("draft", [False, True])
def test_texts_are_those_of_the_library(draft: bool) -> None:
    with pipeline(draft) as library, pipeline(draft) as loaded:
        wanted = [library.generate(p, raw=True, max_new_tokens=30).text for p in PROMPTS]

        async def ask(s: Served) -> None:
            async def one(prompt: str) -> str:
                reply = await s.complete(prompt, max_tokens=30)
                assert reply.status_code == 200, reply.text
                return str(reply.json()["choices"][0]["text"])

            assert await asyncio.gather(*map(one, PROMPTS)) == wanted
            found = events(await s.complete(PROMPTS[0], max_tokens=30, stream=True))
            pieces = [c["text"] for e in found for c in e["choices"]]
            assert "".join(pieces) == wanted[0] and len(pieces) > 1
            several = (await s.complete(PROMPTS[0], max_tokens=8, n=2, temperature=1.0, seed=1)).json()
            assert len(several["choices"]) == 2
            told = (await s.client.get("/metrics")).text
            assert "generation_tokens_total" in told

        run(_asked(loaded, ask))
        assert loaded.engine.num_unfinished == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("logprobs", 1), ("presence_penalty", 0.5), ("logit_bias", {"3": 5.0})],
)
def test_what_it_cannot_do_is_refused(field: str, value: Any) -> None:
    with pipeline(False) as loaded:

        async def ask(s: Served) -> None:
            for stream in (False, True):
                reply = await s.complete(PROMPTS[0], max_tokens=8, stream=stream, **{field: value})
                assert reply.status_code == 400 and "a diffusion model cannot follow" in reply.text
            assert (await s.complete(PROMPTS[0], max_tokens=8)).status_code == 200

        run(_asked(loaded, ask))
