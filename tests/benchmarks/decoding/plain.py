"""Plain decoding: exact and fast mode and openvino-genai's LLMPipeline on the same IR, interleaved.

    python tests/benchmarks/decoding/plain.py --model FOLDER_WITH_IR --runs 7

Reports the median and the spread of TPOT, and what the Python loop adds to a step: everything but the
runtime's own inference call. openvino-genai is optional (extra `bench`); it is fed token ids.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from specport.core.engine import Engine
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import cpu_name, load_profile
from specport.runtime.devices.registry import LoadOptions, backend_for
from specport.text.tokenizer import load_tokenizer

PROMPT = "Write a long story about a lighthouse keeper and the sea."


def ours(engine: Engine, ids: list[int], n: int, overheads: list[float]) -> float:
    """TPOT in ms; adds the loop's share of a step, in ms, to `overheads`."""
    generation = Generation(list(ids), SamplingParams(), n)
    for _ in engine.run([generation]):
        pass
    metrics = generation.metrics
    overheads.append((metrics.decode_s - metrics.verify_s) / metrics.num_steps * 1e3)
    return metrics.tpot_s * 1e3


def genai(folder: Path, ids: list[int], n: int) -> Callable[[], float]:
    """A function that decodes once with openvino-genai and returns its TPOT in ms."""
    import openvino as ov
    import openvino_genai
    import openvino_tokenizers
    from transformers import AutoTokenizer

    work = Path(tempfile.mkdtemp())
    shutil.copytree(folder, work, dirs_exist_ok=True)
    converted = openvino_tokenizers.convert_tokenizer(
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        with_detokenizer=True,
    )
    for name, model in zip(("tokenizer", "detokenizer"), converted, strict=True):
        ov.save_model(model, work / f"openvino_{name}.xml")
    pipe = openvino_genai.LLMPipeline(work, "CPU")
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = n, True, False
    tokens = ov.Tensor(np.array([ids], dtype=np.int64))
    mask = ov.Tensor(np.ones((1, len(ids)), dtype=np.int64))
    inputs = openvino_genai.TokenizedInputs(tokens, mask)
    return lambda: pipe.generate(inputs, config).perf_metrics.get_tpot().mean


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    args = parser.parse_args()

    files = resolve(args.model)
    profile = load_profile("xeon")
    backend = backend_for(profile)
    ids = load_tokenizer(files.folder).chat([{"role": "user", "content": PROMPT}])
    overheads: list[float] = []
    methods: dict[str, Callable[[], float]] = {}
    for name, exact in (("exact", True), ("fast", False)):
        engine = Engine(backend.load(files, LoadOptions(profile, exact=exact)).model)
        methods[name] = lambda engine=engine: ours(engine, ids, args.max_new_tokens, overheads)  # type: ignore[misc]
    versions = {name: version(name) for name in ("specport", "openvino")}
    try:
        methods["openvino-genai"] = genai(files.folder, ids, args.max_new_tokens)
        versions["openvino-genai"] = version("openvino-genai")
    except ImportError:
        print("openvino-genai is not installed: left out")

    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(args.runs + 1):
        for name, decode in methods.items():
            times[name].append(decode())
    about = {"device": cpu_name(), "model": files.name, "precision": files.precision, "runs": args.runs}
    print(json.dumps({**about, "new tokens": args.max_new_tokens, "versions": versions}))
    for name, values in times.items():
        kept = values[1:]  # the first of each warms up
        print(f"{name:15} TPOT {statistics.median(kept):6.2f} ms  ({min(kept):.2f} to {max(kept):.2f})")
    kept = overheads[2:]
    print(f"loop            {statistics.median(kept):6.3f} ms a step  ({min(kept):.3f} to {max(kept):.3f})")


if __name__ == "__main__":
    main()
