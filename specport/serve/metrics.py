"""Counters and histograms for Prometheus, under vLLM's names behind a prefix of the user's choice.

Names and meaning as in vLLM (`vllm/v1/metrics/loggers.py`, `vllm/v1/spec_decode/metrics.py`), so that with
the prefix "vllm" dashboards made for it show this server. vLLM has none of the histograms of acceptance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from specport.core.metrics import Metrics
from specport.core.sequence import Commit, Generation
from specport.errors import InvalidInput

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "specport"
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
          40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
            5.0, 7.5, 10.0, 20.0, 40.0, 80.0)  # fmt: skip
_LONG = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
         120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
_TOKENS = tuple(m * 10**e for e in range(6) for m in (1, 2, 5))
_ROUND = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES = (1, 2, 5, 10, 20)
_RATES = tuple(i / 10 for i in range(11))
_LENGTHS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0, 32.0)
_DRAFTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
REASONS = ("stop", "length", "abort")
_Kind = TypeVar("_Kind", Counter, Gauge, Histogram)


def check_prefix(prefix: str) -> None:
    """Raise InvalidInput where a prefix is no name."""
    if not prefix.isidentifier():
        raise InvalidInput(f"the prefix of metrics {prefix!r} is no name", "give one like vllm")


class ServerMetrics:
    """Hold the metrics of one server. Thread-safe.

    engine: tells the engines behind one address apart.
    """

    def __init__(self, model_name: str, prefix: str = PREFIX, engine: str = "0") -> None:
        check_prefix(prefix)
        self._prefix, self._labels = prefix, {"model_name": model_name, "engine": engine}
        self._registry = CollectorRegistry()
        self._running = self._one(Gauge, "num_requests_running", "Sequences in the engine that run.")
        self._waiting = self._one(Gauge, "num_requests_waiting", "Sequences that wait.")
        self._preemptions = self._one(Counter, "num_preemptions", "Sequences that gave their cache back.")
        self._prompt = self._one(Counter, "prompt_tokens", "Prompt tokens.")
        self._output = self._one(Counter, "generation_tokens", "Output tokens.")
        self._queries = self._one(Counter, "prefix_cache_queries", "Prompt tokens that were looked up.")
        self._hits = self._one(Counter, "prefix_cache_hits", "Prompt tokens that a cache already held.")
        self._cached = self._one(Counter, "prompt_tokens_cached", "Prompt tokens that were not read again.")
        self._drafts = self._one(Counter, "spec_decode_num_drafts", "Verify steps with a draft.")
        self._drafted = self._one(Counter, "spec_decode_num_draft_tokens", "Draft tokens.")
        self._accepted = self._one(Counter, "spec_decode_num_accepted_tokens", "Accepted draft tokens.")
        self._success = self._more(Counter, "request_success", "Finished sequences.", "finished_reason")
        self._by_position = self._more(
            Counter, "spec_decode_num_accepted_tokens_per_pos", "Accepted draft tokens by depth.", "position"
        )
        self._rejections = self._more(Counter, "admission_rejections", "Requests refused at once.", "reason")
        self._ttft = self._histogram("time_to_first_token_seconds", "From arrival to first token.", _FIRST)
        # The second name is the one that vLLM had before.
        self._between = [
            self._histogram(name, "Seconds between two commits of a sequence.", _BETWEEN)
            for name in ("inter_token_latency_seconds", "time_per_output_token_seconds")
        ]
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Seconds per token after the first.", _BETWEEN
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _LONG)
        self._queue = self._histogram("request_queue_time_seconds", "Seconds that a sequence waited.", _LONG)
        self._inference = self._histogram("request_inference_time_seconds", "Seconds that it ran.", _LONG)
        self._prefill = self._histogram("request_prefill_time_seconds", "Seconds for its prompt.", _LONG)
        self._decode = self._histogram("request_decode_time_seconds", "Seconds after its first token.", _LONG)
        self._prompts = self._histogram("request_prompt_tokens", "Prompt tokens of a sequence.", _TOKENS)
        self._outputs = self._histogram("request_generation_tokens", "Output tokens of a sequence.", _TOKENS)
        self._computed = self._histogram(
            "request_prefill_kv_computed_tokens", "Prompt tokens that no cache held.", _TOKENS
        )
        self._most = self._histogram("request_params_max_tokens", "Most output tokens asked for.", _TOKENS)
        self._choices = self._histogram("request_params_n", "Sequences of a request.", _CHOICES)
        self._rounds = self._histogram("iteration_tokens_total", "Output tokens of a round.", _ROUND)
        self._rates = self._histogram("request_draft_acceptance_rate", "Accepted of drafted tokens.", _RATES)
        self._lengths = self._histogram(
            "request_mean_acceptance_length", "Tokens per verify step with a draft.", _LENGTHS
        )
        self._draft_lengths = self._histogram(
            "spec_decode_draft_length", "Longest path of each draft.", _DRAFTS
        )

    def watch(
        self, running: Callable[[], int], waiting: Callable[[], int], usage: Callable[[], float | None]
    ) -> None:
        """Read these numbers whenever metrics are asked for. A usage that is not known (None) is left out."""
        self._running.set_function(running)
        self._waiting.set_function(waiting)
        if usage() is not None:
            name = "kv_cache_usage_perc"  # vLLM's name; it is a share all the same
            self._one(Gauge, name, "Share of the cache that running sequences hold, 0 to 1.").set_function(
                lambda: usage() or 0.0
            )

    def request(self, num_choices: int, max_tokens: int) -> None:
        """Count a request that was let in."""
        self._choices.observe(num_choices)
        self._most.observe(max_tokens)

    def rejected(self) -> None:
        """Count a request for which the queue was full."""
        self._rejections.labels(**self._labels, reason="max_num_queued_reqs").inc()

    def round(self, commits: Sequence[Commit]) -> None:
        if commits:
            self._rounds.observe(sum(len(commit.tokens) for commit in commits))

    def committed(self, num_tokens: int, seconds: float | None) -> None:
        self._output.inc(num_tokens)
        if seconds is not None:
            for histogram in self._between:
                histogram.observe(seconds)

    def ended(self, generation: Generation) -> None:
        """Count a sequence that has ended."""
        m, reason = generation.metrics, generation.finish_reason
        self._success.labels(**self._labels, finished_reason=reason if reason in REASONS else "abort").inc()
        self._preemptions.inc(m.num_preemptions)
        if not m.num_output_tokens:
            return  # it was cancelled before its first token: there is nothing to tell
        self._prompt.inc(m.num_prompt_tokens)
        self._queries.inc(m.num_prompt_tokens)
        self._hits.inc(m.num_cached_tokens)
        self._cached.inc(m.num_cached_tokens)
        prefill = max(0.0, m.ttft_s - m.queue_s)
        for histogram, value in (
            (self._ttft, m.ttft_s), (self._queue, m.queue_s), (self._prefill, prefill),
            (self._decode, m.decode_s), (self._inference, prefill + m.decode_s),
            (self._e2e, m.ttft_s + m.decode_s),
            (self._prompts, m.num_prompt_tokens), (self._outputs, m.num_output_tokens),
            (self._computed, m.num_prompt_tokens - m.num_cached_tokens),
        ):  # fmt: skip
            histogram.observe(value)
        if m.num_output_tokens > 1:
            self._tpot.observe(m.tpot_s)
        self._speculation(m)

    def _speculation(self, m: Metrics) -> None:
        if not m.num_drafts:
            return
        self._drafts.inc(m.num_drafts)
        self._drafted.inc(m.num_draft_tokens)
        self._accepted.inc(m.num_accepted_tokens)
        for position, count in enumerate(m.accepted_per_depth):
            self._by_position.labels(**self._labels, position=str(position)).inc(count)
        self._rates.observe(m.acceptance_rate)
        self._lengths.observe(m.mean_acceptance_length)
        for length, count in enumerate(m.steps_per_length):
            for _ in range(count):
                self._draft_lengths.observe(length)

    def exposition(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        return generate_latest(self._registry)

    def _one(self, kind: type[_Kind], name: str, about: str) -> _Kind:
        return self._more(kind, name, about).labels(**self._labels)

    def _more(self, kind: type[_Kind], name: str, about: str, *more: str) -> _Kind:
        return kind(f"{self._prefix}:{name}", about, (*self._labels, *more), registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(
            f"{self._prefix}:{name}", about, tuple(self._labels), registry=self._registry, buckets=buckets
        )
        return made.labels(**self._labels)
