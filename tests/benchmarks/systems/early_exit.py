"""Early exit: what the shared cache saves a verification, against shared weights alone.

    python tests/benchmarks/systems/early_exit.py --model DIR --exit 10 20 --draft-tokens 1 2 4 8

For each exit and number of draft tokens: drafting, and the step that verifies the drafts, with what drafting
computed (LayerSkip's shared cache) and without it (weights alone, as transformers has it), in turns.
The logits of both must be equal to the bit. Times are medians in ms, of the runtime and our own code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader

WARM = 2
PARTS = ("plain", "draft", "shared", "weights")


def rounds(model: Any, context: int, num: int, count: int, rng: np.random.Generator) -> dict[str, float]:
    """Median ms of each part over `count` rounds."""
    ids = rng.integers(0, min(model.vocab_size, 40_000), context + num + 1).tolist()
    handle = model.open(context + num + 1)
    times: dict[str, list[float]] = {name: [] for name in PARTS}
    model.step([Row(handle, Block.chain(ids[:context]), logits="last")])
    model.commit(handle, range(context))
    new = ids[context:]

    def step(tokens: Sequence[int]) -> tuple[Any, float]:
        began = time.perf_counter()
        logits = np.array(to_host(model.step([Row(handle, Block.chain(tokens))]).logits))
        spent = 1e3 * (time.perf_counter() - began)
        model.commit(handle, ())
        return logits, spent

    def draft() -> float:
        """The root token and all drafts but the last."""
        began = time.perf_counter()
        for token in new[:-1]:
            model.early_exit.draft([Row(handle, Block.chain([token]))])
        return 1e3 * (time.perf_counter() - began)

    for number in range(WARM + count):
        texts = []
        for name in PARTS:
            if name == "draft":
                continue
            for again in (False, True):  # what is timed comes behind its like, as in a text: same widths
                drafting = draft() if name != "plain" else 0.0
                if name == "weights":
                    model.truncate(handle, handle.length)
                logits, spent = step(new[:1] if name == "plain" else new)
                if again and number >= WARM:
                    times[name].append(spent)
                    if name == "shared":
                        times["draft"].append(drafting)
            texts.append(logits)
        if not np.array_equal(*texts[1:]):
            sys.exit("the logits differ: what was taken over is not what the step would have computed")
    model.close(handle)
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", help="as for specport run (default: the embedded one)")
    add("--precision")
    add("--device", default="auto")
    add("--exit", type=int, nargs="+", required=True)
    add("--draft-tokens", type=int, nargs="+", default=[1, 2, 4, 8])
    add("--context", type=int, default=256)
    add("--rounds", type=int, default=15)
    add("--out", type=Path, help="the figures as JSON")
    args = parser.parse_args()
    loader = Loader.on(args.device)
    files = loader.files(args.model, args.precision or loader.profile.precision)
    where = f"{loader.profile.name}, {cpu_name()}"
    print(f"{files.name} {files.precision} on {where}, context {args.context}, exact mode")
    print("".join(f"{name:>9}" for name in ("exit", "drafts", *PARTS, "saved")))
    found = []
    for layer in args.exit:
        model = loader.target_with(files, True, layer).model
        for num in args.draft_tokens:
            t = rounds(model, args.context, num, args.rounds, np.random.default_rng(num))
            saved = f"{1 - t['shared'] / t['weights']:9.1%}"
            print(f"{layer:9}{num:9}" + "".join(f"{t[name]:9.1f}" for name in PARTS) + saved, flush=True)
            found.append({"exit": layer, "draft_tokens": num, **t})
        del model
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
