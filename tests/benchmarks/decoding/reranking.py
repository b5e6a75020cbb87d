"""What ranking a parallel draft's tokens by the token before brings, and the constants for it.

    python tests/benchmarks/decoding/reranking.py --draft FOLDER

Strength and weight of the counted pairs (`quantize/train/parallel/bigrams.py`) are chosen on one half of the
held-out text, and the other half is reported.

FOLDER is the draft's Hugging Face folder (`specport quantize export DRAFT --to hf`). The text is the one that
it was trained on, which must be in the cache.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.quantize.adapt import old_text
from specport.quantize.convert import package_faults
from specport.quantize.text.dialogues import Dialogue, read_shards
from specport.quantize.train import trainer
from specport.quantize.train.draft import HELD_OUT
from specport.quantize.train.parallel import bigrams
from specport.quantize.train.parallel.examination import predictions
from specport.quantize.train.parallel.training import ParallelStudent
from specport.quantize.train.recipe import Recipe

from specport.models import bundle

BATCH = 1024
WEIGHTS, STRENGTHS = (0.3, 0.5, 0.75, 1.0), (3.0, 10.0, 30.0, 100.0)


def accepted(
    student: Any, texts: list[Dialogue], depth: int, ways: list[bigrams.Bigrams | None]
) -> NDArray[np.bool_]:
    """Return [ways, chains, depth] whether all tokens up to this one are accepted, of whole chains."""
    shape = sum(len(text.tokens) for text in texts), depth
    hits, there = np.zeros((len(ways), *shape), np.bool_), np.zeros(shape, np.bool_)
    with torch.no_grad(), trainer.autocast("cpu"):
        for found in predictions(student, texts, depth, BATCH, "cpu"):
            there[found.tokens, found.depths] = True
            answer = found.column[torch.from_numpy(found.answers)]
            for number, pairs in enumerate(ways):
                mine = found._replace(log_q=found.log_q.clone())
                if pairs is not None:
                    mine.rank(pairs)
                hits[number, found.tokens, found.depths] = (mine.log_q.argmax(dim=-1) == answer).numpy()
    chains: NDArray[np.bool_] = np.logical_and.accumulate(hits[:, there.all(axis=1)], axis=2)
    return chains


def show(name: str, survival: NDArray[np.float64]) -> None:
    cells = "  ".join(f"{share:.3f}" for share in survival)
    print(f"{name:28} {cells}   tokens a round {1.0 + survival.sum():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", type=Path, required=True, help="Hugging Face folder of a parallel draft")
    args = parser.parse_args()
    made = bundle.read(args.draft)
    if made.parallel is None:
        parser.error(f"{args.draft} is no parallel draft")
    shards = old_text.stored(made)
    if len(shards) < 2:
        parser.error("the text that the draft was trained on is not in the cache")
    package_faults.mend()  # before transformers is imported
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.draft, dtype=torch.float32)
    mask, depth = made.parallel.mask_token_id, made.parallel.depth
    head = made.head_tokens or range(mask)
    student = ParallelStudent(model, head, Recipe(parallel=depth), mask).eval()
    count = max(1, round(HELD_OUT * len(shards)))
    texts = read_shards(shards[count:])
    tried = [*product(STRENGTHS, WEIGHTS)]
    ways = [None, *(bigrams.count(texts, *constants) for constants in tried)]
    chains = accepted(student, read_shards(shards[:count]), depth, ways)
    half = chains.shape[1] // 2
    on_first, on_second = chains[:, :half].mean(axis=1), chains[:, half:].mean(axis=1)
    best = 1 + int(on_first[1:].sum(axis=1).argmax())
    strength, weight = tried[best - 1]
    print(f"{chains.shape[1] - half} chains; strength {strength:g}, weight {weight:g}; survival by depth:")
    show("as drafted", on_second[0])
    show("ranked by bigrams", on_second[best])
    default = 1 + tried.index((bigrams.STRENGTH, bigrams.WEIGHT))
    show("with the default constants", on_second[default])


if __name__ == "__main__":
    main()
