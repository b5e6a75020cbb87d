"""Record what the target found likely at each token of its texts, and write it when a text ends.

A recorder never breaks a generation: where it cannot write, it logs one warning and records no more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from array_api_compat import array_namespace

from specport.core.arrays import Array, to_host
from specport.core.sequence import Generation
from specport.core.verify.rules import Verdict
from specport.core.verify.verifier import VerifyRequest
from specport.errors import ModelError
from specport.outside.places import expanded
from specport.traffic.dialogues import Dialogue, TopTokens, likeliest
from specport.traffic.log import TrafficLog

TOP_K = 16
PIECE, CONTEXT = 512, 512  # most tokens of an answer in one dialogue, and of the text before them
LEAST, MOST = 4, 4096  # tokens of an answer that are recorded
# Tokens up to a rejected one that weigh more, and their weight (Draft-OPD, arXiv 2605.29343).
NEAR_REJECTION, REJECTION_WEIGHT = 4, 2.0
_log = logging.getLogger(__name__)


@dataclass
class _Text:
    """A text in progress.

    first:    position of the first recorded token.
    tops:     the target's likeliest tokens at each position from there on.
    rejected: places in `tops` at which all drafted tokens were rejected.
    """

    first: int
    tops: list[TopTokens] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)


class Recorder:
    """Record the texts of one engine in a log. The engine's lock serializes the calls."""

    def __init__(self, log: TrafficLog) -> None:
        self._traffic: TrafficLog | None = log
        self._texts: dict[int, _Text] = {}

    def watch(self, request: VerifyRequest, verdict: Verdict, logits: Array) -> None:
        """Record the tokens that a verdict commits (`verifier.Watcher`)."""
        if self._traffic is None:
            return
        try:
            self._record(request, verdict, logits)
        except Exception as error:
            self._stop(error)

    def ended(self, generation: Generation) -> None:
        """Write the text of a sequence that has ended."""
        text = self._texts.pop(generation.key, None)
        if text is None or self._traffic is None:
            return
        try:
            dialogues = [*_dialogues(generation, text)]
            if dialogues and not self._traffic.add(dialogues):
                self._traffic = None  # switched off meanwhile
        except Exception as error:
            self._stop(error)

    def outdated(self) -> None:
        """Record no more: the target is about to get other weights than those that the log is of."""
        if self._traffic is not None:
            self._end("the target has new weights")

    def _record(self, request: VerifyRequest, verdict: Verdict, logits: Array) -> None:
        start = len(request.context)
        text = self._texts.setdefault(request.key, _Text(start))
        place = start - text.first
        # An interrupted round leaves records of tokens that were never committed.
        del text.tops[place:]
        while text.rejected and text.rejected[-1] >= place:
            text.rejected.pop()
        if place != len(text.tops) or place + len(verdict.path) >= MOST:
            return
        text.tops += [_likeliest(logits[node + 1, :]) for node in (-1, *verdict.path)]
        last = verdict.path[-1] if verdict.path else -1
        if last in request.tree.parents:
            text.rejected.append(place + len(verdict.path))

    def _stop(self, error: Exception) -> None:
        self._end(error.message if isinstance(error, ModelError) else repr(error))

    def _end(self, why: str) -> None:
        self._traffic = None
        self._texts.clear()
        _log.warning("texts are no longer recorded for specport adapt: %s", why)


def recorder_for(fingerprint: str, model: str, precision: str) -> Recorder | None:
    """Return a recorder where the log of this target is on, else None.

    fingerprint: of the target's weights.
    model, precision: see `Settings`; `specport adapt` may have to load it.
    """
    log = TrafficLog(fingerprint)
    if not log.on:
        return None
    with suppress(ModelError, OSError):  # a note only
        path = expanded(model)
        log.note(model=str(path.resolve()) if path.exists() else model, precision=precision)
    return Recorder(log)


def _likeliest(row: Array) -> TopTokens:
    xp = array_namespace(row)
    return likeliest(to_host(xp.astype(row, xp.float32, copy=False)), TOP_K)


def _dialogues(generation: Generation, text: _Text) -> Iterator[Dialogue]:
    """Yield a text in pieces, each with the text before it."""
    # A text that ends inside an accepted path leaves records behind its end.
    count = min(len(text.tops), len(generation.tokens) - text.first)
    if count < LEAST:
        return
    weights = np.ones(count, dtype=np.float32)
    for place in text.rejected:
        weights[max(0, place + 1 - NEAR_REJECTION) : place + 1] = REJECTION_WEIGHT
    for start in range(0, count, PIECE):
        piece = slice(start, min(start + PIECE, count))
        begin = max(0, text.first + start - CONTEXT)
        tokens = np.asarray(generation.tokens[begin : text.first + piece.stop], dtype=np.int32)
        ids, probs = zip(*text.tops[piece], strict=True)
        first = text.first + start - begin
        yield Dialogue(tokens, first, np.stack(ids), np.stack(probs), weights=weights[piece])
