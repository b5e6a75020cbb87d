"""Replies of OpenAI's API: whole ones, and the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from specport.core.metrics import Metrics
from specport.runtime.versions import VERSION
from specport.stream import Result

Json = dict[str, Any]
FINGERPRINT = f"specport-{VERSION}"


class Replies:
    """Make the replies to one request.

    n: sequences for each prompt, whose tokens count once. speculative: whether drafts were allowed.
    """

    def __init__(self, model: str, *, chat: bool, n: int = 1, speculative: bool = True) -> None:
        self._chat, self._n, self._speculative = chat, n, speculative
        self._object = "chat.completion" if chat else "text_completion"
        self._common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()),
            "model": model, "system_fingerprint": FINGERPRINT,
        }  # fmt: skip

    def whole(self, results: Sequence[Result]) -> Json:
        """Return the whole reply."""
        choices = []
        for index, result in enumerate(results):
            choice: Json = {"index": index, "logprobs": None, "finish_reason": result.finish_reason}
            if self._chat:
                choice["message"] = {"role": "assistant", "content": result.text, "refusal": None}
            else:
                choice["text"] = result.text
            choices.append(choice)
        return {"object": self._object, **self._common, "choices": choices, **self._account(results)}

    def role(self, index: int) -> Json:
        """Return the first chunk of a choice of a chat."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def chunk(self, index: int, text: str, finish_reason: str | None = None) -> Json:
        """Return a chunk with new text, and at the end with the reason for it."""
        piece: Json = {"text": text}
        if self._chat:
            piece = {"delta": {"content": text} if text else {}}
        return self._chunk(index, piece, finish_reason)

    def usage(self, results: Sequence[Result]) -> Json:
        """Return the last chunk, where the client asked for it."""
        return {**self._head(), "choices": [], **self._account(results)}

    def _chunk(self, index: int, piece: Json, finish_reason: str | None) -> Json:
        choice = {"index": index, **piece, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head(), "choices": [choice]}

    def _head(self) -> Json:
        return {"object": "chat.completion.chunk" if self._chat else self._object, **self._common}

    def _account(self, results: Sequence[Result]) -> Json:
        prompt = sum(len(result.prompt_token_ids) for result in results[:: self._n])
        output = sum(len(result.token_ids) for result in results)
        cached = sum(result.metrics.num_cached_tokens for result in results[:: self._n])
        return {
            "usage": {
                "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
                "prompt_tokens_details": {"cached_tokens": cached},
            },
            # vLLM, too, tells these of single sequences only.
            "metrics": timing(results[0].metrics, self._speculative) if len(results) == 1 else None,
        }  # fmt: skip


def timing(m: Metrics, speculative: bool) -> Json:
    """Return vLLM's object `metrics` of a reply: times in milliseconds, and what speculation brought."""
    running = m.ttft_s - m.queue_s + m.decode_s
    return {
        "time_to_first_token_ms": (m.ttft_s - m.queue_s) * 1e3,
        "generation_time_ms": m.decode_s * 1e3,
        "queue_time_ms": m.queue_s * 1e3,
        "mean_itl_ms": m.tpot_s * 1e3 if m.num_output_tokens > 1 else None,
        "tokens_per_second": m.num_output_tokens / running if running > 0 else None,
        "speculative_decoding": speculation(m) if speculative else None,
    }


def speculation(m: Metrics) -> Json:
    """Return vLLM's object `metrics.speculative_decoding`, and the lengths of drafts beside it.

    A list of counts is indexed by the number of draft tokens. `num_spec_tokens` is the longest draft: there
    is no fixed length here.
    """
    return {
        "mean_acceptance_length": m.mean_acceptance_length,
        "draft_acceptance_rate": m.acceptance_rate,
        "acceptance_histogram": m.steps_per_accepted,
        "num_spec_steps": m.num_drafts,
        "num_accepted_draft_tokens": m.num_accepted_tokens,
        "num_draft_tokens": m.num_draft_tokens,
        "num_spec_tokens": len(m.drafted_per_depth),
        "draft_length_histogram": m.steps_per_length,
        "acceptance_rate_per_position": m.acceptance_rate_per_position,
    }
