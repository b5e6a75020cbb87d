"""The model port: the interface that a backend implements. Knows token ids and arrays, no runtime.

Arrays are array-API arrays (https://data-apis.org/array-api) that may live on a device. Optional features are
objects or None: `Model.early_exit`, `Model.chain`, `Model.head_rows`, `Model.hidden_head`, `Model.mtp`,
`Model.slim`, `Model.prefix_blocks`, `Model.weight_updates`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import Array
from specport.core.block import Block
from specport.core.ports.hidden_head import HiddenHead
from specport.core.ports.prefix_blocks import PrefixBlocks
from specport.core.ports.weight_updates import WeightUpdates

# The tokens of a row for which a step returns logits or hidden states.
Wanted = Literal["all", "last", "none"]
# Why a row was refused: it would exceed the model's context, or the cache has no room for it.
Refusal = Literal["context", "cache"]
HEAD_INPUT = -1  # stands for a layer in `Capabilities.hidden_layers`: the input of the language-model head


@dataclass(frozen=True)
class Capabilities:
    """Hold what a loaded model can do. Callers read these values; a missing capability is not an error.

    visibility: the most general block that a row may have: a chain, a token tree, or any mask.
    forked_trees: each branch of a tree costs its whole path, not only its own tokens.
    min_width:  a row with fewer new tokens is padded to this width, and costs as much.
    batch:      a step may have several rows.
    exact:      logits do not depend on how tokens are split over steps and rows.
    gather:     `Model.commit` may keep any tokens of a block; without it, only a prefix of a chain or a path
                of a tree.
    hidden_layers: layers whose output a step can return; HEAD_INPUT may be one of them.
    buckets:    available step widths, for models of fixed shapes; empty = any width.
    conditioning: `Model.open` takes an encoder's output.
    """

    visibility: Literal["chain", "tree", "any"] = "chain"
    forked_trees: bool = False
    min_width: int = 1
    batch: bool = False
    exact: bool = False
    gather: bool = False
    hidden_layers: tuple[int, ...] = ()
    buckets: tuple[int, ...] = ()
    conditioning: bool = False

    @property
    def tree(self) -> bool:
        """Return whether rows may branch."""
        return self.visibility != "chain"


class CacheHandle(Protocol):
    """Refer to one sequence in a model's cache. The model owns it; others only read `length`.

    Methods take handles as `Any`, since each model has its own type: pass only handles that the same model
    opened.
    """

    @property
    def length(self) -> int:
        """Return the number of committed tokens in the cache."""
        ...


@dataclass(frozen=True)
class Row:
    """Hold one sequence, the tokens to append in a step, and which outputs to return.

    handle: a CacheHandle of the model that steps.
    logits: of all tokens, of the block's last token (the end of a prompt), or of none.
    hidden: the same for the states of `Capabilities.hidden_layers`; independent of `logits`.
    states: [tokens, width] what a module for multi-token prediction reads with the block's tokens
            (`Model.mtp`); None = zeros. Other models ignore it.
    """

    handle: Any
    block: Block
    logits: Wanted = "all"
    hidden: Wanted = "none"
    states: Array | None = field(default=None, compare=False)  # arrays have no plain ==


@dataclass(frozen=True)
class StepOutput:
    """Hold the result of `Model.step`. Valid until the next step of the same model.

    logits:  [total, vocab] of all sequences, concatenated; stays on the device.
    offsets: [rows + 1]; row r owns logits[offsets[r]:offsets[r + 1]].
    refused: row -> why it was not stepped. Its sequence is unchanged, and it has no part of the output.
    hidden:  layer -> [total, width], for `Capabilities.hidden_layers`, where any row asked for them.
    hidden_offsets: [rows + 1] like `offsets`, for `hidden`.
    head_input: [total, width] input of the language-model head; where the model has `head_rows`.
    seconds: time inside the runtime's inference call.
    """

    logits: Array
    offsets: tuple[int, ...]
    seconds: float = 0.0
    refused: Mapping[int, Refusal] = field(default_factory=dict)
    hidden: Mapping[int, Array] = field(default_factory=dict)
    hidden_offsets: tuple[int, ...] = ()
    head_input: Array | None = None

    def logits_of(self, row: int) -> Array:
        """Return the logits [n, vocab] of a row."""
        return self.logits[self.offsets[row] : self.offsets[row + 1], :]

    def hidden_of(self, row: int) -> dict[int, Array]:
        """Return the hidden states [n, width] of a row by layer; empty where none were asked for."""
        if not self.hidden:
            return {}
        start, stop = self.hidden_offsets[row : row + 2]
        return {layer: states[start:stop, :] for layer, states in self.hidden.items()}


class EarlyExit(Protocol):
    """Draft with the model's own first layers: LayerSkip (arXiv 2404.16710).

    Draft and target share weights and cache. Drafted tokens write their keys and values of the first `layer`
    layers where a step would write them. The output of these layers (the paper's exit queries) is kept, so
    that the verifying step runs the remaining layers only.
    """

    @property
    def layer(self) -> int:
        """Return the number of layers that draft."""
        ...

    def draft(self, rows: Sequence[Row]) -> StepOutput:
        """Append each row's chain behind the sequence's tokens drafted so far, and score it at the exit.

        The logits are the model's final norm and head on the output of the first layers. There are no hidden
        states. A row may be padded as in `step`. Nothing is committed: the next `step` reuses the longest
        common prefix of its block and the drafted tokens, and computes other tokens from the first layer.
        `step`, `commit` and `truncate` discard the draft. The logits of a step do not depend on what was
        reused, in exact mode to the bit.

        Raises ValueError for a row that is not a chain. Refuses rows as `step` does.
        """
        ...


@dataclass(frozen=True)
class Chains:
    """Hold the result of `GreedyChain.draft`, on the host.

    tokens:      [rows, depth] token ids, also where the model's head is cut.
    confidences: [rows, depth] the model's probability of each token among the requested columns.
    seconds:     time inside the runtime's calls.
    """

    tokens: NDArray[np.int64]
    confidences: NDArray[np.float32]
    seconds: float = 0.0


class GreedyChain(Protocol):
    """Draft a greedy chain on the device: each argmax feeds the next step, and the host waits only once."""

    @property
    def max_tokens(self) -> int:
        """Return the maximum number of tokens of a row."""
        ...

    def draft(self, rows: Sequence[Row], depth: int, vocab: int | None = None) -> Chains | None:
        """Append each row's chain, then `depth` greedy tokens.

        The last token is not read into the cache. The row's tokens and the other drafted ones are read, and
        wait for `commit` as the tokens of one chain. Returns None where the cache has no room for a row;
        nothing has changed then.

        vocab: number of leading columns of the logits to choose from; None = all.

        Raises ValueError for a row that is not a chain or has more than `max_tokens` tokens.
        """
        ...


class HeadRows(Protocol):
    """Look up rows of the whole head, for a model whose head is cut to a part of the ids."""

    def __call__(self, tokens: Sequence[int]) -> Array:
        """Return the [tokens, width] rows of the whole head; their products with `head_input` are logits."""
        ...


class Model(Protocol):
    """Run a loaded language model on a device; implemented by a backend. Not thread-safe."""

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def vocab_size(self) -> int:
        """Return the width of the logits; may be padded beyond the tokenizer's vocabulary."""
        ...

    @property
    def max_context(self) -> int:
        """Return the maximum length of a sequence, prompt and output together, in tokens."""
        ...

    @property
    def early_exit(self) -> EarlyExit | None: ...

    @property
    def chain(self) -> GreedyChain | None: ...

    @property
    def head_rows(self) -> HeadRows | None: ...

    @property
    def hidden_head(self) -> HiddenHead | None: ...

    @property
    def mtp(self) -> Model | None:
        """Return the model's own module for multi-token prediction (DeepSeek-V3, arXiv 2412.19437).

        It drafts, with a cache of its own. From a token, and the input of this model's head at the token
        before it (`Row.states`), it gives the logits of the token after it. Its own states, which it returns
        as HEAD_INPUT, stand for the head's input where the next token is a drafted one.
        """
        ...

    @property
    def slim(self) -> Model | None:
        """Return this model without some of its layers: a cheap verifier (VIA-SD, arXiv 2606.12243).

        It has this model's weights, which are in memory once, and a cache of its own.
        """
        ...

    @property
    def prefix_blocks(self) -> PrefixBlocks | None: ...

    @property
    def weight_updates(self) -> WeightUpdates | None: ...

    @property
    def cache_usage(self) -> float | None:
        """Return the share, 0 to 1, that open sequences hold of the most that the cache may take.

        None = there is no known limit. What is only kept for later sequences does not count. Any thread may
        ask, also during a step.
        """
        ...

    def room(self, handle: Any = None) -> int:
        """Return how many tokens this sequence (None = a new one) could take now if no other one grew.

        Bounded by the model's context; includes memory that the cache may still allocate.
        """
        ...

    def open(self, capacity: int = 0, conditioning: Any = None) -> CacheHandle:
        """Open a new, empty sequence and reserve room for `capacity` tokens; it grows on demand.

        conditioning: an encoder's output that every token attends to (`Capabilities.conditioning`).

        Raises ContextFull where `room()` is smaller than `capacity`, and ValueError for conditioning that the
        model does not take.
        """
        ...

    def fork(self, handle: Any, length: int) -> CacheHandle:
        """Open a sequence that begins with the first `length` committed tokens of another.

        The common part is shared where the cache allows it; later writes are separate.

        Raises ValueError for a length beyond the committed tokens, and ContextFull where there is no room.
        """
        ...

    def step(self, rows: Sequence[Row]) -> StepOutput:
        """Append each row's block to its sequence and score it. Nothing is committed yet.

        A row that does not fit is refused (`StepOutput.refused`); the other rows are stepped.

        Raises ValueError for a block that the capabilities rule out.
        """
        ...

    def commit(self, handle: Any, nodes: Sequence[int]) -> None:
        """Keep these tokens of the last step's block, in ascending order; discard its other tokens.

        Raises ValueError for tokens that cannot be kept (`Capabilities.gather`).
        """
        ...

    def truncate(self, handle: Any, length: int) -> None:
        """Discard every committed token from position `length` on."""
        ...

    def close(self, handle: Any) -> None:
        """Free the sequence's cache. Closing twice is harmless."""
        ...
