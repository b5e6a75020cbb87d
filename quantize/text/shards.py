"""Shards: files of dialogues that a target writes for its drafts to learn from.

Each shard has random streams of its own. Shards that exist are not written again. In exact mode a seed gives
the same text, however often writing was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from specport.quantize.text import passages, turns, writer
from specport.quantize.text.dialogues import TOP_K, Dialogue, read_shard, save_shard
from specport.quantize.text.turns import SHARD, Turn

from specport.core.ports import Model
from specport.models.cache import cache_root
from specport.progress import Progress
from specport.text.tokenizer import Tokenizer

TEXT = "text"  # the fact of `Bundle.distilled` that names the folder of the draft's text
_FORMAT = 2  # of the shards' content: to be raised when the same seed gives other text


class ShardWriter(Protocol):
    """Write shards in another place than this process."""

    def write(
        self, asked: Iterator[Sequence[Turn] | None]
    ) -> Generator[tuple[int, list[Dialogue | None]], None, None]:
        """Yield the number of a shard, counted in the order of `asked`, and its dialogues, as they come.

        asked: None in place of a shard means that no more are wanted for now.
        """
        ...


def folder_for(fingerprint: str, prompts: Sequence[str], seed: int, temperature: float = 0.0) -> Path:
    """Return the cache folder of a target's text, shared by all drafts for that target.

    fingerprint: of the target's weights. temperature: of its answers.
    """
    asked = [*prompts, turns.OPENINGS, passages.content_hash()]
    sampled = [temperature] if temperature else []
    facts = json.dumps([_FORMAT, fingerprint, asked, seed, SHARD, writer.ANSWER_TOKENS, TOP_K, *sampled])
    return cache_root() / "text" / hashlib.sha256(facts.encode()).hexdigest()[:24]


def write_shards(
    load: Callable[[], Model],
    tokenizer: Tokenizer,
    folder: Path,
    num_tokens: int | None,
    seed: int,
    prompts: Sequence[str],
    progress: Progress,
    least: int = 1,
    at_once: int = writer.AT_ONCE,
    elsewhere: ShardWriter | None = None,
    temperature: float = 0.0,
) -> list[Path]:
    """Return the first shards that hold `num_tokens` tokens of answers, `least` shards or more.

    load:       loads the target; called only where a shard is missing.
    num_tokens: None = the user's prompts are answered once each, and nothing else is asked.
    prompts:    the user's own turns.
    at_once:    as for `TextWriter`.
    elsewhere:  writes in place of the target that `load` loads.
    temperature: of the answers; 0 = greedy.

    Raises ModelError when a shard cannot be read or written.
    """
    made_up = num_tokens is not None
    total = num_tokens if num_tokens is not None else writer.ANSWER_TOKENS * len({*prompts})
    plan = turns.plan_shards(prompts, seed, made_up=made_up, temperature=temperature)
    work = _Work(folder, plan, total if made_up else math.inf, least)
    missing = work.missing()
    first = next(missing, None)
    if first is None:
        return work.paths
    present = work.num_tokens

    def show(written: int) -> None:
        progress("the target writes", min((present + written) / max(total, 1), 1.0))

    asked = itertools.chain([first], missing)
    if elsewhere is not None:
        _write_elsewhere(elsewhere, asked, work, lambda: show(work.num_written))
        return work.paths
    text_writer = writer.TextWriter(load(), tokenizer, at_once, show)
    dialogues = text_writer.write(turn for shard in asked for turn in (shard.asked if shard else (None,)))
    try:
        for dialogue in dialogues:
            work.take(dialogue)
            if work.enough:
                break
    finally:
        dialogues.close()
    return work.paths


def _write_elsewhere(
    elsewhere: ShardWriter, asked: Iterator[_Shard | None], work: _Work, show: Callable[[], None]
) -> None:
    """Take whole shards as they come; those behind a missing one are kept too."""
    begun: list[_Shard] = []

    def turns_of() -> Iterator[Sequence[Turn] | None]:
        for shard in asked:
            if shard is not None:
                begun.append(shard)
            yield shard.asked if shard else None

    show()
    written = elsewhere.write(turns_of())
    try:
        for number, dialogues in written:
            work.put(begun[number], dialogues)
            show()
            if work.enough:
                break
    finally:
        written.close()


@dataclass
class _Shard:
    """A shard that is being written, or whose file exists.

    asked:      its turns; none for a file that exists.
    num_turns:  dialogues that are still to come.
    num_tokens: of the answers so far.
    """

    path: Path
    asked: Sequence[Turn] = ()
    num_turns: int = field(init=False)
    num_tokens: int = 0
    dialogues: list[Dialogue] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_turns = len(self.asked)


class _Work:
    """Shards in their order: existing ones are counted, missing ones are written.

    plan:   name and turns of each shard.
    wanted: tokens of answers; least: number of shards. Both have to be reached.
    """

    def __init__(
        self, folder: Path, plan: Iterator[tuple[str, list[Turn]]], wanted: float, least: int
    ) -> None:
        self._folder, self._plan, self._wanted, self._least = folder, plan, wanted, least
        self._open: deque[_Shard] = deque()  # begun; the first one is not complete
        self._num_answers = self._num_answer_tokens = 0  # seen so far, to estimate what follows
        self.paths: list[Path] = []  # complete shards
        self.num_tokens = 0  # of their answers
        self.num_written = 0  # tokens of answers that came in this run

    @property
    def enough(self) -> bool:
        """Whether the complete shards are all that is wanted."""
        return self.num_tokens >= self._wanted and len(self.paths) >= self._least

    def missing(self) -> Iterator[_Shard | None]:
        """Yield the shards to write; None while those that are begun seem to be enough."""
        for name, asked in self._plan:
            while self._seems_enough():
                yield None
            path = self._folder / f"{name}.npz"
            if path.is_file():
                shard = _Shard(path)
                for dialogue in read_shard(path):
                    self._count(shard, dialogue)
                self._open.append(shard)
                self._complete()
            else:
                self._open.append(_Shard(path, asked))
                yield self._open[-1]

    def take(self, dialogue: Dialogue | None) -> None:
        """Take the dialogue of the next turn; None where the turn was too long. Raises ModelError."""
        self.put(self._open[0], [dialogue])

    def put(self, shard: _Shard, dialogues: Sequence[Dialogue | None]) -> None:
        """Take the next dialogues of a shard. Raises ModelError."""
        shard.num_turns -= len(dialogues)
        for dialogue in dialogues:
            if dialogue is not None:
                shard.dialogues.append(dialogue)
                self._count(shard, dialogue)
                self.num_written += len(dialogue.tokens) - dialogue.start
        if not shard.num_turns:
            save_shard(shard.path, shard.dialogues)
            shard.dialogues.clear()
            self._complete()

    def _count(self, shard: _Shard, dialogue: Dialogue) -> None:
        num_tokens = len(dialogue.tokens) - dialogue.start
        shard.num_tokens += num_tokens
        self._num_answer_tokens += num_tokens
        self._num_answers += 1

    def _complete(self) -> None:
        """Move complete shards from the front to the result, until that is enough."""
        while self._open and not self._open[0].num_turns and not self.enough:
            shard = self._open.popleft()
            self.paths.append(shard.path)
            self.num_tokens += shard.num_tokens

    def _seems_enough(self) -> bool:
        """Whether the shards that are begun will hold what is wanted, if answers keep their mean length."""
        mean = self._num_answer_tokens / self._num_answers if self._num_answers else writer.ANSWER_TOKENS / 2
        expected = self.num_tokens + sum(s.num_tokens + mean * s.num_turns for s in self._open)
        return expected >= self._wanted and len(self.paths) + len(self._open) >= self._least
