"""What the engine's loop costs a round beside the model's step, at a vocabulary of 151,936.

    python tests/benchmarks/decoding/loop_overhead.py --rounds 400 [--json OUT.json]

The model returns prepared logits in no time. So the time between the end of one step and the beginning of the
next is the loop's: choosing or verifying tokens, committing them, and asking the drafter, which proposes 4
tokens of which 2 are right. Reported are the quartiles in milliseconds a round, for 1 sequence and for 8.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Capabilities, DraftRequest, Needs, Outcome, Prefilled, Row, StepOutput
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree

VOCAB = 151_936  # Qwen2.5's logits
CYCLE = 64  # the text counts from 0 to 63, again and again
NUM_DRAFT_TOKENS, NUM_RIGHT = 4, 2
WARM = 20  # first rounds that are not counted
GREEDY, SAMPLED = SamplingParams(), SamplingParams(temperature=0.8, top_p=0.95, seed=1)


@dataclass
class FakeSequence:
    """A sequence of the fake model's cache: its length, and nothing else."""

    length: int = 0


@dataclass
class FakeModel:
    """A model of the `Model` port whose logits are ready. Row t of the table makes t + 1 the likeliest token.

    begins, ends: clock at each step's beginning and end.
    """

    capabilities: Capabilities = field(
        default_factory=lambda: Capabilities(visibility="tree", batch=True, exact=True)
    )
    vocab_size: int = VOCAB
    max_context: int = 1 << 20
    early_exit: None = None
    chain: None = None
    head_rows: None = None
    hidden_head: None = None
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        rows = CYCLE + NUM_DRAFT_TOKENS + 1
        self._table: NDArray[np.float32] = rng.standard_normal((rows, VOCAB), dtype=np.float32)
        self._table[np.arange(rows), (np.arange(rows) + 1) % CYCLE] = 40.0
        self._batch = np.empty((0, VOCAB), dtype=np.float32)

    def room(self, handle: FakeSequence | None = None) -> int:
        return self.max_context

    def open(self, capacity: int = 0, conditioning: object = None) -> FakeSequence:
        return FakeSequence()

    def fork(self, handle: FakeSequence, length: int) -> FakeSequence:
        return FakeSequence(length)

    def close(self, handle: FakeSequence) -> None:
        pass

    def truncate(self, handle: FakeSequence, length: int) -> None:
        handle.length = length

    def commit(self, handle: FakeSequence, nodes: Sequence[int]) -> None:
        handle.length += len(nodes)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        """Return logits of t + 1, t + 2, ... for a row that begins with t, whatever it drafts."""
        self.begins.append(time.perf_counter())
        offsets, parts = [0], []
        for row in rows:
            count = {"all": len(row.block), "last": 1, "none": 0}[row.logits]
            start = row.block.tokens[0] % CYCLE
            parts.append(self._table[start : start + count])
            offsets.append(offsets[-1] + count)
        if len(rows) == 1:
            logits = parts[0]
        else:
            if len(self._batch) < offsets[-1]:
                self._batch = np.empty((offsets[-1], VOCAB), dtype=np.float32)
            logits = np.concatenate(parts, out=self._batch[: offsets[-1]])
        output = StepOutput(logits, tuple(offsets), 1e-9)
        self.ends.append(time.perf_counter())
        return output


class FakeDrafter:
    """Proposes a chain of 4 tokens: 2 as the model goes on, then 2 that it does not say."""

    name = "fake"
    needs = Needs()

    def prefilled(self, events: Sequence[Prefilled]) -> None:
        pass

    def propose(self, requests: Sequence[DraftRequest]) -> list[TokenTree]:
        return [TokenTree.chain(self._tokens(request.context[-1])) for request in requests]

    @staticmethod
    def _tokens(last: int) -> list[int]:
        right = [(last + i) % CYCLE for i in range(1, NUM_RIGHT + 1)]
        return [*right, *range(1000, 1000 + NUM_DRAFT_TOKENS - NUM_RIGHT)]

    def observe(self, outcomes: Sequence[Outcome]) -> None:
        pass

    def forget(self, key: int) -> None:
        pass


def run(model: FakeModel, *, drafts: bool, params: SamplingParams, sequences: int, rounds: int) -> None:
    """Write texts until the model has stepped about `rounds` times. All that knows the engine is here."""
    policy = FirstProposal([FakeDrafter()], lambda: Fixed(NUM_DRAFT_TOKENS)) if drafts else None
    tokens = rounds * (NUM_RIGHT + 1 if drafts else 1)
    texts = [Generation([0, 1], params, tokens) for _ in range(sequences)]
    for _ in Engine(model, policy).run(texts):
        pass


def overheads(model: FakeModel) -> list[float]:
    """Return the milliseconds from the end of each step to the beginning of the next, behind WARM rounds."""
    between = zip(model.ends[WARM:-1], model.begins[WARM + 1 :], strict=True)
    return [1e3 * (begin - end) for end, begin in between]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", type=Path, metavar="OUT.json", help="write the figures as JSON too")
    args = parser.parse_args()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"vocabulary {VOCAB:,}, {args.rounds} rounds, load {load:.1f} on {os.cpu_count()} cores")
    print(f"{'sequences':>9} {'text':8} {'drafter':8} {'lowest':>8} {'25 %':>8} {'median':>8} {'75 %':>8} ms")
    found = []
    for sequences in (1, 8):
        for name, params in (("greedy", GREEDY), ("sampled", SAMPLED)):
            for drafts in (False, True):
                model = FakeModel()
                run(model, drafts=drafts, params=params, sequences=sequences, rounds=args.rounds)
                times = overheads(model)
                figures = [min(times), *statistics.quantiles(times, n=4)]
                cells = " ".join(f"{value:8.3f}" for value in figures)
                print(f"{sequences:9} {name:8} {'4 tokens' if drafts else 'none':8} {cells}", flush=True)
                keys = ("lowest", "q1", "median", "q3")
                row = dict(zip(keys, figures, strict=True))
                found.append({"sequences": sequences, "text": name, "drafts": drafts, **row})
    if args.json:
        args.json.write_text(json.dumps({"vocabulary": VOCAB, "load": load, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
