"""The toy model behind the Python API: what `specport.load` gives, without a download or a runtime.

PROGRAM runs the `specport` command on the toy model. $TOY_STEP_SECONDS slows each step down.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import specport
from specport.cli import main
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.errors import ModelError
from specport.pipeline import Pipeline
from support.generations import drafted
from support.toys.toy_model import ToyModel

LETTERS = "abcdefghij "
calls: list[dict[str, Any]] = []  # arguments of every `load`
_RUN = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from support.toys import toy_pipeline; sys.exit(toy_pipeline.program())"
)
PROGRAM = [sys.executable, "-c", _RUN, str(Path(__file__).parents[2])]


class ToyTokenizer:
    """One letter a token; a conversation is its messages, one behind the other."""

    eos_ids: frozenset[int] = frozenset()
    special_ids: frozenset[int] = frozenset()
    has_chat_template = True

    def encode(self, text: str) -> list[int]:
        # What it wrote itself it reads back as the same tokens, as a chat's cache needs.
        return [LETTERS.find(c) if c in LETTERS else ord(c) % len(LETTERS) for c in text]

    def chat(self, messages: Iterable[Mapping[str, Any]]) -> list[int]:
        return self.encode("".join(message["content"] for message in messages))

    def render(self, messages: Iterable[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        return "".join(message["content"] for message in messages)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        return "".join(LETTERS[token] for token in ids)

    @property
    def table(self) -> Mapping[int, bytes]:
        return {i: letter.encode() for i, letter in enumerate(LETTERS)}

    def encode_part(self, text: str) -> list[int]:
        return self.encode(text) if {*text} <= {*LETTERS} else []

    def token_bytes(self, token: int) -> bytes:
        return LETTERS[token].encode()


def load(model: str | None = None, *, progress: Any = None, **options: Any) -> Pipeline:
    calls.append({"model": model, **options})
    if model == "missing":
        raise ModelError("there is no model\n'missing'", "name another")
    if model == "broken":
        raise RuntimeError("a bug")
    progress("loading", 0.0)
    toy = ToyModel(step_seconds=float(os.environ.get("TOY_STEP_SECONDS", "0")), max_context=4096)
    drafter = None if options.get("draft") == "none" else NgramDrafter()
    return Pipeline(
        drafted(toy, drafter), ToyTokenizer(), model_name="toy", device_name="paper", notes=["it is a toy"],
    )  # fmt: skip


def greedy(prompt: str, n: int) -> str:
    """The answer, by plain decoding."""
    return "".join(LETTERS[token] for token in ToyModel().greedy(ToyTokenizer().encode(prompt), n))


def program(argv: Sequence[str] | None = None) -> int:
    # A shell may have started the tests in the background, with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):  # and nohup ignores this one
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    specport.load = load
    return main(argv)
