"""Text that the target writes itself, for a draft to learn from: no data set is needed.

The target writes the user's turn behind a short opening (sampled, so that the turns differ), then answers it
as it would at run time. Every other shard asks about a passage instead, since what the target writes as the
user is short. The user's own prompts, if there are any, are answered once each, in turns with the target's:
who has short ones only would get a draft that cannot copy from a long one. The likeliest tokens of the
target's distribution are kept beside each token of an answer. Shards are files of their own, made with their
own random stream: what is there is not written again, and a seed gives the same text wherever it was
interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from specport.quantize.text import passages

from specport.core.ports import Model, Row
from specport.core.tree import TokenTree
from specport.errors import ModelError
from specport.models.atomic import replacing
from specport.models.cache import cache_root
from specport.models.os_errors import cause
from specport.progress import Progress
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer

TOP_K = 32
ANSWER_TOKENS = 192
# Nats below the likeliest token within which there mostly are TOP_K tokens, and not many more.
NEAR, MANY = 8.0, 4096
SHARD = 32  # dialogues that are written at once; weights are read once for all of them
OWN, OPENED, PASSAGE = "own", "opened", "passage"  # kinds of user's turns; a shard has one
MADE_UP = (OPENED, PASSAGE)  # in turns
# How a user's turn begins, and how many tokens the target adds to it at most.
OPENINGS = {
    48: (
        "Write a Python function that", "Write a short story about", "Explain how",
        "What is the difference between", "A shop sells", "If a train leaves", "Who was", "Why do",
        "How do I", "Compose an email to", "Give me a list of", "Write a SQL query that", "Describe the",
        "What are the main causes of", "Solve the equation", "Act as a", "Which", "Is it true that",
        "Create a plan for", "In JavaScript,", "Compare", "When did", "Implement", "Tell me about",
        "Let x be", "Suggest", "Where is", "How many", "Maria has", "A factory produces",
        "Imagine that you are", "Translate into German:", "Translate into English: Die",
        "Translate into English: Der", "Translate into English: Wir", "Translate into English: El",
    ),
    128: (
        "Summarize this article:\n\n", "Summarize this paragraph in one sentence:\n\n",
        "Fix the bug in this code:", "Rewrite this text more formally:",
        "Answer with the help of this passage:\n\n",
        "Read the text and answer the question behind it.\n\n", "Explain what this code does:",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Dialogue:
    """tokens: prompt and answer; the answer begins at `start`.

    top_ids, top_probs: [answer, TOP_K] the target's likeliest tokens before each token of the answer, and
    their probabilities, likeliest first.
    """

    tokens: NDArray[np.int32]
    start: int
    top_ids: NDArray[np.int32]
    top_probs: NDArray[np.float32]


def folder_for(fingerprint: str, prompts: Sequence[str], seed: int) -> Path:
    """Where the text of a target is kept: every later draft for it can learn from the same.

    fingerprint: of the target's weights.
    """
    asked = [*prompts, OPENINGS, passages.facts()]
    facts = json.dumps([fingerprint, asked, seed, SHARD, ANSWER_TOKENS, TOP_K])
    return cache_root() / "text" / hashlib.sha256(facts.encode()).hexdigest()[:24]


def write_shards(
    load: Callable[[], Model],
    tokenizer: Tokenizer,
    folder: Path,
    num_tokens: int,
    seed: int,
    prompts: Sequence[str],
    progress: Progress,
    least: int = 1,
) -> list[Path]:
    """As many shards as hold `num_tokens` of answers, `least` of them at least.

    prompts: the user's own turns, in every other shard while there are any, in an order that the seed gives.
    load: gives the target; called only if there is something to write.
    Raises ModelError when the folder cannot be written.
    """
    distinct = [*dict.fromkeys(prompts)]
    mixed = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
    own = [mixed[i : i + SHARD] for i in range(0, len(mixed), SHARD)]
    order = _order(len(own))
    paths: list[Path] = []
    target: Model | None = None
    written = 0
    while written < num_tokens or len(paths) < least:
        kind, number = next(order)
        path = folder / f"{kind}-{number:05}.npz"
        paths.append(path)
        if not path.is_file():
            target = target or load()
            done = min(written / num_tokens, 1.0)
            share = min(SHARD * ANSWER_TOKENS / num_tokens, 1.0 - done)

            def bar(part: float, done: float = done, share: float = share) -> None:
                progress("the target writes", done + share * part)

            if kind == OWN:
                asked = own[number]
            else:
                rng = np.random.default_rng([seed, number + 1, MADE_UP.index(kind)])
                asked = _user_turns(kind, target, tokenizer, rng)
            save_shard(path, dialogues(target, tokenizer, asked, bar))
        written += sum(len(d.tokens) - d.start for d in read_shard(path))
    return paths


def _order(num_own: int) -> Iterator[tuple[str, int]]:
    """What kind of turns each shard has, and its number among those of its kind."""
    for number in itertools.count():
        if number < num_own:
            yield OWN, number
        yield MADE_UP[number % 2], number // 2


def dialogues(
    target: Model,
    tokenizer: Tokenizer,
    turns: Sequence[str],
    progress: Callable[[float], None] = lambda share: None,
) -> list[Dialogue]:
    """What the target answers to each of the user's turns, but for those that are too long."""
    asked = [encode(tokenizer, turn) for turn in turns]
    asked = [ids for ids in asked if len(ids) + ANSWER_TOKENS <= target.max_context]
    tops: list[list[tuple[NDArray[np.int32], NDArray[np.float32]]]] = [[] for _ in asked]

    def greedy(i: int, logits: NDArray[np.float32]) -> int:
        tops[i].append(_top(logits))
        return int(tops[i][-1][0][0])

    limits = [ANSWER_TOKENS] * len(asked)
    answers = _write(target, asked, limits, tokenizer.eos_ids, greedy, progress)
    return [
        Dialogue(
            np.asarray([*ids, *answer], dtype=np.int32),
            len(ids),
            np.stack([top[0] for top in kept]),
            np.stack([top[1] for top in kept]),
        )
        for ids, answer, kept in zip(asked, answers, tops, strict=True)
        if answer
    ]


def _user_turns(kind: str, target: Model, tokenizer: Tokenizer, rng: np.random.Generator) -> list[str]:
    """One shard's, where the user gave none."""
    if kind == PASSAGE:
        return [passages.turn(rng) for _ in range(SHARD)]
    every = [(opening, limit) for limit, own in OPENINGS.items() for opening in own]
    openings = [every[i] for i in rng.integers(len(every), size=SHARD)]

    def sample(i: int, logits: NDArray[np.float32]) -> int:
        ids, probs = _top(logits)
        return int(rng.choice(ids, p=probs.astype(np.float64) / probs.sum(dtype=np.float64)))

    begun = [_begun(tokenizer, opening) for opening, _ in openings]
    rest = _write(target, begun, [limit for _, limit in openings], tokenizer.eos_ids, sample)
    return [
        opening + tokenizer.decode(ids, skip_special_tokens=True)
        for (opening, _), ids in zip(openings, rest, strict=True)
    ]


def _begun(tokenizer: Tokenizer, opening: str) -> list[int]:
    """Ids of a user's turn that is not yet complete."""
    if not tokenizer.has_chat_template:
        return tokenizer.encode(opening)
    stem = opening.rstrip()  # some templates strip a turn
    text = tokenizer.render([{"role": "user", "content": stem}], add_generation_prompt=False)
    return tokenizer.encode(text[: text.rindex(stem)] + opening)


def _write(
    target: Model,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    ends: frozenset[int],
    choose: Callable[[int, NDArray[np.float32]], int],
    progress: Callable[[float], None] = lambda share: None,
) -> list[list[int]]:
    """What follows each prompt, all of them at once, in so many tokens at most.

    choose: the next token of text i, from its logits.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    handles = [target.open(len(prompt) + limit) for prompt, limit in zip(prompts, limits, strict=True)]
    try:
        for i, prompt in enumerate(prompts):
            output = target.step([Row(handles[i], TokenTree.chain(prompt), logits="last")])
            target.commit(handles[i], range(len(prompt)))
            texts[i].append(choose(i, np.asarray(output.logits[0])))
        for number in range(1, max(limits, default=0)):
            progress(number / max(limits))
            active = [i for i, text in enumerate(texts) if number < limits[i] and text[-1] not in ends]
            if not active:
                break
            output = target.step([Row(handles[i], TokenTree.chain(texts[i][-1:])) for i in active])
            for row, i in enumerate(active):
                texts[i].append(choose(i, np.asarray(output.logits[output.offsets[row]])))
            for i in active:
                target.commit(handles[i], [0])
    finally:
        for handle in handles:
            target.close(handle)
    return texts


def _top(logits: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The likeliest ids and their probabilities, likeliest first."""
    count = min(TOP_K, logits.size)
    best = logits.max()
    ids = np.flatnonzero(logits > best - NEAR)  # most of a large vocabulary need not be sorted
    if not count <= ids.size <= MANY:
        ids = np.argpartition(logits, -count)[-count:]
    ids = ids[np.lexsort((ids, -logits[ids]))][:count]  # of equal logits the first id, as argmax chooses
    shifted = np.exp(logits - best, dtype=np.float32)
    return ids.astype(np.int32), (shifted[ids] / shifted.sum(dtype=np.float64)).astype(np.float32)


def save_shard(path: Path, shard: Sequence[Dialogue]) -> None:
    """Raises ModelError when the file cannot be written."""
    try:
        # Another build may be writing the same shard.
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **_arrays(shard))
    except OSError as error:
        message, hint = cause(error, "free some space; what is written stays")
        raise ModelError(f"cannot write {path}: {message}", hint) from error


def _arrays(shard: Sequence[Dialogue]) -> dict[str, Any]:
    if not shard:  # all of its turns were too long
        return {"lengths": np.zeros(0, dtype=np.int64)}
    return {
        "tokens": np.concatenate([d.tokens for d in shard]),
        "lengths": np.array([len(d.tokens) for d in shard]),
        "starts": np.array([d.start for d in shard]),
        "top_ids": np.concatenate([d.top_ids for d in shard]),
        "top_probs": np.concatenate([d.top_probs for d in shard]).astype(np.float16),
    }


def read_shard(path: Path) -> list[Dialogue]:
    """Raises ModelError when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if not stored["lengths"].size:
                return []
            ends = np.cumsum(stored["lengths"])
            answers = np.cumsum(stored["lengths"] - stored["starts"])
            pieces = zip(
                np.split(stored["tokens"], ends[:-1]),
                stored["starts"],
                np.split(stored["top_ids"], answers[:-1]),
                np.split(stored["top_probs"].astype(np.float32), answers[:-1]),
                strict=True,
            )
            return [Dialogue(tokens, int(start), ids, probs) for tokens, start, ids, probs in pieces]
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot read {path}: {message}", hint) from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is damaged: {error}", "remove it and run the command again") from error


def token_counts(shards: Sequence[Path]) -> Counter[int]:
    """How often each token id stands in these shards, prompts included. Raises ModelError."""
    return Counter(t for path in shards for d in read_shard(path) for t in d.tokens.tolist())
