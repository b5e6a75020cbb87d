"""Peer: openvino-genai's LLMPipeline on the same IR. Optional (extra `bench`).

It gets token ids, so that every method reads the same prompt.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from specport.calibration.methods import Run
from specport.errors import InvalidInput, SpecportError
from specport.quantize.convert.to_genai import genai

# Settings of each mode. The numbers are the library's defaults.
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "lookup": {"num_assistant_tokens": 5, "max_ngram_size": 3},
    "draft": {"num_assistant_tokens": 5},
    "draft-dynamic": {"assistant_confidence_threshold": 0.4},
}


class GenAi:
    """Run one mode of LLMPipeline. Raises SpecportError where the package is missing.

    properties: runtime properties; the same as in specport's fast mode.
    """

    def __init__(
        self,
        mode: str,
        folder: Path,
        draft: Path | None,
        device: str,
        eos_ids: frozenset[int],
        properties: Mapping[str, Any],
    ) -> None:
        if mode not in MODES:
            raise InvalidInput(f"unknown method 'genai:{mode}'", f"choose one of {', '.join(MODES)}")
        needs_draft = mode.startswith("draft")
        if needs_draft and draft is None:
            raise InvalidInput(f"genai:{mode} needs a draft model", "give one with --draft")
        try:
            import openvino_genai
        except ImportError as error:
            raise SpecportError(
                f"genai:{mode} needs openvino-genai", "pip install 'specport[bench]'"
            ) from error
        self.name = f"genai:{mode}"
        self._work = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        work = Path(self._work.name)
        # The library's own settings for one sequence, but for its cache of prompts: a second run of a prompt
        # would read nothing, where the other methods read all of it.
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = sys.maxsize
        scheduler.enable_prefix_caching = False
        options: dict[str, Any] = {**properties, "scheduler_config": scheduler}
        if mode == "lookup":
            options["prompt_lookup"] = True
        if needs_draft:
            assert draft is not None
            options["draft_model"] = openvino_genai.draft_model(
                genai(draft, work / "draft", link=True), device, **properties
            )
        self._pipe = openvino_genai.LLMPipeline(genai(folder, work / "target", link=True), device, **options)
        self._config = openvino_genai.GenerationConfig(do_sample=False, **MODES[mode])
        self._config.stop_token_ids = set(eos_ids)
        self._openvino_genai = openvino_genai
        self.settings: Mapping[str, Any] = {
            "openvino-genai": version("openvino-genai"),
            "device": device,
            **properties,
            **MODES[mode],
            "prefix_caching": False,
        }

    def run(self, prompt: Sequence[int], max_new_tokens: int) -> Run:
        import openvino as ov

        ids = np.asarray([prompt], dtype=np.int64)
        inputs = self._openvino_genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        self._config.max_new_tokens = max_new_tokens
        began = time.perf_counter()
        result = self._pipe.generate(inputs, self._config)
        total = time.perf_counter() - began
        ttft = result.perf_metrics.get_ttft().mean / 1e3
        return Run([int(token) for token in result.tokens[0]], ttft, total)
