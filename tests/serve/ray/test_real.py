"""The default model on a Ray cluster: the texts of a model alone, and prompts that a replica has read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from support.processes.served import Process, command

import specport

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.real_model
WORDS = "river stone window garden letter winter music paper market silver bridge morning story island"


def test_two_replicas_of_the_default_model(cluster: str) -> None:
    system = {
        "role": "system",
        "content": f"You answer questions about {WORDS} {WORDS} {WORDS}.",
    }
    chats = [[system, {"role": "user", "content": f"Name {n} of the words."}] for n in ("two", "three")]
    arguments = ["--ray", "--ray-address", cluster, "--replicas", "2", "--cores", "1", "--temperature", "0"]
    with Process(command(), arguments) as process:

        def ask(messages: list[Any]) -> Any:
            body = {"messages": messages, "max_tokens": 16}
            return httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=120).json()

        firsts = [ask(messages) for messages in chats]
        for messages, first in zip(chats, firsts, strict=True):
            more = [first["choices"][0]["message"], {"role": "user", "content": "And another one?"}]
            second = ask([*messages, *more])
            read = first["usage"]["prompt_tokens"]
            assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= read - read % 32
        process.process.terminate()
        assert process.end()[0] == 0
    with specport.load(threads=1) as pipeline:
        alone = [pipeline.generate(messages, max_new_tokens=16).text for messages in chats]
    assert [first["choices"][0]["message"]["content"] for first in firsts] == alone
