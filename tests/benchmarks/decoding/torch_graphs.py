"""What CUDA graphs are worth, on a GPU: plain decoding with and without them, and steps of each width.

    python tests/benchmarks/decoding/torch_graphs.py --model qwen2.5-coder-1.5b-instruct.gguf --tokens 128

Prints medians of `--runs` runs with their quartiles. The prompt is read before the clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from specport.backends.torch.load import load
from specport.backends.torch.runners import Eager

from specport.core.ports import Block, Row
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

PROMPT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    profile = load_profile(args.device)
    files = resolve(args.model, precision=profile.precision, weights="huggingface")
    name = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}, {files.name} {files.precision}, {PROMPT} tokens before")
    graphs = load(files, LoadOptions(profile, exact=False)).model
    eager = load(files, LoadOptions(profile, exact=False)).model
    eager.passes.runner = Eager(eager.passes.runner.module, "cuda" if args.device == "cuda" else "cpu")
    for label, model in (("graphs", graphs), ("eager", eager)):
        handle = model.open(PROMPT + args.tokens + 64)
        ids = [i % model.vocab_size for i in range(7, 7 + PROMPT)]
        model.step([Row(handle, Block.chain(ids), logits="last")])
        model.commit(handle, range(PROMPT))

        def plain(model=model, handle=handle) -> None:  # type: ignore[no-untyped-def]
            token = 11
            for _ in range(args.tokens):
                logits = model.step([Row(handle, Block.chain([token]))]).logits
                model.commit(handle, [0])
                token = int(logits[0].argmax())
            model.truncate(handle, PROMPT)

        report(f"{label}, plain, ms a token", args.runs, plain, args.tokens)
        for width in profile.buckets or (1, 2, 4, 8, 16):
            if width <= 64:
                row = Row(handle, Block.chain(ids[:width]))
                report(f"{label}, step of {width}, ms", 5 * args.runs, lambda m=model, r=row: m.step([r]), 1)


def report(what: str, runs: int, work: Callable[[], object], count: int) -> None:
    work()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - began) / count)
    low, middle, high = statistics.quantiles(times, n=4)
    print(f"{what:32} {middle:8.2f}   ({low:.2f} to {high:.2f}, {runs} runs)", flush=True)


if __name__ == "__main__":
    main()
