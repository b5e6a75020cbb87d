"""Peer: transformers' `generate` on PyTorch: plain, with prompt lookup, or with an assistant model.

It runs the weights that the compared model was converted from. The stateful IR does not work here:
transformers crops its cache after a rejection, which a stateful model does not allow. It computes in the
precision of the torch backend where that is compared, else in bfloat16. It gets token ids, so that every
method reads the same prompt.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specport.calibration.methods import Run
from specport.errors import InvalidInput, SpecportError
from specport.models.precision import TORCH_DTYPES
from specport.models.source import original
from specport.quantize.convert import package_faults

# Settings of each mode. All others are the library's defaults.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lookup": {"prompt_lookup_num_tokens": 10},
    "draft": {},
}
# Of the assistant: the library's defaults, written out since version 5 fills them in only while it generates.
_ASSISTANT = {
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.4,
}


class Transformers:
    """Run one mode of `generate`. Raises SpecportError where the packages are missing.

    model, draft: the names that the user gave; converted models cannot be used.
    loaded:       path -> loaded model, shared by the modes.
    precision:    one of TORCH_DTYPES.
    """

    def __init__(
        self,
        mode: str,
        model: str,
        draft: str | None,
        eos_ids: frozenset[int],
        threads: int | None,
        trust_remote_code: bool,
        loaded: dict[Path, Any],
        precision: str = "bf16",
    ) -> None:
        if mode not in MODES:
            raise InvalidInput(f"unknown method 'transformers:{mode}'", f"choose one of {', '.join(MODES)}")
        if mode == "draft" and draft is None:
            raise InvalidInput("transformers:draft needs a draft model", "give one with --draft")
        package_faults.mend()
        try:
            import torch
            from transformers import GenerationConfig
        except ImportError as error:
            raise SpecportError(
                f"transformers:{mode} needs torch and transformers", "pip install 'specport[openvino]'"
            ) from error
        self.name = f"transformers:{mode}"
        if threads is not None:
            torch.set_num_threads(threads)

        def shared(spec: str) -> tuple[Path, Any]:
            path = original(spec)
            if path not in loaded:
                loaded[path] = _load(path, trust_remote_code, TORCH_DTYPES[precision])
            return path, loaded[path]

        weights, self._model = shared(model)
        self._options: dict[str, Any] = {}
        self._config = GenerationConfig(do_sample=False, use_cache=True, **MODES[mode])
        self._config.eos_token_id = sorted(eos_ids) or None
        self._config.pad_token_id = min(eos_ids, default=0)
        settings: dict[str, Any] = {
            "transformers": version("transformers"),
            "torch": version("torch"),
            "weights": weights.name,
            "dtype": TORCH_DTYPES[precision],
            "threads": torch.get_num_threads(),
            **MODES[mode],
        }
        if mode == "draft":
            assert draft is not None
            path, assistant = shared(draft)
            assistant.generation_config = GenerationConfig(**_ASSISTANT)  # read from there
            self._options["assistant_model"] = assistant
            settings |= {"draft weights": path.name, **_ASSISTANT}
        self.settings: Mapping[str, Any] = settings

    def run(self, prompt: Sequence[int], max_new_tokens: int) -> Run:
        import torch

        ids = torch.tensor([list(prompt)])
        self._config.max_new_tokens = max_new_tokens
        clock = _Clock()
        began = time.perf_counter()
        with torch.inference_mode():
            output = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=self._config,
                streamer=clock,
                **self._options,
            )
        total = time.perf_counter() - began
        tokens = [int(token) for token in output[0, len(prompt) :]]
        return Run(tokens, (clock.first or began + total) - began, total, num_first=clock.num_first)


class _Clock:
    """Streamer that records when the first tokens arrive and how many; it gets the prompt before them."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.num_first = 1
        self._after_prompt = False

    def put(self, value: Any) -> None:
        if self._after_prompt and self.first is None:
            self.first, self.num_first = time.perf_counter(), value.numel()
        self._after_prompt = True

    def end(self) -> None: ...


def _load(weights: Path, trust_remote_code: bool, dtype: str) -> Any:
    import torch

    from specport.quantize.convert.export import load_source

    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work,
        contextlib.redirect_stderr(io.StringIO()),  # the library's own progress bars
    ):
        model = load_source(weights, Path(work), trust_remote_code)
    return model.to(getattr(torch, dtype)).eval()
