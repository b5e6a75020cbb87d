"""`specport serve` on the default model, as a user starts it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import httpx
import openai
import pytest
from support.processes.browser import Visit, browsing
from support.processes.served import Process, command

import specport

pytestmark = pytest.mark.real_model
PROMPTS = [
    "Repeat this sentence three times: The quick brown fox jumps over the lazy dog.",
    "Name three rivers", "Write the numbers from 1 to 12, one a line", "What is a library?",
    "Say hello in French", "Why is the sky blue?", "Write a haiku about rain", "Count down from five",
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    with Process(command(), ["--device", "xeon", "--draft", "suffix", "--metrics-prefix", "vllm"]) as started:
        started.wait_until_ready()
        yield started


def test_eight_clients_get_the_texts_of_the_library_with_drafts(server: Process) -> None:
    with specport.load(device="xeon", draft="none") as pipeline:
        wanted = [pipeline.generate(prompt, max_new_tokens=48).text for prompt in PROMPTS]

    async def ask(client: openai.AsyncOpenAI, prompt: str, stream: bool) -> tuple[str, int]:
        messages = [{"role": "user", "content": prompt}]
        fields = {"model": "", "messages": messages, "temperature": 0, "max_tokens": 48}
        fields["model"] = (await client.models.list()).data[0].id
        if not stream:
            reply = await client.chat.completions.create(**fields)
            accepted = reply.model_extra["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"]
            return reply.choices[0].message.content, accepted
        text = ""
        async for chunk in await client.chat.completions.create(**fields, stream=True):
            text += chunk.choices[0].delta.content or ""
        return text, 0

    async def start() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            found = await asyncio.gather(*(ask(client, p, i % 2 == 1) for i, p in enumerate(PROMPTS)))
            assert [text for text, _ in found] == wanted
            assert sum(accepted for _, accepted in found) > 0

    asyncio.run(start())
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "vllm:spec_decode_num_accepted_tokens_total{" in metrics


def test_the_page_shows_and_compares_answers(server: Process) -> None:
    with browsing() as browser:
        visit = Visit(browser, server.url)
        page = visit.page
        page.get_by_text("Settings").click()
        page.get_by_label("Most tokens").fill("48")
        page.keyboard.press("Escape")
        page.get_by_label("Compare").check(force=True)
        visit.send(PROMPTS[0])
        assert page.locator(".verdict").inner_text().startswith("The texts are equal.")
        assert page.locator(".columns .piece[title='proposed by suffix']").count() > 0
        visit.close()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_it_ends_in_order(server: Process) -> None:
    server.process.send_signal(signal.SIGTERM)
    code, err = server.end()
    assert code == 0 and "Traceback" not in err
