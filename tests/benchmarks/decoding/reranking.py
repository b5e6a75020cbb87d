"""Whether re-ranking what a parallel draft proposes by the token before raises the number of accepted tokens.

    python tests/benchmarks/decoding/reranking.py --draft FOLDER --text SHARDS --depth 4

A parallel draft chooses each token without knowing the one before. Here its 16 likeliest tokens at each depth
are ranked again, by weight x log(p(token | token before) / p(token)) with the counts of the training text.
Weight and smoothing are chosen on one half of the held-out text, and the other half is reported.

FOLDER is the draft's Hugging Face folder (`specport quantize export DRAFT --to hf`). SHARDS is the folder of
its text in the cache: SPECPORT_CACHE/text/NAME, with the `text` that the draft's `specport.json` has.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.quantize.convert import package_faults
from specport.quantize.text.dialogues import Dialogue, read_shards
from specport.quantize.train import batches, trainer
from specport.quantize.train.draft import HELD_OUT
from specport.quantize.train.parallel.chains import all_chains, extents, pack
from specport.quantize.train.parallel.training import ParallelStudent
from specport.quantize.train.recipe import Recipe

TOP, BATCH = 16, 1024
WEIGHTS, STRENGTHS = (0.3, 0.5, 0.75, 1.0), (3.0, 10.0, 30.0, 100.0)
Bonus = Callable[[int, NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Drafts:
    """What a draft proposes behind each token of a text, for tokens with whole chains.

    ids, logs: [tokens, depth, TOP] likeliest tokens and their log-probabilities.
    answers:   [tokens, depth] the target's tokens. Negative where the text ends before.
    """

    ids: NDArray[np.int64]
    logs: NDArray[np.float32]
    answers: NDArray[np.int64]

    def survival(self, weight: float, bonus: Bonus) -> NDArray[np.float64]:
        """Return [depth] the share of chains whose tokens up to there are the target's."""
        depth = self.answers.shape[1]
        accepted = np.zeros(depth)
        for ids, logs, answers in zip(self.ids, self.logs, self.answers, strict=True):
            for d in range(depth):
                # A chain that goes on has the target's token at the depth before.
                scores = logs[d] + weight * bonus(int(answers[d - 1]), ids[d]) if d and weight else logs[d]
                if ids[d][int(np.argmax(scores))] != answers[d]:
                    break
                accepted[d] += 1
        found: NDArray[np.float64] = accepted / len(self.answers)
        return found

    def part(self, where: slice) -> Drafts:
        return Drafts(self.ids[where], self.logs[where], self.answers[where])


def drafted(student: Any, texts: Sequence[Dialogue], depth: int) -> Drafts:
    """Return the drafts behind every token of the answers of these texts."""
    found = []
    with torch.no_grad(), trainer.autocast("cpu"):
        for (chosen,) in batches.plan(texts, 1.0, BATCH, seed=0):
            batch = batches.batch([texts[i] for i in chosen], "cpu")
            lengths, starts = extents(batch)
            shapes = zip(lengths.tolist(), starts.tolist(), strict=True)
            packed = pack(batch, [all_chains(*shape, depth) for shape in shapes], student.mask_token)
            size = (int(lengths.sum()), depth)
            ids, logs = np.zeros((*size, TOP), np.int64), np.zeros((*size, TOP), np.float32)
            answers = np.full(size, -1, np.int64)
            firsts = torch.from_numpy(np.cumsum(lengths) - lengths)
            tokens = (firsts[packed.texts] + packed.facts["columns"]).numpy()
            depths = packed.prediction_depths.numpy()
            for log_q, where, _ in student.pieces(student.outputs(packed), packed):
                at = tokens[where], depths[where]
                best, columns = log_q.topk(TOP)
                ids[at], logs[at] = columns.numpy(), best.numpy()
                answers[at] = packed.facts["answer"][where].numpy()
            whole = (answers >= 0).all(axis=1)
            found.append((ids[whole], logs[whole], answers[whole]))
    ids, logs, answers = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return Drafts(ids, logs, answers)


def bigrams(texts: Sequence[Dialogue], strength: float) -> Bonus:
    """Return log(p(token | before) / p(token)) from counts, smoothed by `strength` tokens drawn from p."""
    single: Counter[int] = Counter()
    pairs: Counter[tuple[int, int]] = Counter()
    for text in texts:
        tokens = text.tokens.tolist()
        single.update(tokens)
        pairs.update(pairwise(tokens))
    total = sum(single.values()) + 1.0

    def bonus(before: int, candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        chance = np.array([(single[int(token)] + 1.0) / total for token in candidates])
        both = np.array([pairs[(before, int(token))] for token in candidates])
        found: NDArray[np.float64] = np.log((both + strength * chance) / (single[before] + strength) / chance)
        return found

    return bonus


def show(name: str, survival: NDArray[np.float64]) -> None:
    cells = "  ".join(f"{share:.3f}" for share in survival)
    print(f"{name:24} {cells}   tokens a round {1.0 + survival.sum():.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draft", type=Path, required=True, help="Hugging Face folder of a parallel draft")
    parser.add_argument("--text", type=Path, required=True, help="folder of the text's shards")
    parser.add_argument("--depth", type=int, default=4)
    args = parser.parse_args()
    package_faults.mend()  # before transformers is imported
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(args.draft, dtype=torch.float32)
    mask = model.config.pard_token
    student = ParallelStudent(model, range(mask), Recipe(parallel=args.depth), mask).eval()
    shards = sorted(args.text.glob("*.npz"))
    count = max(1, round(HELD_OUT * len(shards)))
    drafts = drafted(student, read_shards(shards[:count]), args.depth)
    half = len(drafts.answers) // 2
    dev, test = drafts.part(slice(0, half)), drafts.part(slice(half, None))
    texts = read_shards(shards[count:])
    tried = {
        (strength, weight): float(dev.survival(weight, bonus).sum())
        for strength in STRENGTHS
        for bonus in [bigrams(texts, strength)]
        for weight in WEIGHTS
    }
    strength, weight = max(tried, key=lambda pair: tried[pair])
    bonus = bigrams(texts, strength)
    print(f"{len(test.answers)} chains; strength {strength:g}, weight {weight:g}; survival by depth:")
    show("as drafted", test.survival(0.0, bonus))
    show("ranked by bigrams", test.survival(weight, bonus))


if __name__ == "__main__":
    main()
