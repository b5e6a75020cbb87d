"""A language model small enough to check by hand, behind the same port as the real ones.

Stands in for a backend where only the loop around it is tested. It keeps the contract strictly: a
step, commit or truncation that a real cache could not do raises at once, and open handles are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from specport.core.ports import (
    Block,
    Capabilities,
    EarlyExit,
    GreedyChain,
    HeadRows,
    HiddenHead,
    Model,
    PrefixBlocks,
    Refusal,
    Row,
    StepOutput,
    WeightUpdates,
)
from specport.errors import ContextFull

_UNBOUNDED = 1 << 40


@dataclass(eq=False)
class Cell:
    """Room for one token in the cache; forked sequences share cells."""

    token: int
    users: int = 1


@dataclass(eq=False)
class ToyHandle:
    """One sequence: its cells, the block of its last step, and tokens that an early exit has drafted."""

    reserved: int = 0
    cells: list[Cell] = field(default_factory=list)
    pending: Block | None = None
    drafted: list[int] = field(default_factory=list)
    closed: bool = False
    broken: bool = False  # a fault in the middle of a step: what it holds is not known

    @property
    def tokens(self) -> list[int]:
        return [cell.token for cell in self.cells]

    @property
    def length(self) -> int:
        return len(self.cells)

    @property
    def extra(self) -> int:
        """Tokens of cache that it holds beside its committed ones."""
        pending = len(self.pending) if self.pending is not None else 0
        return max(self.reserved - len(self.cells), pending, len(self.drafted))


class ToyModel:
    """Logits depend on a token and the last other one that it sees: a random table [vocab, vocab, vocab].

    sharpness:    how far apart the logits lie; noise: how far a draft's table is from the target's.
    tree:         whether rows may branch; any_mask: whether they may have any mask and keep any tokens of it.
    cache_tokens: tokens that all sequences together may hold; None = no bound.
    hidden_layers: layer l's state of a token is one-hot: token + l, modulo the vocabulary.
    during_step:  called in the middle of every step, for faults and interruptions.
    """

    early_exit: EarlyExit | None = None
    chain: GreedyChain | None = None
    head_rows: HeadRows | None = None
    hidden_head: HiddenHead | None = None
    mtp: Model | None = None
    slim: Model | None = None
    prefix_blocks: PrefixBlocks | None = None
    weight_updates: WeightUpdates | None = None

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
        any_mask: bool = False,
        width: int | None = None,
        step_seconds: float = 0.0,
        cache_tokens: int | None = None,
        hidden_layers: tuple[int, ...] = (),
    ) -> None:
        table = np.random.default_rng(seed).normal(size=(vocab, vocab, vocab))
        table += noise * np.random.default_rng(seed + 1).normal(size=table.shape)
        padded = np.full((vocab, vocab, width or vocab), -30.0)
        padded[:, :, :vocab] = sharpness * table
        self.table = padded.astype(np.float32)
        self.vocab = vocab
        self.vocab_size = width or vocab
        self.max_context = max_context
        self.capabilities = Capabilities(
            visibility="any" if any_mask else "tree" if tree else "chain",
            batch=batch, exact=True, gather=any_mask, hidden_layers=hidden_layers,
        )  # fmt: skip
        self.handles: list[ToyHandle] = []  # closed ones too
        self._open: list[ToyHandle] = []
        self.widths: list[int] = []  # tokens of every row stepped
        self.steps: list[int] = []  # rows of every step
        self.during_step: Callable[[], object] | None = None
        self.cache_tokens = _UNBOUNDED if cache_tokens is None else cache_tokens
        self._num_cells = 0
        self._seconds = step_seconds

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_used(self) -> int:
        """Tokens of cache that are taken."""
        return self._num_cells + sum(handle.extra for handle in self._open)

    @property
    def cache_usage(self) -> float | None:
        return None if self.cache_tokens == _UNBOUNDED else self.num_used / self.cache_tokens

    def room(self, handle: ToyHandle | None = None) -> int:
        assert handle is None or not handle.closed
        length, own = (handle.length, handle.extra) if handle is not None else (0, 0)
        return min(self.max_context - length, self.cache_tokens - self.num_used + own)

    def open(self, capacity: int = 0, conditioning: Any = None) -> ToyHandle:
        if conditioning is not None:
            raise ValueError("the toy takes no conditioning")
        if capacity > self.room():
            raise ContextFull("toy cache")
        return self._opened(ToyHandle(capacity))

    def fork(self, handle: ToyHandle, length: int) -> ToyHandle:
        assert not handle.closed
        if not 0 <= length <= handle.length:
            raise ValueError(f"{length} of {handle.length} tokens")
        cells = handle.cells[:length]
        for cell in cells:
            cell.users += 1
        return self._opened(ToyHandle(cells=cells))

    def close(self, handle: ToyHandle) -> None:
        if not handle.closed:
            self._free(handle, 0)
            self._open.remove(handle)
            handle.closed, handle.pending, handle.drafted = True, None, []

    def truncate(self, handle: ToyHandle, length: int) -> None:
        assert not handle.closed and 0 <= length <= handle.length
        self._free(handle, length)
        handle.pending, handle.reserved, handle.drafted = None, 0, []

    def commit(self, handle: ToyHandle, nodes: Sequence[int]) -> None:
        block = handle.pending
        assert not handle.closed and block is not None, "commit without a step"
        kept = block.checked_nodes(nodes)
        if not self.capabilities.gather and not _is_path(block, kept):
            raise ValueError(f"{kept} is no path")
        handle.cells += [Cell(block.tokens[node]) for node in kept]
        self._num_cells += len(kept)
        handle.pending, handle.drafted = None, []

    def step(self, rows: Sequence[Row]) -> StepOutput:
        assert rows and (len(rows) == 1 or self.capabilities.batch)
        assert len({id(row.handle) for row in rows}) == len(rows)
        for row in rows:
            self._check(row)
        refused: dict[int, Refusal] = {}
        for i, row in enumerate(rows):
            why = self._refusal(row.handle, row.block)
            if why is not None:
                refused[i] = why
                continue
            row.handle.pending, row.handle.drafted = row.block, []
            self.widths.append(len(row.block))
        stepped = [row.handle for i, row in enumerate(rows) if i not in refused]
        for handle in stepped:
            handle.broken = True
        if stepped:
            self.steps.append(len(rows) - len(refused))
            if self.during_step is not None:
                self.during_step()
            if self._seconds:  # even a sleep of 0 gives the core away
                time.sleep(self._seconds)
        for handle in stepped:
            handle.broken = False
        return self._output(rows, refused)

    def greedy(self, prompt: Sequence[int], n: int, eos: frozenset[int] = frozenset()) -> list[int]:
        """Plain decoding, written without any of the code under test."""
        text = [0, *prompt]
        for _ in range(n):
            text.append(int(self.table[text[-2] % self.vocab, text[-1] % self.vocab].argmax()))
            if text[-1] in eos:
                break
        return text[1 + len(prompt) :]

    def hidden_row(self, layer: int, token: int) -> np.ndarray:
        """[vocab] what a layer gives for a token."""
        return np.eye(self.vocab, dtype=np.float32)[(token + layer) % self.vocab]

    def _opened(self, handle: ToyHandle) -> ToyHandle:
        self.handles.append(handle)
        self._open.append(handle)
        return handle

    def _check(self, row: Row) -> None:
        assert isinstance(row.handle, ToyHandle) and not row.handle.closed and len(row.block)
        assert not row.handle.broken, "a fault has left this sequence half written"
        visibility = self.capabilities.visibility
        if visibility == "chain" and not row.block.is_chain:
            raise ValueError("rows are chains here")
        if visibility == "tree" and row.block.parents() is None:
            raise ValueError("rows are trees here")

    def _refusal(self, handle: ToyHandle, block: Block, behind: int = 0) -> Refusal | None:
        """Return why a block does not fit behind `behind` drafted tokens; None where it does."""
        if handle.length + behind + block.reach > self.max_context:
            return "context"
        if behind + len(block) > self.cache_tokens - self.num_used + handle.extra:
            return "cache"
        return None

    def _output(self, rows: Sequence[Row], refused: dict[int, Refusal]) -> StepOutput:
        logits: list[np.ndarray] = []
        states: dict[int, list[np.ndarray]] = {layer: [] for layer in self.capabilities.hidden_layers}
        offsets, hidden_offsets, num_hidden = [0], [0], 0
        for i, row in enumerate(rows):
            if i not in refused:
                logits += [self._logits(row, node) for node in _asked(row, row.logits)]
                asked = _asked(row, row.hidden)
                num_hidden += len(asked)
                for layer, found in states.items():
                    found += [self.hidden_row(layer, row.block.tokens[node]) for node in asked]
            offsets.append(len(logits))
            hidden_offsets.append(num_hidden)
        output = StepOutput(_stack(logits, self.table.shape[2]), tuple(offsets), refused=refused)
        if any(row.hidden != "none" for row in rows):
            hidden = {layer: _stack(found, self.vocab) for layer, found in states.items()}
            output = replace(output, hidden=hidden, hidden_offsets=tuple(hidden_offsets))
        return output

    def _logits(self, row: Row, node: int) -> np.ndarray:
        cells, block = row.handle.cells, row.block
        seen = range(node) if block.visible is None else np.flatnonzero(block.visible[node]).tolist()
        before = max((j for j in seen if j != node), key=lambda j: (block.positions[j], j), default=None)
        last = block.tokens[before] if before is not None else cells[-1].token if cells else 0
        return self.table[last % self.vocab, block.tokens[node] % self.vocab]

    def remember(self, token: int) -> Cell:
        """Take a cell that no sequence has, for one user."""
        self._num_cells += 1
        return Cell(token)

    def forget(self, cell: Cell) -> None:
        """Count a cell's memory as free where nobody uses it any more."""
        self._num_cells -= not cell.users

    def _free(self, handle: ToyHandle, length: int) -> None:
        for cell in handle.cells[length:]:
            cell.users -= 1
            self.forget(cell)
        del handle.cells[length:]


def _is_path(block: Block, kept: Sequence[int]) -> bool:
    """Whether these tokens are a path from the top of a tree down."""
    parents = block.parents()
    return parents is not None and [parents[node] for node in kept] == [-1, *kept[:-1]][: len(kept)]


def _asked(row: Row, wanted: str) -> range:
    n = len(row.block)
    return {"all": range(n), "last": range(n - 1, n), "none": range(0)}[wanted]


def _stack(rows: Sequence[np.ndarray], width: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)


class ToyCutModel(ToyModel):
    """A toy whose head is cut to `keep` (None: whole). head_rows: whether it has the rows of all ids."""

    def __init__(self, keep: Sequence[int] | None, *, head_rows: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.keep = [*range(self.vocab_size)] if keep is None else [*keep]
        self.vocab_size = len(self.keep)
        self.head_rows = self._rows if head_rows else None
        self.fetched: list[int] = []

    def step(self, rows: Sequence[Row]) -> StepOutput:
        output = super().step(rows)
        read = output.logits if self.head_rows else None
        return replace(output, logits=output.logits[:, self.keep], head_input=read)

    def _rows(self, tokens: Sequence[int]) -> np.ndarray:
        self.fetched += tokens
        return np.eye(self.table.shape[2], dtype=self.table.dtype)[[*tokens]]


class ToyExitModel(ToyModel):
    """A toy whose first layers draft for it, with a noisier table at its exit.

    taken: drafted tokens of every stepped row that the step took over.
    """

    def __init__(self, *, exit_noise: float = 0.4, exit_layer: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.early = ToyModel(noise=exit_noise, **options).table
        self.early_exit = ToyExit(self, exit_layer)
        self.taken: list[int] = []

    @property
    def drafted(self) -> list[list[int]]:
        """What open sequences have drafted and not verified."""
        return [handle.drafted for handle in self.handles if handle.drafted]

    def step(self, rows: Sequence[Row]) -> StepOutput:
        taken = [row.block.beginning(row.handle.drafted) for row in rows]
        output = super().step(rows)
        self.taken += [n for i, n in enumerate(taken) if i not in output.refused]
        return output


class ToyExit:
    """The exit of a `ToyExitModel`, as `EarlyExit` says."""

    def __init__(self, model: ToyExitModel, layer: int) -> None:
        self._model, self.layer = model, layer

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        model = self._model
        logits: list[np.ndarray] = []
        offsets, refused = [0], {}
        for i, row in enumerate(rows):
            handle = row.handle
            assert isinstance(handle, ToyHandle) and not handle.closed
            if not row.block.is_chain:
                raise ValueError("drafts are chains here")
            why = model._refusal(handle, row.block, len(handle.drafted))
            if why is not None:
                refused[i] = why
            else:
                text = [0, *handle.tokens, *handle.drafted, *row.block.tokens]
                first = len(text) - len(row.block)
                logits += [
                    model.early[text[first + n - 1] % model.vocab, text[first + n] % model.vocab]
                    for n in _asked(row, row.logits)
                ]
                handle.drafted += row.block.tokens
            offsets.append(len(logits))
        return StepOutput(_stack(logits, model.early.shape[2]), tuple(offsets), refused=refused)
