"""Measure the TTFT of a prompt whose system prompt is known already: in memory, and from disk.

    python tests/benchmarks/serving/prefix_ttft.py [--model MODEL] [--draft DRAFT] [--tokens 800] [--rounds 3]

Each round has a system prompt of its own, so that its first question reads all of it. Then the second
question is asked in the same process (memory), and in another process on the same folder (disk). Before
anything is timed, each process answers a prompt of another text, since runtimes prepare weights at the first
step. All texts are compared with those of a run without a prefix cache.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import specport

WORDS = "river stone window garden letter winter music paper market silver bridge morning story island"
QUESTIONS = ("Name one of the words.", "Which word comes first?")
NEW_TOKENS = 16


def system_prompt(pipeline: specport.Pipeline, seed: int, tokens: int) -> str:
    """Return a text of about so many tokens."""
    rng = random.Random(seed)
    text = "You answer questions about these words."
    while len(pipeline.tokenizer.encode(text)) < tokens:
        text += " " + rng.choice(WORDS.split())
    return text


def ask(pipeline: specport.Pipeline, system: str, question: str) -> dict[str, Any]:
    result = pipeline.generate(
        [{"role": "system", "content": system}, {"role": "user", "content": question}],
        max_new_tokens=NEW_TOKENS,
    )
    metrics = result.metrics
    return {
        "ttft_s": metrics.ttft_s,
        "cached": metrics.num_cached_tokens,
        "prompt": metrics.num_prompt_tokens,
        "text": result.text,
    }


def child(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Answer questions in this process; return what each took."""
    options = {name: value for name, value in request["options"].items() if value is not None}
    with specport.load(**options) as pipeline:
        pipeline.generate("Hello", max_new_tokens=4)
        system = system_prompt(pipeline, request["seed"], request["tokens"])
        return [ask(pipeline, system, question) for question in request["questions"]]


def in_process(request: dict[str, Any]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(request)], stdout=subprocess.PIPE, check=True
    )
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def measured(options: dict[str, Any], seed: int, tokens: int) -> dict[str, Any]:
    """Return the times of one round."""

    def answers(questions: tuple[str, ...], **more: Any) -> list[dict[str, Any]]:
        return in_process(
            {"options": {**options, **more}, "seed": seed, "tokens": tokens, "questions": questions}
        )

    with tempfile.TemporaryDirectory() as folder:
        first, memory = answers(QUESTIONS, prefix_cache=folder)
        (disk,) = answers(QUESTIONS[1:], prefix_cache=folder)
    plain = answers(QUESTIONS, prefix_cache=False)
    assert [a["cached"] for a in (first, *plain)] == [0, 0, 0]
    assert [first["text"], memory["text"], disk["text"]] == [
        plain[0]["text"],
        plain[1]["text"],
        plain[1]["text"],
    ]
    return {
        "prompt": first["prompt"],
        "cached": [memory["cached"], disk["cached"]],
        "first_s": first["ttft_s"],
        "memory_s": memory["ttft_s"],
        "disk_s": disk["ttft_s"],
        "memory": memory["ttft_s"] / first["ttft_s"],
        "disk": disk["ttft_s"] / first["ttft_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model")
    parser.add_argument("--draft")
    parser.add_argument("--device")
    parser.add_argument("--precision")
    parser.add_argument("--tokens", type=int, default=800)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(json.loads(args.child))))
        return
    options = {name: getattr(args, name) for name in ("model", "draft", "device", "precision")}
    rounds = [measured(options, seed, args.tokens) for seed in range(args.rounds)]
    for found in rounds:
        print(json.dumps(found), flush=True)
    for name in ("memory", "disk"):
        print(f"TTFT from {name} / TTFT: {statistics.median(found[name] for found in rounds):.3f} (median)")


if __name__ == "__main__":
    main()
