"""Choose how many rows a draft's language-model head keeps, by measured step time and agreement.

A draft with the vocabulary of a large model spends half its step in the head. Rows of rare tokens can be
dropped (FR-Spec, arXiv 2502.14856). The target verifies with its whole head, so the text stays the same; only
the agreement falls. Byte-pair vocabularies number tokens by how early a pair was merged, which ranks them by
frequency without a corpus: a cut head keeps the first ids and all special tokens. Ids that occur most often
in the target's own text come first where such text is given. Rare words of the current text join the head as
they occur, where the backend can do that (`drafters/model/context_head.py`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import NDArray

from specport.calibration.target_text import Text, along
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Block, Model, Row
from specport.progress import Progress
from specport.runtime.devices.registry import Loaded

SIZES = (65_536, 32_768, 16_384, 8_192)
WORTH = 1.02  # least speed-up over the whole head: less may be noise
_MOST_DRAFTED = 8
_ROUNDS, _WARM, _CONTEXT = 12, 2, 64
HEAD_ROUNDS = 60  # timed steps of a head on hidden states, which take a millisecond
Clock = Callable[[], float]


@dataclass(frozen=True)
class Head:
    """One size of head and its measurements.

    tokens:    ids that the head keeps; None = all.
    size:      number of these ids.
    seconds:   of a draft step.
    agreement: share of the target's tokens that the draft proposes.
    tokens_per_second: expected with the best number of draft tokens.
    """

    tokens: tuple[int, ...] | None
    size: int
    seconds: float
    agreement: float
    tokens_per_second: float


def kept_ids(
    size: int, vocab: int, always: Iterable[int], seen: Mapping[int, int] | None = None
) -> tuple[int, ...]:
    """Return the `size` most frequent ids (lower ids first where equal) and `always`, ascending."""
    counts = seen or {}
    ranked = sorted(range(vocab), key=lambda token: -counts.get(token, 0))  # stable
    return tuple(sorted({*ranked[:size], *(token for token in always if 0 <= token < vocab)}))


def sizes(vocab: int) -> list[int]:
    """Return the sizes to try: those that drop at least a quarter of the head."""
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
    """Return the cost and agreement of each size of the draft's head, the whole head first.

    load:   loads the draft with its head cut to these ids.
    always: ids that every head keeps.
    seen:   counts of ids in text of the target other than `texts`, on which the heads are compared.
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
        with_context = cut.model.head_rows is not None
        timed.append((tokens, seconds * step_ratio(whole, cut.model)))
        del cut
    progress("the draft reads", len(cuts) / (len(cuts) + 1))
    shares = agreements(whole, texts, [tokens for tokens, _ in timed], with_context=with_context)
    return tuple(
        Head(
            tokens, vocab if tokens is None else len(tokens), cost, share, expected_speed(share, cost, target)
        )
        for (tokens, cost), share in zip(timed, shares, strict=True)
    )


def agreements(
    draft: Model,
    texts: Sequence[Text],
    heads: Sequence[Sequence[int] | None],
    *,
    with_context: bool = False,
) -> list[float]:
    """Return the share of the target's tokens that the draft proposes with each head.

    The draft reads each text once. A cut head gives the same logits at the ids that it keeps, but for
    rounding.

    draft: with its whole head.
    with_context: heads also have the tokens that the text has had so far (`ContextHead`).
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
    """Return [answer, vocab]: the mask at each token, without ids that the text has had by then."""
    absent = np.repeat(mask[None], len(text.answer), axis=0)
    absent[:, [*text.prompt]] = 0.0
    for i, token in enumerate(text.answer):
        absent[i + 1 :, token] = 0.0
    return absent


def _absent(vocab: int, head: Sequence[int] | None) -> NDArray[np.float32]:
    """Return [vocab] to be added to the logits: -inf at ids that the head does not keep, else 0."""
    mask = np.zeros(vocab, dtype=np.float32)
    if head is not None:
        mask[:] = -np.inf
        mask[np.asarray(head)] = 0.0
    return mask


def step_seconds(model: Model, clock: Clock = time.perf_counter) -> float:
    """Return the median seconds of a one-token step."""
    return statistics.median(times[0] for times in _timed([model], clock))


def head_step_seconds(model: Model, clock: Clock = time.perf_counter) -> float:
    """Return the median seconds of a step of the model's head on hidden states."""
    head = model.hidden_head
    assert head is not None  # the model was loaded with it
    handle = model.open()
    try:
        states = head.begin(model.step([Row(handle, Block.chain((0, 0)), hidden="last")]).hidden_of(0))
    finally:
        model.close(handle)
    times = []
    for _ in range(_WARM + HEAD_ROUNDS):
        began = clock()
        head.draft(states, (0,), head.together)
        times.append((clock() - began) / head.together)
    return statistics.median(times[_WARM:])


def step_ratio(whole: Model, cut: Model, clock: Clock = time.perf_counter) -> float:
    """Return the cut draft's step time over the whole draft's, measured in turns so that drift cancels."""
    return statistics.median(times[1] / times[0] for times in _timed([whole, cut], clock))


def _timed(models: Sequence[Model], clock: Clock) -> list[list[float]]:
    """Return seconds of a one-token step, [rounds][models]."""
    rounds = []
    handles = [model.open() for model in models]
    context = min(_CONTEXT, *(model.max_context - 1 for model in models))
    try:
        for model, handle in zip(models, handles, strict=True):
            model.step([Row(handle, Block.chain((0,) * context), logits="last")])
            model.commit(handle, range(context))
        for _ in range(_WARM + _ROUNDS):
            times = []
            for model, handle in zip(models, handles, strict=True):
                began = clock()
                model.step([Row(handle, Block.chain((0,)))])
                times.append(clock() - began)
                model.commit(handle, ())
            rounds.append(times)
    finally:
        for model, handle in zip(models, handles, strict=True):
            model.close(handle)
    return rounds[_WARM:]


def expected_speed(agreement: float, draft_s: float, target: StepCosts) -> float:
    """Return tokens per second with the best number of draft tokens, each accepted with the same probability.

    Leviathan et al. 2211.17192, with measured times: (1 - a^(n + 1)) / (1 - a) tokens in T(n + 1) + n D.
    """
    best, tokens = 0.0, 0.0
    for num in range(_MOST_DRAFTED + 1):
        tokens += agreement**num
        best = max(best, tokens / (target.step(num + 1, 0) + num * draft_s))
    return best


def best(heads: Sequence[Head]) -> Head:
    """Return the fastest head if it beats the whole one (the first) by WORTH, else the whole one."""
    fastest = max(heads, key=lambda head: head.tokens_per_second)
    return fastest if fastest.tokens_per_second > WORTH * heads[0].tokens_per_second else heads[0]
