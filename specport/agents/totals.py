"""Counters of all calls of a model in an agent's run."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from specport.core.metrics import Metrics


@dataclass
class Totals:
    """Hold the sums of the metrics of several generations. Times are wall-clock seconds."""

    num_calls: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens that the prefix cache already held
    num_output_tokens: int = 0
    num_steps: int = 0  # target calls after the prompts'
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    ttft_s: float = 0.0
    decode_s: float = 0.0

    def add(self, metrics: Metrics) -> None:
        """Count one generation."""
        self.num_calls += 1
        for name in vars(self).keys() - {"num_calls"}:
            setattr(self, name, getattr(self, name) + getattr(metrics, name))

    @property
    def acceptance_rate(self) -> float:
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def mean_ttft_s(self) -> float:
        """Return the mean time to first token; 0 without a call."""
        return self.ttft_s / self.num_calls if self.num_calls else 0.0

    @property
    def tpot_s(self) -> float:
        """Return the seconds per output token after each call's first; 0 where there is none."""
        later = self.num_output_tokens - self.num_calls
        return self.decode_s / later if later > 0 else 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the sums and derived figures, ready for JSON."""
        derived = ("acceptance_rate", "mean_ttft_s", "tpot_s")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}
