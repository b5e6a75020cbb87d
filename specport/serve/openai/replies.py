"""Replies of OpenAI's API: whole ones, and the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from specport.core.metrics import Metrics, StepCounts
from specport.core.sampling.logprobs import TokenLogprob
from specport.runtime.versions import VERSION
from specport.serve.openai.logprobs import ChatLogprobs, CompletionLogprobs
from specport.stream import Result
from specport.text.detokenize import Detokenizer, Span
from specport.text.tools.parser import CallDelta, TextDelta

Json = dict[str, Any]
FINGERPRINT = f"specport-{VERSION}"


class Replies:
    """Make the replies to one request.

    n: sequences for each prompt, whose tokens count once. speculative: whether drafts were allowed.
    """

    def __init__(
        self, model: str, tokenizer: Detokenizer, *, chat: bool, n: int = 1, speculative: bool = True
    ) -> None:
        self._chat, self._n, self._speculative = chat, n, speculative
        self._object = "chat.completion" if chat else "text_completion"
        self._common = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}", "created": int(time.time()),
            "model": model, "system_fingerprint": FINGERPRINT,
        }  # fmt: skip
        self._logprobs = ChatLogprobs(tokenizer) if chat else CompletionLogprobs(tokenizer)

    def whole(self, results: Sequence[Result]) -> Json:
        """Return the whole reply."""
        choices = []
        for index, result in enumerate(results):
            reason = finish_reason(result.finish_reason, len(result.tool_calls))
            logprobs = self._logprobs.of(index, result.logprobs)
            choice: Json = {"index": index, "logprobs": logprobs, "finish_reason": reason}
            if self._chat:
                choice["message"] = _message(result)
            else:
                choice["text"] = result.text
            choices.append(choice)
        return {"object": self._object, **self._common, "choices": choices, **self._account(results)}

    def role(self, index: int) -> Json:
        """Return the first chunk of a choice of a chat."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def chunks(
        self,
        index: int,
        parts: Sequence[TextDelta | CallDelta],
        logprobs: Sequence[TokenLogprob],
        speculation: Json | None = None,
    ) -> Iterator[Json]:
        """Yield a chunk for each new part of a choice; the first has the log-probabilities of all.

        speculation: see `speculation_of`; the first chunk has that, too.
        """
        if self._chat:
            pieces: list[Json] = [{"delta": part.as_openai()} for part in parts]
        else:  # has no tools
            pieces = [{"text": part.text} for part in parts if isinstance(part, TextDelta)]
        if (logprobs or speculation) and not pieces:
            pieces = [{"delta": {}} if self._chat else {"text": ""}]
        if speculation:
            pieces[0]["speculation"] = speculation
        told = self._logprobs.of(index, logprobs)
        for piece in pieces:
            yield self._chunk(index, piece, logprobs=told)
            told = None

    def last(self, index: int, reason: str | None) -> Json:
        """Return the last chunk of a choice, with the reason for its end."""
        return self._chunk(index, {"delta": {}} if self._chat else {"text": ""}, reason)

    def usage(self, results: Sequence[Result]) -> Json:
        """Return the last chunk, where the client asked for it."""
        return {**self._head(), "choices": [], **self._account(results)}

    def _chunk(
        self, index: int, piece: Json, finish_reason: str | None = None, logprobs: Json | None = None
    ) -> Json:
        choice = {"index": index, **piece, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head(), "choices": [choice]}

    def _head(self) -> Json:
        return {"object": "chat.completion.chunk" if self._chat else self._object, **self._common}

    def _account(self, results: Sequence[Result]) -> Json:
        metrics = [result.metrics for result in results]
        # vLLM, too, tells of times and drafts of single sequences only.
        return {
            "usage": self.spent(metrics),
            "metrics": timing(metrics[0], self._speculative) if len(metrics) == 1 else None,
        }

    def spent(self, metrics: Sequence[Metrics]) -> Json:
        """Return the object `usage` for the sequences so far."""
        prompt = sum(m.num_prompt_tokens for m in metrics[:: self._n])
        output = sum(m.num_output_tokens for m in metrics)
        cached = sum(m.num_cached_tokens for m in metrics[:: self._n])
        return {
            "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": cached},
        }  # fmt: skip


def finish_reason(reason: str | None, num_calls: int) -> str | None:
    """Return why a text ended, in OpenAI's words."""
    return "tool_calls" if reason == "stop" and num_calls else reason


def speculation_of(spans: Sequence[Span], steps: Sequence[StepCounts]) -> Json | None:
    """Return the object `speculation` of a chunk; None where there is nothing to tell.

    pieces: text and the drafter that proposed it; null = the target's own choice.
    steps:  draft tokens and accepted ones of each verify step, by drafter.
    """
    if not spans and not steps:
        return None
    return {
        "pieces": [{"text": text, "drafter": source or None} for text, source in spans],
        "steps": [{"drafted": step.drafted, "accepted": step.accepted} for step in steps],
    }


def _message(result: Result) -> Json:
    """Return the answer as a message. Its content is null where there are calls and nothing else."""
    message = {**result.message, "refusal": None}
    if result.tool_calls and not message["content"]:
        message["content"] = None
    return message


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
