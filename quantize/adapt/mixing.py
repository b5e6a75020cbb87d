"""What a draft learns from: half its user's own traffic, half old text, and what is held out of both.

The mixture is written to the working directory, so that an adaptation that is resumed learns from the same
text although the log has changed meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from msgspec import Struct

from specport.errors import InvalidInput, ModelError
from specport.models.atomic import write_json
from specport.outside import Format
from specport.outside.numbers import Count, Positive
from specport.traffic.dialogues import Dialogue, read_shard, save_shard
from specport.traffic.log import TrafficLog

LEAST_TEXTS, LEAST_TOKENS = 8, 256  # of the log, without which nothing can be learned or judged
HOLD_OUT_EVERY = 5  # every fifth text of the log is held out
HELD_OUT_TOKENS = 2048  # about so many tokens of answers are judged, of own and of old text each
MOST_EPOCHS = 3.0
PLAN, TRAIN = "mixture.json", "train.npz"
OWN, OLD, BOTH = "held-own.npz", "held-old.npz", "held-both.npz"


@dataclass(frozen=True)
class Mixture:
    """A mixture in the folder where it was written.

    own_tokens, old_tokens: tokens of answers to learn from. epochs: times that each text is to be read.
    notes: for the user, as of files that were skipped.
    """

    folder: Path
    own_tokens: int
    old_tokens: int
    epochs: float
    notes: tuple[str, ...] = ()

    @property
    def shards(self) -> list[str]:
        """Return the files for `draft.distil_draft`, which holds the first one out."""
        return [str(self.folder / BOTH), str(self.folder / TRAIN)]

    @property
    def held_out_own(self) -> list[Dialogue]:
        return read_shard(self.folder / OWN)

    @property
    def held_out_old(self) -> list[Dialogue]:
        return read_shard(self.folder / OLD)

    @classmethod
    def stored(cls, folder: Path) -> Mixture | None:
        """Return the mixture that was written to a folder; None where it is missing or incomplete."""
        found = _PLAN.find(folder / PLAN)
        if found is None:
            return None
        return cls(folder, found.own_tokens, found.old_tokens, found.epochs, found.notes)


class _Stored(Struct):
    own_tokens: Count
    old_tokens: Count
    epochs: Positive
    notes: tuple[str, ...]


_PLAN = Format(_Stored, "the plan of a mixture")


@dataclass(frozen=True)
class Traffic:
    """The texts of a log, oldest first: to learn from, and held out. notes: see `Mixture`."""

    to_learn: tuple[Dialogue, ...]
    held_out: tuple[Dialogue, ...]
    notes: tuple[str, ...] = ()


def read(log: TrafficLog) -> Traffic:
    """Return the texts of a log. Damaged files are skipped with a note.

    Raises InvalidInput where there are too few.
    """
    texts: list[list[Dialogue]] = []
    seen: set[bytes] = set()
    damaged: list[str] = []
    for path in log.files():
        try:
            found = read_shard(path)
        except ModelError as error:
            damaged.append(error.message)
            continue
        new = [d for d in found if d.tokens.tobytes() not in seen]
        seen |= {d.tokens.tobytes() for d in new}
        if new:
            texts.append(new)
    tokens = sum(num_answer_tokens(text) for text in texts)
    if len(texts) < LEAST_TEXTS or tokens < LEAST_TOKENS:
        raise InvalidInput(
            f"the log has {len(texts)} different texts with {tokens} tokens; "
            f"{LEAST_TEXTS} with {LEAST_TOKENS} tokens are the least to learn from",
            "use specport run for a while, and look at specport adapt status",
        )
    notes = (f"{len(damaged)} texts were skipped: {damaged[0]}",) if damaged else ()
    held_out = [d for text in texts[HOLD_OUT_EVERY // 2 :: HOLD_OUT_EVERY] for d in text]
    kept = [d for i, text in enumerate(texts) if i % HOLD_OUT_EVERY != HOLD_OUT_EVERY // 2 for d in text]
    return Traffic(tuple(kept), tuple(held_out), notes)


def write(traffic: Traffic, old: Sequence[Dialogue], most_tokens: float, folder: Path) -> Mixture:
    """Write the mixture of own traffic and old text to a folder, where `Mixture.stored` finds it.

    old:         the first ones are held out.
    most_tokens: to read in training, prompts included and texts that are read twice counted twice.
    Raises InvalidInput where there is too little old text, and ModelError where a file cannot be written.
    """
    held_old = _up_to(old, min(HELD_OUT_TOKENS, num_answer_tokens(old) / HOLD_OUT_EVERY))
    rest = old[len(held_old) :]
    if not rest:
        raise InvalidInput("there is too little old text to learn from", "name the target with --model")
    own = _up_to([*traffic.to_learn][::-1], most_tokens / 2, whole=True)  # the newest
    own_total = sum(len(d.tokens) for d in own)
    shuffled = [*rest]
    random.Random(0).shuffle(shuffled)
    learned = _up_to(shuffled, num_answer_tokens(own))
    total = own_total + sum(len(d.tokens) for d in learned)
    epochs = min(MOST_EPOCHS, max(1.0, most_tokens / total))
    held_own = _spread(traffic.held_out, HELD_OUT_TOKENS)
    parts = {OWN: held_own, OLD: held_old, BOTH: [*held_own, *held_old], TRAIN: [*own, *learned]}
    # The log has fewer likely tokens than old text; all texts of a batch need equally many.
    width = min(d.top_ids.shape[1] for texts in parts.values() for d in texts)
    for name, texts in parts.items():
        save_shard(folder / name, [_narrowed(d, width) for d in texts], lasting=False)
    made = Mixture(folder, num_answer_tokens(own), num_answer_tokens(learned), epochs, traffic.notes)
    write_json(folder / PLAN, {**asdict(made), "folder": None})  # last, as it marks a complete mixture
    return made


def num_answer_tokens(texts: Sequence[Dialogue]) -> int:
    """Return the number of tokens of the answers."""
    return sum(len(d.tokens) - d.start for d in texts)


def _up_to(texts: Sequence[Dialogue], tokens: float, *, whole: bool = False) -> list[Dialogue]:
    """Return the first texts that together have so many tokens of answers, or of prompts too if `whole`."""
    found: list[Dialogue] = []
    count = 0
    for text in texts:
        if found and count >= tokens:
            break
        found.append(text)
        count += len(text.tokens) - (0 if whole else text.start)
    return found


def _spread(texts: Sequence[Dialogue], tokens: float) -> list[Dialogue]:
    """Return evenly spread texts that together have about so many tokens of answers."""
    step = max(1, round(num_answer_tokens(texts) / tokens))
    return [*texts[::step]]


def _narrowed(text: Dialogue, width: int) -> Dialogue:
    """Return a dialogue with the `width` likeliest tokens at each place."""
    return replace(text, top_ids=text.top_ids[:, :width], top_probs=text.top_probs[:, :width])
