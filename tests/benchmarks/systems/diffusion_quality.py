"""How good the text of a diffusion model is, beside that of the autoregressive model that it was made from.

    python tests/benchmarks/systems/diffusion_quality.py --model DIR --original MODEL --prompts FILE \\
        --per-category 2

Both answer the same prompts greedily. For each: the perplexity of its answers under the original, which is
low for text that the original could have written, and the share of different pairs of neighbouring tokens:
text that repeats itself has few, and a low perplexity too.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import specport
from specport.bench.prompts import read_prompts
from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.runtime.loading import Loader
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer


def losses(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return the negative log-likelihood of each token of an answer."""
    handle = model.open()
    tokens = [*prompt, *answer]
    logits = to_host(model.step([Row(handle, Block.chain(tokens[:-1]))]).logits)[len(prompt) - 1 :]
    model.close(handle)
    wide = logits.astype(np.float64)
    best = wide.max(axis=1, keepdims=True)
    logs = wide - best - np.log(np.exp(wide - best).sum(axis=1, keepdims=True))
    return [-float(logs[i, token]) for i, token in enumerate(answer)]


def once(tokens: Sequence[int]) -> float:
    """Return the number of different pairs of neighbouring tokens by that of all."""
    pairs = [*pairwise(tokens)]
    return len({*pairs}) / max(1, len(pairs))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--original", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--per-category", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    prompts = [prompt.text for prompt in read_prompts(args.prompts, args.per_category)]
    loader = Loader.on("torch-cpu")
    files, loaded = loader.target(args.original, None, exact=False)
    tokenizer = load_tokenizer(files.folder)
    for name in (args.original, args.model):
        pipeline = specport.load(name, draft="none", device="torch-cpu")
        texts = [pipeline.generate(prompt, max_new_tokens=args.max_new_tokens) for prompt in prompts]
        found = [
            losses(loaded.model, encode(tokenizer, prompt), text.token_ids)
            for prompt, text in zip(prompts, texts, strict=True)
            if len(text.token_ids) > 1
        ]
        result = {
            "model": name,
            "prompts": len(found),
            "perplexity": round(float(np.exp(np.mean([loss for losses in found for loss in losses]))), 2),
            "median_of_texts": round(statistics.median(float(np.exp(np.mean(each))) for each in found), 2),
            "pairs_once": round(statistics.fmean(once(text.token_ids) for text in texts), 3),
            "tokens": sum(len(text.token_ids) for text in texts),
            "texts": [text.text for text in texts[:4]],
        }
        print(json.dumps(result, indent=1))
        pipeline.close()


if __name__ == "__main__":
    main()
