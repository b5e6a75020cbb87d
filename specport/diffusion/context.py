"""The committed text of one sequence as one model reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import to_host
from specport.core.block import Block
from specport.core.ports import Row, Wanted
from specport.core.sampling.processors import as_float
from specport.diffusion.ports import DiffusionModel
from specport.errors import ContextFull, InvalidInput

WIDEST = 64  # most rows of a step with a mask, where the model names no widths

Logits = NDArray[np.floating]


class Context:
    """Hold a model's cache of a text, and the text that is to be read with the next step.

    cached: whether what was read is kept. Otherwise each step reads the whole text again: the un-cached
            baseline. A model with the context "full" is always read anew: its states depend on what follows.
    vocab:  width of the logits; None = the model's own. Further columns are cut, missing ones are -inf, and
            tokens that the model does not have are read as masks.

    Committed text is read once its block is complete, in one step with the rows that come behind it.
    `num_steps` counts steps, those that only read a block too, but not those that read the prompt or, without
    a cache, the whole text. `seconds` is the time in the runtime.
    """

    def __init__(self, model: DiffusionModel, cached: bool = True, vocab: int | None = None) -> None:
        self.facts = model.facts
        self._vocab = vocab
        self._model = model.model
        self._cached = cached and model.facts.context != "full"
        self._handle: Any = None
        self._chunks: list[tuple[int, ...]] = []  # the whole text, by what attends to one another
        self._read = 0  # chunks in the cache
        self.length = 0
        self.num_steps, self.seconds = 0, 0.0

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that attend to one another, where the model's context is "blocks"."""
        if tokens:
            self._chunks.append(tuple(tokens))
            self.length += len(tokens)

    def start(self, prompt: Sequence[int], whole_blocks: bool, block_length: int) -> list[int]:
        """Append a prompt in blocks; return its last tokens where they fill no block and `whole_blocks`."""
        full = len(prompt) // block_length * block_length
        for at in range(0, full, block_length):
            self.extend(prompt[at : at + block_length])
        if whole_blocks:
            return list(prompt[full:])
        self.extend(prompt[full:])
        return []

    def step(self, block: Block) -> Logits:
        """Return the [rows, vocab] logits of rows behind the text. They are not kept.

        Raises ContextFull where the model has no room for them, and InvalidInput where its steps are
        narrower.
        """
        if self._handle is None:
            self._handle = self._model.open()
        if not self._cached:
            self._model.truncate(self._handle, 0)
            self._read = 0
        if self.facts.context == "full":
            self.num_steps += 1
            return self._whole(block)
        self._catch_up(len(block))
        self.num_steps += 1
        unread = self._chunks[self._read :]
        rows = self._joined(unread, block)
        try:
            logits = self._run(rows, "all")
        except ValueError as error:
            raise InvalidInput(
                f"a block is too wide for a step of this model: {error}",
                "choose a smaller --block-length, or --verify-layout same-step",
            ) from error
        self._model.commit(self._handle, range(len(rows) - len(block)))
        self._read = len(self._chunks)
        return logits[len(rows) - len(block) :]

    def close(self) -> None:
        """Free the cache."""
        if self._handle is not None:
            self._model.close(self._handle)
            self._handle = None

    def _catch_up(self, beside: int) -> None:
        """Read text in steps of its own until the rest fits beside `beside` rows."""
        most = max(self._model.capabilities.buckets, default=WIDEST)
        causal = self.facts.context == "causal"
        while True:
            sizes = [len(chunk) for chunk in self._chunks[self._read :]]
            if not sizes:
                return
            # The last chunks are read with the rows behind them, as long as they are few.
            if sum(sizes) + beside <= most and sum(sizes) <= 2 * max(beside, *sizes):
                return
            taken = len(sizes) if causal else 0
            if not causal:
                total = 0
                while taken < len(sizes) and total + sizes[taken] <= most:
                    total += sizes[taken]
                    taken += 1
            if not taken:
                raise ContextFull(f"a block of {sizes[0]} tokens is wider than the model's steps of {most}")
            rows = self._joined(self._chunks[self._read : self._read + taken], None)
            self._run(rows, "none")
            self._model.commit(self._handle, range(len(rows)))
            self._read += taken
            self.num_steps += self._cached and self.num_steps > 0

    def _joined(self, chunks: Sequence[tuple[int, ...]], block: Block | None) -> Block:
        """Return chunks and the rows behind them as one block."""
        text = [token for chunk in chunks for token in chunk]
        if self.facts.context == "causal":
            if block is None:
                return Block.chain(text)
            seen = np.tri(len(text), dtype=np.bool_)
        else:
            number = np.repeat(np.arange(len(chunks)), [len(chunk) for chunk in chunks])
            seen = number[None] <= number[:, None]
        if block is None:
            return Block(tuple(text), tuple(range(len(text))), seen)
        n, own = len(text), len(block)
        visible = np.zeros((n + own, n + own), dtype=np.bool_)
        visible[:n, :n] = seen
        visible[n:, :n] = True
        visible[n:, n:] = np.tri(own, dtype=np.bool_) if block.visible is None else block.visible
        positions = (*range(n), *(n + place for place in block.positions))
        return Block((*text, *block.tokens), positions, visible)

    def _whole(self, block: Block) -> Logits:
        """Step the whole text with the rows behind it; all attend to one another."""
        text = [token for chunk in self._chunks for token in chunk]
        n = len(text) + len(block)
        rows = Block((*text, *block.tokens), tuple(range(n)), np.ones((n, n), dtype=np.bool_))
        try:
            logits = self._run(rows, "all")
        except ValueError as error:  # a model whose steps are narrower than this text
            raise ContextFull(str(error), "ask for fewer tokens, or shorten the prompt") from error
        first = len(text) - self.facts.shifted
        return logits[first : first + len(block)]

    def _run(self, rows: Block, wanted: Wanted) -> Logits:
        own = self._model.vocab_size
        if any(token >= own for token in rows.tokens):
            known = tuple(token if token < own else self.facts.mask_id for token in rows.tokens)
            rows = replace(rows, tokens=known)
        output = self._model.step([Row(self._handle, rows, logits=wanted)])
        if output.refused:
            raise ContextFull(
                f"a text of {self.length} tokens and the block behind it do not fit: {output.refused[0]}",
                "shorten the prompt, ask for fewer tokens or allow more with --cache-memory",
            )
        self.seconds += output.seconds
        logits = to_host(as_float(output.logits))[:, : self._vocab]
        missing = (self._vocab or 0) - logits.shape[1]
        return logits if missing <= 0 else np.pad(logits, ((0, 0), (0, missing)), constant_values=-np.inf)
