"""SimSD on real diffusion models: steps and time a token, what is accepted, leaks, and the text's quality.

    python tests/benchmarks/systems/simsd.py --model DIR --draft DIR --judge MODEL --prompts FILE.jsonl \\
        [--json OUT]

All ways write the same number of tokens for each prompt, end tokens ignored, in turns and with one engine:
the baseline "cached" has the same cache, which reads a complete block together with the next step's rows.
Times are wall-clock seconds behind the first round, which reads the prompt. --judge is an autoregressive
model with the same tokens; the perplexity of the texts under it is up to their end token. The gap is that
between the logits of slots and native denoising passes, on blocks that the target denoises itself.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from specport.core.arrays import to_host
from specport.core.ports import Block, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import as_float
from specport.core.sampling.sampler import Sampler
from specport.diffusion.context import Context
from specport.diffusion.decoding import Decoder, Native, SimSD
from specport.diffusion.denoise import denoise
from specport.diffusion.gap import gap, native
from specport.diffusion.layout import verifying
from specport.diffusion.options import LAYOUTS, DiffusionOptions
from specport.diffusion.ports import DiffusionModel
from specport.models.kinds.diffusion import find_facts
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.text.tokenizer import Tokenizer, load_tokenizer

Start = Callable[[Sequence[int]], Decoder]


@dataclass
class Measured:
    """What one way did over all prompts, behind the first round of each."""

    texts: list[list[int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # a token, one entry for each prompt
    tokens: int = 0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    discarded: int = 0
    verify_s: float = 0.0
    draft_s: float = 0.0

    def add(self, decoder: Decoder, num_tokens: int) -> None:
        text = [*decoder.round(num_tokens).tokens]
        first, began = len(text), time.perf_counter()
        while len(text) < num_tokens:
            written = decoder.round(1 << 20)
            text += written.tokens
            self.steps += written.steps
            self.drafted += len(written.drafted)
            self.accepted += written.accepted if written.drafted else 0
            self.discarded += written.discarded
            self.verify_s += written.verify_s
            self.draft_s += written.draft_s
        self.seconds.append((time.perf_counter() - began) / (len(text) - first))
        self.tokens += len(text) - first
        self.texts.append(text[:num_tokens])
        decoder.close()

    def row(self) -> dict[str, float]:
        return {
            "ms_per_token": 1e3 * statistics.median(self.seconds),
            "ms_per_token_low": 1e3 * min(self.seconds),
            "ms_per_token_high": 1e3 * max(self.seconds),
            "steps_per_token": self.steps / self.tokens,
            "target_ms_per_token": 1e3 * self.verify_s / self.tokens,
            "draft_ms_per_token": 1e3 * self.draft_s / self.tokens,
            "acceptance_rate": self.accepted / self.drafted if self.drafted else math.nan,
            "depend_on_the_draft": self.discarded / self.tokens,
        }


def ways(target: DiffusionModel, draft: DiffusionModel | None, threshold: float) -> dict[str, Start]:
    """Return the ways to decode, by name; each makes a decoder for a prompt."""

    def plain(cached: bool = True, **options: Any) -> Start:
        return lambda prompt: Native(target, prompt, greedy(), DiffusionOptions(**options), cached)

    def simsd(**options: Any) -> Start:
        return lambda prompt: SimSD(target, draft, prompt, greedy(), DiffusionOptions(**options))

    found = {
        "vanilla, no cache": plain(cached=False),
        "cached": plain(),
        "cached, by position": plain(order="position"),
        f"cached, above {threshold:g}": plain(threshold=threshold),
    }
    if draft is not None:
        found |= {f"SimSD {kind}, by confidence": simsd(layout=kind, order="confidence") for kind in LAYOUTS}
        found |= {f"SimSD {kind}, by position": simsd(layout=kind, order="position") for kind in LAYOUTS[1:]}
        found["SimSD grouped, by position, 2 draft steps"] = simsd(
            layout="grouped", order="position", steps=2
        )
    return found


def greedy() -> Sampler:
    return Sampler(SamplingParams())


def perplexity(judge: Model, prompt: Sequence[int], text: Sequence[int]) -> tuple[float, int]:
    """Return the sum of the text's negative log-likelihoods under the judge, and its number of tokens."""
    handle = judge.open()
    output = judge.step([Row(handle, Block.chain([*prompt, *text]))])
    logits = to_host(as_float(output.logits))[len(prompt) - 1 : -1].astype(np.float64)
    judge.close(handle)
    top = logits.max(axis=1)
    log_sums = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((log_sums - logits[np.arange(len(text)), list(text)]).sum()), len(text)


def until_end(text: Sequence[int], ends: frozenset[int]) -> list[int]:
    """Return a text up to its first end token, which is part of it."""
    at = next((i for i, token in enumerate(text) if token in ends), len(text) - 1)
    return [*text[: at + 1]]


def distinct_pairs(texts: Sequence[Sequence[int]]) -> float:
    """Return the share of different ones among the pairs of neighbours: text that repeats itself has few."""
    pairs = [pair for text in texts for pair in {*pairwise(text)}]
    return len(pairs) / max(1, sum(max(0, len(text) - 1) for text in texts))


def agreement(text: Sequence[int], other: Sequence[int]) -> float:
    """Return the share of a text's tokens before the first one that differs."""
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=True)) if a != b), len(text)) / len(
        text
    )


def gaps(
    target: DiffusionModel, prompts: Sequence[Sequence[int]], blocks: int
) -> dict[str, dict[str, float]]:
    """Return the gap and the effect of a flipped token, by layout, over the first blocks of all prompts."""
    length = target.facts.block_length
    variation: dict[str, list[float]] = {kind: [] for kind in LAYOUTS}
    same: dict[str, list[bool]] = {kind: [] for kind in LAYOUTS}
    leak: dict[str, list[float]] = {kind: [] for kind in LAYOUTS}
    for prompt in prompts:
        context = Context(target)
        known = context.start(prompt, True, length)
        for _ in range(blocks):
            block = denoise(context, length, DiffusionOptions(), greedy(), known)
            passes = native(context, block.tokens, block.times, len(known))
            for kind in LAYOUTS:
                found = gap(context, kind, block.tokens, block.times, passes, len(known))
                variation[kind] += found.variation
                same[kind] += found.same
                leak[kind].append(flipped(context, kind, block.tokens, block.times, len(known)))
            context.extend(block.tokens)
            known = []
        context.close()
    return {
        kind: {
            "variation_mean": statistics.mean(variation[kind]),
            "variation_highest": max(variation[kind]),
            "same_argmax": statistics.mean(same[kind]),
            "flip_moves_logits_by": max(leak[kind]),
            "tokens": len(same[kind]),
        }
        for kind in LAYOUTS
    }


def flipped(context: Context, kind: Any, tokens: list[int], times: list[int], known: int) -> float:
    """Return how far the logits of the first revealed token's slot move when that token is another one."""
    mask_id = context.facts.mask_id
    place = min(range(known, len(tokens)), key=lambda i: times[i])
    if times[place] == max(times):
        return 0.0
    rows = []
    for token in (tokens[place], (tokens[place] + 1) % mask_id):
        other = [token if i == place else t for i, t in enumerate(tokens)]
        layout = verifying(kind, other, times, mask_id, known)
        rows.append(context.step(layout.block)[layout.slots[place]].copy())
    return float(np.abs(rows[0] - rows[1]).max())


def prompts_of(path: Path, count: int, tokenizer: Tokenizer) -> list[list[int]]:
    """Return the ids of `count` prompts, spread over the file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    chosen = [json.loads(lines[i * len(lines) // count]) for i in range(count)]
    return [tokenizer.chat([{"role": "user", "content": each["turns"][0]}]) for each in chosen]


def diffusion(loader: Loader, name: str, precision: str) -> tuple[DiffusionModel, Tokenizer]:
    files, loaded = replace(loader, diffusion=True).target(name, precision, exact=False)
    facts = find_facts(files.folder)
    assert facts is not None, f"{name} is no diffusion model"
    return DiffusionModel(loaded.model, facts), load_tokenizer(files.folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", required=True, help="diffusion model")
    parser.add_argument("--draft", help="smaller one; without it only the baselines are measured")
    parser.add_argument("--judge", help="autoregressive model with the same tokens")
    parser.add_argument("--prompts", type=Path, required=True, help="lines of JSON with `turns`")
    parser.add_argument("--count", type=int, default=6, help="prompts (default: 6)")
    parser.add_argument("--tokens", type=int, default=64, help="of each text (default: 64)")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--device", default="torch-cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    loader = Loader.on(options.device, options.threads)
    target, tokenizer = diffusion(loader, options.model, options.precision)
    draft = diffusion(loader, options.draft, options.precision)[0] if options.draft else None
    prompts = prompts_of(options.prompts, options.count, tokenizer)
    chosen = ways(target, draft, options.threshold)
    measured = {name: Measured() for name in chosen}
    for name in ("cached", [*chosen][-1]):  # what the runtime does at first
        Measured().add(chosen[name](prompts[0]), 8)
    for prompt in prompts:
        for name, start in chosen.items():
            measured[name].add(start(prompt), options.tokens)
    rows = {name: each.row() for name, each in measured.items()}
    native_texts = measured["cached"].texts
    for name, each in measured.items():
        rows[name]["agreement"] = statistics.mean(map(agreement, each.texts, native_texts))
        rows[name]["speed_up"] = statistics.median(
            base / own for base, own in zip(measured["cached"].seconds, each.seconds, strict=True)
        )
    if options.judge:
        _, judge = loader.target(options.judge, options.precision, exact=False)
        for name, each in measured.items():
            ended = [until_end(text, tokenizer.eos_ids) for text in each.texts]
            sums = [perplexity(judge.model, p, t) for p, t in zip(prompts, ended, strict=True)]
            rows[name]["distinct_pairs"] = distinct_pairs(ended)
            rows[name]["perplexity"] = math.exp(sum(s for s, _ in sums) / sum(n for _, n in sums))
    report = {
        "machine": cpu_name(),
        "options": {k: str(v) for k, v in vars(options).items()},
        "ways": rows,
        "gaps": gaps(target, prompts, 4),
        "texts": {name: [tokenizer.decode(text) for text in each.texts] for name, each in measured.items()},
    }
    print(f"{cpu_name()}, {options.device}, {options.precision}, {options.count} x {options.tokens} tokens")
    for name, row in rows.items():
        print(f"{name:44}" + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    for kind, row in report["gaps"].items():
        print(f"{kind:44}" + "  ".join(f"{key} {value:.3g}" for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
