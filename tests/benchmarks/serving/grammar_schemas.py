"""What structured output costs and brings: fifty JSON schemas, with and without a grammar and drafts.

    python tests/benchmarks/serving/grammar_schemas.py --model MODEL --draft none --draft auto

Each prompt of `schema_set` is answered under its schema, and freely with as many tokens, greedily. Reports
for each draft expression: the share of answers that end and are valid by `jsonschema`, tokens a second while
decoding, milliseconds of the constraint itself a step, and what the forced tokens brought. With exact mode
all drafts must give the same tokens as no draft: that is checked too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jsonschema
from schema_set import SCHEMAS

import specport
from specport.runtime.devices.profiles import cpu_name
from specport.text.grammar.matcher import GrammarConstraint


class Clock:
    """Add up the seconds that the constraint takes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("mask", "forced", "complete"):
            setattr(GrammarConstraint, name, self._timed(getattr(GrammarConstraint, name)))

    def _timed(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*arguments)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def measure(
    arguments: argparse.Namespace, draft: str, clock: Clock
) -> tuple[dict[str, Any], list[list[int]]]:
    """Return the row of one draft expression, and the constrained answers' tokens."""
    row: dict[str, Any] = {"draft": draft}
    texts: list[list[int]] = []
    for constrained in (True, False):
        tokens = steps = valid = ended = forced = 0
        seconds = 0.0
        # Each is loaded by itself: neither drafts from the other's answers.
        with specport.load(arguments.model, draft=draft, device=arguments.device) as pipeline:
            pipeline.generate("Hello", max_new_tokens=16)
            clock.seconds = 0.0
            for number, (prompt, schema) in enumerate(SCHEMAS[: arguments.schemas]):
                ask = f"{prompt} Answer with JSON by this schema: {json.dumps(schema)}"
                grammar = specport.Grammar.json_schema(schema) if constrained else None
                limit = arguments.tokens if constrained else len(texts[number])
                result = pipeline.generate(ask, grammar=grammar, max_new_tokens=limit)
                metrics = result.metrics
                tokens += metrics.num_output_tokens - 1
                steps += metrics.num_steps
                seconds += metrics.decode_s
                ended += result.finish_reason == "stop"
                valid += is_valid(result.text, schema)
                counts = metrics.drafting.by.get("forced")
                forced += counts.accepted if counts is not None else 0
                if constrained:
                    texts.append(result.token_ids)
        row["constrained" if constrained else "free"] = {
            "valid": f"{valid}/{arguments.schemas}", "ended": ended,
            "tokens_per_second": round(tokens / seconds, 1), "tokens": tokens, "steps": steps,
            "accepted_forced": forced,
            "constraint_ms_per_step": round(1e3 * clock.seconds / max(steps, 1), 2),
        }  # fmt: skip
    return row, texts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for specport run (default: the embedded one)")
    parser.add_argument("--draft", action="append", help="draft expression; repeatable (default: none, auto)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tokens", type=int, default=300, help="most tokens of an answer")
    parser.add_argument("--schemas", type=int, default=len(SCHEMAS), help="how many of the schemas")
    arguments = parser.parse_args()
    clock = Clock()
    first: list[list[int]] | None = None
    rows = []
    for draft in arguments.draft or ["none", "auto"]:
        row, texts = measure(arguments, draft, clock)
        first = texts if first is None else first
        row["same_tokens_as_first"] = texts == first
        rows.append(row)
        print(json.dumps(row), flush=True)
    print(
        json.dumps({"processor": cpu_name(), "model": arguments.model or "embedded", "rows": rows}, indent=1)
    )


if __name__ == "__main__":
    main()
