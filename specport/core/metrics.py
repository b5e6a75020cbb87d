"""Counters of a generation and of its speculation. Names are vLLM's (`spec_decode/metrics.py`).

Knows counts and seconds only. Formulas, with B = 1 bonus or correction token a verify step:

    acceptance rate              = num_accepted_tokens / num_draft_tokens
    mean acceptance length       = (num_accepted_tokens + num_drafts * B) / num_drafts
    acceptance rate at depth d   = accepted_per_depth[d] / drafted_per_depth[d]
    rejection rate               = num_rejections / (num_accepted_tokens + num_rejections)
    TTFT = first token - start;  TPOT = (last token - first token) / (num_output_tokens - 1)

`num_drafts` counts verify steps with at least one draft token; `num_steps` counts all verify steps. A
rejection is a step that accepted no child of a node which had some. With tiered verification a step that
accepts a whole draft has no bonus token, and a step need not call the target: `tiers` has its calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from specport.core.ports import DraftingCounts, Outcome, TierCounts


@dataclass(frozen=True)
class StepCounts:
    """Hold the counts of one verify step of a sequence, by drafter; empty where nothing was drafted."""

    drafted: Mapping[str, int]
    accepted: Mapping[str, int]


@dataclass
class Metrics:
    """Hold the counters of one sequence. Times are wall-clock seconds; rows of a batch share step times."""

    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens that a chat's cache or the prefix cache already held
    num_output_tokens: int = 0
    num_steps: int = 0  # verify steps after the prompt's
    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_rejections: int = 0
    drafted_per_depth: list[int] = field(default_factory=list)
    accepted_per_depth: list[int] = field(default_factory=list)
    drafted_by: dict[str, int] = field(default_factory=dict)  # drafter -> tokens
    accepted_by: dict[str, int] = field(default_factory=dict)
    num_preemptions: int = 0  # times that its cache was freed and computed again
    queue_s: float = 0.0  # until it was first admitted
    ttft_s: float = 0.0  # includes the time in the queue
    decode_s: float = 0.0  # first token to last token
    draft_s: float = 0.0  # in drafters
    verify_s: float = 0.0  # in the target's inference call, after the prompt
    drafting: DraftingCounts = field(default_factory=DraftingCounts)  # by drafter
    lossy: str = ""  # the method, where the text is not the unmodified model's
    denoised: bool = False  # by a diffusion model: no step is one of plain decoding
    tiers: TierCounts | None = None  # of tiered verification, which is lossy; None = the target verifies all

    def record(self, outcome: Outcome, tiers: TierCounts | None = None) -> StepCounts:
        """Count one verified tree, and what its tiers did; return its counts."""
        tree = outcome.tree
        self.num_steps += 1
        if tiers is not None:
            self.tiers = self.tiers or TierCounts()
            self.tiers.add(tiers)
        if not len(tree):
            return StepCounts({}, {})
        self.num_drafts += 1
        self.num_draft_tokens += len(tree)
        self.num_accepted_tokens += len(outcome.path)
        self.num_rejections += (outcome.path[-1] if outcome.path else -1) in tree.parents
        if not self.drafting.chosen and tree.sources:  # a policy that does not count
            self.drafting.chosen = tree.sources[0]
        self.drafting.verified(len(tree), len(outcome.path), outcome.verify_s)
        depths = tree.depths()
        missing = max(depths) - len(self.drafted_per_depth)
        self.drafted_per_depth.extend([0] * missing)
        self.accepted_per_depth.extend([0] * missing)
        for depth in set(depths):
            # Siblings compete for one position, which counts as drafted once.
            self.drafted_per_depth[depth - 1] += 1
        for node in outcome.path:
            self.accepted_per_depth[depths[node] - 1] += 1
        drafted = Counter(tree.sources)
        accepted = Counter(tree.sources[node] for node in outcome.path if tree.sources)
        for total, counts in ((self.drafted_by, drafted), (self.accepted_by, accepted)):
            for source, count in counts.items():
                total[source] = total.get(source, 0) + count
        return StepCounts(drafted, accepted)

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_acceptance_length(self) -> float:
        """Return the tokens per drafted verify step, bonus token included; 1.0 when nothing was drafted."""
        without = self.tiers.open_rounds if self.tiers else 0
        return 1.0 + (self.num_accepted_tokens - without) / self.num_drafts if self.num_drafts else 1.0

    @property
    def second_tokens(self) -> bool:
        """Return whether drafts are the second tokens of pairs (PIPO), which nothing verifies."""
        return bool(self.lossy) and self.tiers is None and not self.drafting.by

    @property
    def rejection_rate(self) -> float:
        """Return the share of judged positions of drafts at which the drafted tokens were rejected."""
        judged = self.num_accepted_tokens + self.num_rejections
        return self.num_rejections / judged if judged else 0.0

    @property
    def acceptance_rate_per_position(self) -> list[float]:
        return [
            accepted / drafted if drafted else 0.0
            for accepted, drafted in zip(self.accepted_per_depth, self.drafted_per_depth, strict=True)
        ]

    @property
    def steps_per_length(self) -> list[int]:
        """Return the number of verify steps with a draft of each length; a tree's is its depth.

        Index 0 is 0: steps without a draft are not counted.
        """
        return [0, *_exactly(self.drafted_per_depth)]

    @property
    def steps_per_accepted(self) -> list[int]:
        """Return the number of verify steps with a draft that accepted exactly 0, 1, 2, ... tokens of it."""
        return _exactly([self.num_drafts, *self.accepted_per_depth])

    @property
    def tpot_s(self) -> float:
        """Return the seconds per output token after the first; 0 for fewer than two tokens."""
        return self.decode_s / (self.num_output_tokens - 1) if self.num_output_tokens > 1 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Return the output tokens per second of the whole time, prefill included."""
        total = self.ttft_s + self.decode_s
        return self.num_output_tokens / total if total else 0.0

    def as_dict(self) -> dict[str, object]:
        """Return all counters and derived figures, ready for JSON."""
        derived = (
            "acceptance_rate",
            "rejection_rate",
            "mean_acceptance_length",
            "acceptance_rate_per_position",
            "tpot_s",
            "tokens_per_second",
        )
        tiers = None if self.tiers is None else asdict(self.tiers)
        own = {**vars(self), "drafting": asdict(self.drafting), "tiers": tiers}
        return {**own, **{name: getattr(self, name) for name in derived}}


def _exactly(at_least: list[int]) -> list[int]:
    """Return the counts of "exactly i" for counts of "i or more"."""
    return [count - more for count, more in pairwise([*at_least, 0])]
