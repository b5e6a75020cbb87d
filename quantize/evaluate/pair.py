"""Evaluation of a draft with its target: what a bundle says of its speed and acceptance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from specport.quantize.provenance import now

from specport.calibration import heads
from specport.calibration.methods import Own, Run, own, parse
from specport.core.engine import Engine
from specport.core.planning.step_costs import StepCosts
from specport.drafters.build import build_policy
from specport.drafters.context import DraftModel
from specport.drafters.spec import parse as parse_draft
from specport.errors import InvalidInput
from specport.models.kinds.bigrams import Bigrams
from specport.models.kinds.parallel import Parallel
from specport.progress import Progress
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.devices.registry import Loaded
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer

DEPTH, NUM_TOKENS = 4, 64


@dataclass(frozen=True)
class DraftPair:
    """A target and its draft.

    name:  the draft's.
    costs, draft_costs: of the target's steps and of the draft's.
    parallel: how the draft drafts several tokens in one pass; None = token by token.
    bigrams:  by which such drafts are ranked; None = by nothing but the model.
    on_states: whether the draft is a head on the target's hidden states: `draft` is the target then, for its
           `Model.hidden_head`, or another `Loaded` with its `Model.mtp`.
    """

    target: Loaded
    draft: Loaded
    tokenizer: Tokenizer
    name: str
    costs: StepCosts
    draft_costs: StepCosts
    parallel: Parallel | None = None
    on_states: bool = False
    bigrams: Bigrams | None = None

    @property
    def depth(self) -> int:
        """Return the tokens of a draft of fixed length: as many as one pass gives, or DEPTH."""
        return DEPTH if self.parallel is None else self.parallel.depth


@dataclass(frozen=True)
class Acceptance:
    """How far a target goes along with chains of draft tokens.

    survival: share of the chains of at least that depth whose tokens of depth 1, 2, ... were all accepted.
    rounds:   number of chains. prompts: number of prompts.
    """

    survival: tuple[float, ...]
    rounds: int
    prompts: int


def acceptance(pair: DraftPair, prompts: Sequence[str], depth: int, progress: Progress) -> Acceptance:
    """Return the acceptance of chains of `depth` tokens on greedy answers of at most NUM_TOKENS tokens.

    Prompts that do not fit both models' contexts are left out. Raises InvalidInput where none fits.
    """
    room = min(pair.target.model.max_context, pair.draft.model.max_context) - NUM_TOKENS - depth
    encoded = [ids for prompt in prompts if len(ids := encode(pair.tokenizer, prompt)) <= room]
    if not encoded:
        raise InvalidInput("no prompt fits the models' contexts", "give shorter ones with --prompts")
    method = _method(pair, f"draft@fixed={depth}", Engine(pair.target.model))
    runs = []
    for number, ids in enumerate(encoded):
        progress("measuring acceptance", number / len(encoded))
        runs.append(method.run(ids, NUM_TOKENS))
    drafted, accepted = _counts(runs, depth)
    # Chains at the end of an answer are shorter, so that the shares rest on different chains.
    shares = (a / max(d, 1) for a, d in zip(accepted, drafted, strict=True))
    rounds = sum(run.metrics["num_drafts"] for run in runs)
    return Acceptance(tuple(accumulate(shares, min)), rounds, len(encoded))


def evaluate(pair: DraftPair, prompts: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Measure acceptance by depth, milliseconds per token and the speed-up over plain decoding.

    Each prompt is run with every method in turn, so that drift of the machine meets all of them. Prompts that
    do not fit the target's context are left out. Raises InvalidInput where none fits.
    """
    engine = Engine(pair.target.model)
    names = ("plain", f"draft@fixed={pair.depth}", "draft")
    methods = {name: _method(pair, name, engine) for name in names}
    encoded = [encode(pair.tokenizer, prompt) for prompt in prompts]
    encoded = [ids for ids in encoded if len(ids) + NUM_TOKENS <= pair.target.model.max_context]
    if not encoded:
        raise InvalidInput("no held-out prompt fits the target's context", "give shorter ones with --prompts")
    for method in methods.values():
        method.run(encoded[0], 8)  # warm-up
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number, ids in enumerate(encoded):
        for name, method in methods.items():
            progress("measuring the draft", number / len(encoded))
            runs[name].append(method.run(ids, NUM_TOKENS))
    plain, fixed, planned = (runs[name] for name in names)
    drafted, accepted = _counts(fixed, pair.depth)
    steps = sum(run.metrics["num_drafts"] for run in fixed)
    speed_ups = sorted(_tpot(a) / _tpot(b) for a, b in zip(plain, planned, strict=True) if len(a.tokens) > 1)
    same = [a.tokens == b.tokens == c.tokens for a, b, c in zip(plain, fixed, planned, strict=True)]
    target_ms = 1e3 * statistics.median(_tpot(run) for run in plain if len(run.tokens) > 1)
    recurrent = pair.on_states and pair.draft.model.hidden_head is not None
    step_seconds = heads.head_step_seconds if recurrent else heads.step_seconds
    draft_ms = 1e3 * step_seconds(pair.draft.model)
    return {
        "processor": cpu_name(),
        "date": now(),
        "prompts": len(encoded),
        "max_new_tokens": NUM_TOKENS,
        "draft_ms": round(draft_ms, 3),
        "target_ms": round(target_ms, 3),
        "cost": round(draft_ms / target_ms, 4),
        "depth": pair.depth,
        "mean_acceptance_length": round(1 + sum(accepted) / max(steps, 1), 3),
        "acceptance_by_depth": [round(a / max(d, 1), 3) for a, d in zip(accepted, drafted, strict=True)],
        "speed_up": round(statistics.geometric_mean(speed_ups), 3),
        "speed_up_range": [round(speed_ups[0], 3), round(speed_ups[-1], 3)],
        "same_text": sum(same),
        **({} if pair.on_states else {"ms_by_width": _by_width(pair, [len(ids) for ids in encoded])}),
    }


def _by_width(pair: DraftPair, contexts: Sequence[int]) -> dict[str, list[float]]:
    """Return the milliseconds of a step by its new tokens, behind a prompt of the usual length.

    Lists: the widths, the draft's milliseconds, the target's.
    """
    context = int(statistics.median(contexts)) + NUM_TOKENS // 2
    widths = range(1, 2 * pair.depth + 1)
    costs = {"draft": pair.draft_costs, "target": pair.costs}
    return {"width": [*widths]} | {
        name: [round(1e3 * cost.step(width, context), 3) for width in widths] for name, cost in costs.items()
    }


def _method(pair: DraftPair, name: str, engine: Engine) -> Own:
    """Return a bench method; all methods of a pair share one engine's lock."""
    spec = parse(name)
    draft = DraftModel(
        pair.draft.model, pair.tokenizer, pair.name, pair.draft_costs.fixed(), pair.draft.head_tokens,
        parallel=pair.parallel, bigrams=pair.bigrams,
        head=pair.draft.model.hidden_head if pair.on_states else None,
        mtp=pair.on_states and pair.draft is not pair.target,
    )  # fmt: skip
    policy = build_policy(
        parse_draft(spec.draft), pair.target.model, pair.tokenizer, {"draft": draft},
        drafting=spec.drafting, costs=pair.costs,
    )  # fmt: skip
    return own(spec, policy, engine, pair.tokenizer.eos_ids, {})


def _counts(runs: Sequence[Run], depth: int) -> tuple[list[int], list[int]]:
    """Return the numbers of drafted and of accepted tokens at depth 1, 2, ..."""
    drafted = [sum(_at(run, "drafted_per_depth", d) for run in runs) for d in range(depth)]
    accepted = [sum(_at(run, "accepted_per_depth", d) for run in runs) for d in range(depth)]
    return drafted, accepted


def _at(run: Run, name: str, depth: int) -> int:
    """Return a count by depth; 0 where a run never got that deep."""
    counts = run.metrics[name]
    return int(counts[depth]) if depth < len(counts) else 0


def _tpot(run: Run) -> float:
    """Return the seconds per output token after the first."""
    return (run.total_s - run.ttft_s) / max(len(run.tokens) - 1, 1)
