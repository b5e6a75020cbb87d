"""A language model small enough to check by hand, behind the same port as the real ones.

Stands in for a backend where only the loop around it is tested. It keeps the contract strictly: a
step, commit or truncation that a real cache could not do raises at once, and open handles are counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from specport.core.ports import Capabilities, Row, StepOutput
from specport.core.tree import TokenTree
from specport.errors import ContextFull


@dataclass
class ToyHandle:
    tokens: list[int] = field(default_factory=list)
    pending: TokenTree | None = None
    closed: bool = False

    @property
    def length(self) -> int:
        return len(self.tokens)


class ToyModel:
    """Logits depend on the last two tokens through a fixed random table [vocab, vocab, vocab].

    sharpness: how far apart the logits lie; noise: how far a draft's table is from the target's.
    """

    def __init__(
        self,
        vocab: int = 11,
        *,
        seed: int = 4,  # a text of 17 distinct pairs before it repeats
        sharpness: float = 2.0,
        noise: float = 0.0,
        max_context: int = 256,
        batch: bool = True,
        tree: bool = True,
        width: int | None = None,
        step_seconds: float = 0.0,
    ) -> None:
        table = np.random.default_rng(seed).normal(size=(vocab, vocab, vocab))
        table += noise * np.random.default_rng(seed + 1).normal(size=table.shape)
        padded = np.full((vocab, vocab, width or vocab), -30.0)
        padded[:, :, :vocab] = sharpness * table
        self.table = padded.astype(np.float32)
        self.vocab = vocab
        self.vocab_size = width or vocab
        self.max_context = max_context
        self.capabilities = Capabilities(tree=tree, batch=batch, exact=True)
        self.handles: list[ToyHandle] = []
        self.widths: list[int] = []  # nodes of every row stepped
        self._seconds = step_seconds

    @property
    def num_open(self) -> int:
        return sum(not handle.closed for handle in self.handles)

    def open(self, capacity: int = 0) -> ToyHandle:
        self.handles.append(ToyHandle())
        return self.handles[-1]

    def close(self, handle: ToyHandle) -> None:
        handle.closed = True

    def truncate(self, handle: ToyHandle, length: int) -> None:
        assert not handle.closed and 0 <= length <= handle.length
        del handle.tokens[length:]
        handle.pending = None

    def commit(self, handle: ToyHandle, kept: Sequence[int]) -> None:
        tree = handle.pending
        assert tree is not None, "commit without a step"
        path = list(kept)
        assert not path or path == tree.path(path[-1]), f"{path} is no path"
        handle.tokens += [tree.tokens[node] for node in path]
        handle.pending = None

    def step(self, rows: Sequence[Row]) -> StepOutput:
        assert rows and (len(rows) == 1 or self.capabilities.batch)
        assert len({id(row.handle) for row in rows}) == len(rows)
        if self._seconds:  # even a sleep of 0 gives the core away
            time.sleep(self._seconds)
        logits, offsets = [], [0]
        for row in rows:
            tree, handle = row.tree, row.handle
            assert isinstance(handle, ToyHandle) and not handle.closed and len(tree)
            assert tree.is_chain or self.capabilities.tree
            if handle.length + max(tree.depths()) > self.max_context:
                raise ContextFull("toy context")
            handle.pending = tree
            self.widths.append(len(tree))
            nodes = range(len(tree)) if row.logits == "all" else [len(tree) - 1]
            for node in nodes:
                text = [0, *handle.tokens, *(tree.tokens[i] for i in tree.path(node))]
                logits.append(self.table[text[-2] % self.vocab, text[-1] % self.vocab])
            offsets.append(len(logits))
        return StepOutput(np.stack(logits), tuple(offsets), 0.0)

    def greedy(self, prompt: Sequence[int], n: int, eos: frozenset[int] = frozenset()) -> list[int]:
        """Plain decoding, written without any of the code under test."""
        text = [0, *prompt]
        for _ in range(n):
            text.append(int(self.table[text[-2] % self.vocab, text[-1] % self.vocab].argmax()))
            if text[-1] in eos:
                break
        return text[1 + len(prompt) :]


class ToyCutModel(ToyModel):
    """A toy whose head is cut to `keep` (None: whole); as a `CutHeadModel` it has the rows of all ids."""

    def __init__(self, keep: Sequence[int] | None, *, head_rows: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.keep = [*range(self.vocab_size)] if keep is None else [*keep]
        self.vocab_size = len(self.keep)
        self.capabilities = replace(self.capabilities, head_rows=head_rows)
        self.fetched: list[int] = []

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        read = output.logits if self.capabilities.head_rows else None
        return replace(output, logits=output.logits[:, self.keep], head_input=read)

    def head_rows(self, tokens: Sequence[int]) -> np.ndarray:
        self.fetched += tokens
        return np.eye(self.table.shape[2], dtype=self.table.dtype)[[*tokens]]


class ToyExitModel(ToyModel):
    """A toy whose first layers draft for it: `EarlyExitModel`, with a noisier table at its exit.

    taken: tokens of every row whose first layers a step took over.
    """

    def __init__(self, *, exit_noise: float = 0.4, exit_layer: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.early = ToyModel(noise=exit_noise, **options).table
        self.capabilities = replace(self.capabilities, exit_layer=exit_layer)
        self.drafted: dict[int, list[int]] = {}  # id of a handle -> tokens
        self.taken: list[int] = []

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        logits, offsets = [], [0]
        for row in rows:
            handle, drafted = row.handle, self.drafted.setdefault(id(row.handle), [])
            assert isinstance(handle, ToyHandle) and not handle.closed and row.tree.is_chain
            if handle.length + len(drafted) + len(row.tree) > self.max_context:
                raise ContextFull("toy context")
            for token in row.tree.tokens:
                drafted.append(token)
                text = [0, *handle.tokens, *drafted]
                logits.append(self.early[text[-2] % self.vocab, text[-1] % self.vocab])
            offsets.append(len(logits))
        return StepOutput(np.stack(logits), tuple(offsets), 0.0)

    def step(self, rows: Sequence[Row]) -> StepOutput:
        for row in rows:
            drafted = self.drafted.pop(id(row.handle), [])
            same = [a == b for a, b in zip(row.tree.tokens, drafted, strict=False)]
            self.taken.append(same.index(False) if False in same else len(same))
        return super().step(rows)

    def truncate(self, handle: ToyHandle, length: int) -> None:
        self.drafted.pop(id(handle), None)
        super().truncate(handle, length)
