"""Peer: llama.cpp through llama-cpp-python: plain, with its prompt lookup, or with a draft model.

It runs the GGUF file that the compared model was converted from. Optional (extra `llama`); there are no
wheels, so installing it compiles llama.cpp on this machine. It gets token ids, so that every method reads the
same prompt.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specport.calibration.methods import Run
from specport.errors import InvalidInput, SpecportError
from specport.models.source import original
from specport.runtime.devices.profiles import cpu_flags, usable_cores

# Settings of each mode. The library's documentation recommends 2 lookup tokens on a CPU and 10 on a GPU. It
# has no default for a draft model; a chain of 3 tokens suits a CPU.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lookup": {"max_ngram_size": 2, "num_pred_tokens": 2},
    "lookup-10": {"max_ngram_size": 2, "num_pred_tokens": 10},
    "draft": {"num_pred_tokens": 3},
}


class LlamaCpp:
    """Run one mode of llama-cpp-python's `Llama`. Raises SpecportError where the package is missing.

    model, draft: the names that the user gave; a GGUF file must exist for each.
    max_context:  most tokens of a prompt plus its answer.
    """

    def __init__(
        self,
        mode: str,
        model: str,
        draft: str | None,
        eos_ids: frozenset[int],
        threads: int | None,
        max_context: int,
    ) -> None:
        if mode not in MODES:
            raise InvalidInput(f"unknown method 'llama.cpp:{mode}'", f"choose one of {', '.join(MODES)}")
        if mode == "draft" and draft is None:
            raise InvalidInput("llama.cpp:draft needs a draft model", "give one with --draft")
        try:
            from llama_cpp import Llama
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
        except ImportError as error:
            raise SpecportError(
                f"llama.cpp:{mode} needs llama-cpp-python", "pip install 'specport[llama]'"
            ) from error
        self.name = f"llama.cpp:{mode}"
        self._eos_ids = eos_ids
        threads = threads or usable_cores()
        options = {"n_ctx": max_context, "n_threads": threads, "n_threads_batch": threads, "verbose": False}
        weights = _gguf(model)
        settings: dict[str, Any] = {
            "llama-cpp-python": version("llama-cpp-python"),
            "weights": weights.name,
            "threads": threads,
            **MODES[mode],
        }
        drafting: Any = None
        with _repacking() as repacked:
            if mode == "draft":
                assert draft is not None
                draft_weights = _gguf(draft)
                settings["draft weights"] = draft_weights.name
                drafting = _chain(Llama(str(draft_weights), **options), **MODES[mode])
            elif MODES[mode]:
                drafting = LlamaPromptLookupDecoding(**MODES[mode])
            # With a draft the library stores the logits of every token, but allocates them only with
            # logits_all.
            self._llama = Llama(
                str(weights), draft_model=drafting, logits_all=drafting is not None, **options
            )
        self.settings: Mapping[str, Any] = {**settings, "repacked": repacked}

    def run(self, prompt: Sequence[int], max_new_tokens: int) -> Run:
        self._llama.reset()  # else it reuses the cache of a shared prefix
        tokens: list[int] = []
        ttft = 0.0
        began = time.perf_counter()
        for token in self._llama.generate(list(prompt), temp=0.0):
            if not tokens:
                ttft = time.perf_counter() - began
            tokens.append(int(token))
            if token in self._eos_ids or len(tokens) == max_new_tokens:
                break
        return Run(tokens, ttft, time.perf_counter() - began)


@contextmanager
def _repacking() -> Iterator[bool]:
    """Load models as the library does, but with AMX without repacked weights; yield whether they are.

    Their kernels for AMX crash in virtual machines (llama.cpp issue 20824; llama-cpp-python 0.3.36).
    """
    from llama_cpp import llama_cpp as library

    if "amx_int8" not in cpu_flags():
        yield True
        return
    default = library.llama_model_default_params

    def without() -> Any:
        found = default()
        found.use_extra_bufts = False
        return found

    library.llama_model_default_params = without
    try:
        yield False
    finally:
        library.llama_model_default_params = default


def _chain(llama: Any, num_pred_tokens: int) -> Any:
    """Return a draft model for the library that proposes greedy continuations of a second model."""
    import numpy as np
    from llama_cpp.llama_speculative import LlamaDraftModel

    class Chain(LlamaDraftModel):  # type: ignore[misc]
        def __call__(self, input_ids: Any, /, **kwargs: Any) -> Any:
            guesses = llama.generate(input_ids.tolist(), temp=0.0)
            return np.fromiter(itertools.islice(guesses, num_pred_tokens), dtype=np.intc)

    return Chain()


def _gguf(spec: str) -> Path:
    path = original(spec)
    if path.suffix != ".gguf":
        raise InvalidInput(f"{spec} has no GGUF file, which llama.cpp needs", "give a GGUF file as the model")
    return path
