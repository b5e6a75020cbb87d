"""The metrics: read with Prometheus's own parser, and compared with what was asked for."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.processes.served import NAME, Served, run, served, toy

from specport.core.metrics import Metrics
from specport.errors import InvalidInput
from specport.serve.metrics import ServerMetrics

# What dashboards for vLLM read, as the one in its examples, and its benchmark of servers.
OF_VLLM = {
    "num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total",
    "prompt_tokens_cached_total",
    "num_preemptions_total", "prefix_cache_queries_total", "prefix_cache_hits_total", "request_success_total",
    "spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total",
    "spec_decode_num_accepted_tokens_total", "spec_decode_num_accepted_tokens_per_pos_total",
    "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_sum",
    "time_per_output_token_seconds_count",
    "request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_sum",
    "request_inference_time_seconds_sum", "request_prefill_time_seconds_sum",
    "request_decode_time_seconds_sum", "request_prompt_tokens_bucket",
    "request_generation_tokens_bucket",
    "request_params_n_sum", "request_params_max_tokens_sum", "iteration_tokens_total_sum",
}  # fmt: skip


async def read(s: Served, prefix: str = "specport") -> dict[str, float]:
    """Return the samples by name, those of one name and several labels added up."""
    reply = await s.client.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(reply.text):
        for sample in family.samples:
            assert sample.labels["model_name"] == NAME and sample.labels["engine"] == "0"
            name = sample.name.removeprefix(f"{prefix}:")
            assert name != sample.name
            found[name] = found.get(name, 0.0) + sample.value
    return found


@pytest.mark.parametrize("prefix", ["specport", "vllm"])
def test_metrics_add_up_to_what_was_answered(prefix: str) -> None:
    async def start() -> None:
        async with served(toy(), prefix=prefix) as s:
            replies = await asyncio.gather(*(s.chat("abcabc", max_tokens=n, n=2) for n in (30, 60)))
            alone = (await s.complete("abc", max_tokens=50)).json()
            told = alone["metrics"]["speculative_decoding"]
            await s.idle()
            found = await read(s, prefix)
            usages = [r.json()["usage"] for r in replies] + [alone["usage"]]
            assert found.keys() >= OF_VLLM and "kv_cache_usage_perc" not in found  # the toy's has no bound
            assert found["generation_tokens_total"] == sum(u["completion_tokens"] for u in usages) == 230
            assert found["request_generation_tokens_sum"] == found["iteration_tokens_total_sum"] == 230
            assert found["prompt_tokens_total"] == 6 * 4 + 3 == found["request_prompt_tokens_sum"]
            assert found["request_success_total"] == found["time_to_first_token_seconds_count"] == 5
            assert found["request_params_n_sum"] == 5 and found["request_params_n_count"] == 3
            assert found["num_requests_running"] == found["num_requests_waiting"] == 0
            assert found["spec_decode_num_drafts_total"] > told["num_spec_steps"] > 0
            accepted = found["spec_decode_num_accepted_tokens_total"]
            assert accepted == found["spec_decode_num_accepted_tokens_per_pos_total"] > 0
            assert found["spec_decode_draft_length_count"] == found["spec_decode_num_drafts_total"]
            assert found["spec_decode_draft_length_sum"] == found["spec_decode_num_draft_tokens_total"]
            assert found["request_draft_acceptance_rate_count"] == 5
            assert 0 < found["request_prefill_time_seconds_sum"] < found["e2e_request_latency_seconds_sum"]

    run(start())


def test_running_and_waiting_are_those_of_now_and_cancelled_ones_count() -> None:
    from specport.serve.settings import Limits

    async def start() -> None:
        bounded = toy(step_seconds=0.01, cache_tokens=9000)
        async with served(bounded, Limits(max_running=2, max_queue=3)) as s:
            assert (await read(s))["kv_cache_usage_perc"] == 0
            asked = [asyncio.ensure_future(s.chat("abc", max_tokens=2000)) for _ in range(5)]
            while s.service._admission.num_waiting < 3:
                await asyncio.sleep(0.01)
            found = await read(s)
            assert (found["num_requests_running"], found["num_requests_waiting"]) == (2, 3)
            while not found["kv_cache_usage_perc"]:
                await asyncio.sleep(0.01)  # reading alone does not let the others run
                found = await read(s)
            assert found["kv_cache_usage_perc"] < 0.5
            assert (await s.chat("abc")).status_code == 429
            assert (await read(s))["admission_rejections_total"] == 1
            for each in asked:
                each.cancel()
            await s.idle()
            assert (await read(s))["kv_cache_usage_perc"] == 0
            text = (await s.client.get("/metrics")).text
            assert 'request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 2.0' in text

    run(start())


def test_counts_of_exact_lengths() -> None:
    metrics = Metrics(num_drafts=10, drafted_per_depth=[10, 7, 2], accepted_per_depth=[6, 5, 1])
    assert metrics.steps_per_length == [0, 3, 5, 2] and metrics.steps_per_accepted == [4, 1, 4, 1]
    assert Metrics().steps_per_length == Metrics().steps_per_accepted == [0]


def test_a_prefix_that_is_no_name() -> None:
    with pytest.raises(InvalidInput, match="prefix"):
        ServerMetrics(NAME, "a b")
