"""Chooses how many tokens a draft's language-model head keeps, by what that saves and what it costs.

A draft with the vocabulary of a large model spends half its step in the head. Rows of rare tokens can
go (FR-Spec, arXiv 2502.14856): the target verifies with its whole head, so the text stays the same and
only the agreement suffers. Byte-pair vocabularies are numbered by how early a pair was merged, which
ranks tokens by frequency without any corpus: a cut keeps the first ids and all special tokens. Where text of
the target is at hand, what occurs there most often goes first. The rare words and names that a text is about
no such head has: where a backend can, they join it as they occur (`drafters/model/context_head.py`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Model, Row
from specport.core.tree import TokenTree
from specport.progress import Progress
from specport.runtime.registry import Loaded
from specport.text.builtin_prompts import Text, along

SIZES = (65_536, 32_768, 16_384, 8_192)
WORTH = 1.02  # how much faster a cut head must come out
_MOST_DRAFTED = 8
_ROUNDS, _WARM, _CONTEXT = 12, 2, 64
Clock = Callable[[], float]


@dataclass(frozen=True)
class Head:
    """One size of head and what was measured of it.

    tokens:    ids that it keeps; None = all.
    size:      how many those are.
    seconds:   of a draft step.
    agreement: share of the target's tokens that the draft would have proposed.
    rate:      tokens a second that they make, at the number of draft tokens that suits them best.
    """

    tokens: tuple[int, ...] | None
    size: int
    seconds: float
    agreement: float
    rate: float


def kept_ids(
    size: int, vocab: int, always: Iterable[int], seen: Mapping[int, int] | None = None
) -> tuple[int, ...]:
    """The `size` ids that were seen most often, the first ones where they are equal, and `always`; rising."""
    counts = seen or {}
    ranked = sorted(range(vocab), key=lambda token: -counts.get(token, 0))  # stable
    return tuple(sorted({*ranked[:size], *(token for token in always if 0 <= token < vocab)}))


def sizes(vocab: int) -> list[int]:
    """Cuts worth trying: those that leave away a good part of the head."""
    return [size for size in SIZES if size <= 0.75 * vocab]


def compare(
    load: Callable[[tuple[int, ...]], Loaded],
    whole: Model,
    texts: Sequence[Text],
    target: StepCosts,
    always: Iterable[int],
    progress: Progress,
    seen: Mapping[int, int] | None = None,
) -> tuple[Head, ...]:
    """What each size of the draft's head costs and how well it agrees, the whole one first.

    load: the draft with its head cut to these ids. always: ids that every head keeps. seen: how often the
    target wrote an id; not in `texts`, on which the heads are compared.
    """
    vocab = whole.vocab_size
    cuts = [kept_ids(size, vocab, always, seen) for size in sizes(vocab)]
    seconds = step_seconds(whole)
    timed: list[tuple[tuple[int, ...] | None, float]] = [(None, seconds)]
    with_context = False
    for number, tokens in enumerate(cuts):
        progress(f"a head of {len(tokens)} tokens", number / (len(cuts) + 1))
        cut = load(tokens)
        if cut.head_tokens is None:
            break  # this backend cannot cut heads
        with_context = cut.model.capabilities.head_rows
        timed.append((tokens, seconds * step_ratio(whole, cut.model)))
        del cut
    progress("the draft reads", len(cuts) / (len(cuts) + 1))
    shares = agreements(whole, texts, [tokens for tokens, _ in timed], with_context=with_context)
    return tuple(
        Head(tokens, vocab if tokens is None else len(tokens), cost, share, rate(share, cost, target))
        for (tokens, cost), share in zip(timed, shares, strict=True)
    )


def agreements(
    draft: Model,
    texts: Sequence[Text],
    heads: Sequence[Sequence[int] | None],
    *,
    with_context: bool = False,
) -> list[float]:
    """Share of the target's tokens that the draft proposes, for each head, out of one reading.

    draft: with its whole head; a cut one gives these logits at the ids that it keeps, but for rounding.
    with_context: a head has the tokens of the text up to there as well (`ContextHead`).
    """
    masks = [_absent(draft.vocab_size, head) for head in heads]
    hits, count = np.zeros(len(heads)), 0
    for text in texts:
        for output, answer in along(draft, [text]):
            xp, where = array_namespace(output.logits), device(output.logits)
            for i, mask in enumerate(masks):
                absent = _so_far(mask, text) if with_context else mask
                proposed = xp.argmax(output.logits + xp.asarray(absent, device=where), axis=1)
                hits[i] += sum(int(a) == b for a, b in zip(proposed, answer, strict=True))
            count += len(answer)
    return [float(share) for share in hits / max(count, 1)]


def _so_far(mask: NDArray[np.float32], text: Text) -> NDArray[np.float32]:
    """[answer, vocab] the mask before each token of the answer, without what the text has up to there."""
    absent = np.repeat(mask[None], len(text.answer), axis=0)
    absent[:, [*text.prompt]] = 0.0
    for i, token in enumerate(text.answer):
        absent[i + 1 :, token] = 0.0
    return absent


def _absent(vocab: int, head: Sequence[int] | None) -> NDArray[np.float32]:
    """[vocab] what to add to the logits: -inf at ids that the head does not keep."""
    mask = np.zeros(vocab, dtype=np.float32)
    if head is not None:
        mask[:] = -np.inf
        mask[np.asarray(head)] = 0.0
    return mask


def step_seconds(model: Model, clock: Clock = time.perf_counter) -> float:
    """Median seconds of a draft step."""
    return statistics.median(times[0] for times in _timed([model], clock))


def step_ratio(whole: Model, cut: Model, clock: Clock = time.perf_counter) -> float:
    """Time of the cut draft's step over the whole one's; measured in turns, so that drift cancels."""
    return statistics.median(times[1] / times[0] for times in _timed([whole, cut], clock))


def _timed(models: Sequence[Model], clock: Clock) -> list[list[float]]:
    """Seconds of a one-token step of each model, [rounds][models]."""
    rounds = []
    handles = [model.open() for model in models]
    context = min(_CONTEXT, *(model.max_context - 1 for model in models))
    try:
        for model, handle in zip(models, handles, strict=True):
            model.step([Row(handle, TokenTree.chain((0,) * context), logits="last")])
            model.commit(handle, range(context))
        for _ in range(_WARM + _ROUNDS):
            times = []
            for model, handle in zip(models, handles, strict=True):
                began = clock()
                model.step([Row(handle, TokenTree.chain((0,)))])
                times.append(clock() - began)
                model.commit(handle, ())
            rounds.append(times)
    finally:
        for model, handle in zip(models, handles, strict=True):
            model.close(handle)
    return rounds[_WARM:]


def rate(agreement: float, draft_s: float, target: StepCosts) -> float:
    """Tokens a second with the best number of draft tokens, where each is right by itself as often.

    Leviathan et al. 2211.17192, with measured times: (1 - a^(n + 1)) / (1 - a) tokens in T(n + 1) + n D.
    """
    best, tokens = 0.0, 0.0
    for num in range(_MOST_DRAFTED + 1):
        tokens += agreement**num
        best = max(best, tokens / (target.step(num + 1, 0) + num * draft_s))
    return best


def best(heads: Sequence[Head]) -> Head:
    """The whole head (the first), unless a cut one is faster by a margin that noise does not make."""
    fastest = max(heads, key=lambda head: head.rate)
    return fastest if fastest.rate > WORTH * heads[0].rate else heads[0]
