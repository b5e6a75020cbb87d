"""A paged model whose tokens attend to an encoder's output as well: the decoder of an encoder-decoder.

Each sequence belongs to a window: what an encoder gave for one piece of input. The window's keys and values
are computed once, when a sequence is opened, and shared by its forks. Those of all windows lie in one array
for each layer, so that a step takes them without a copy; the arrays have no gaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from specport.backends.openvino.paged.batch import WINDOWS
from specport.backends.openvino.paged.model import PagedModel, PagedSequence
from specport.backends.openvino.paged.segments import Segment
from specport.backends.openvino.request import Array, Request

from specport.core.block import Block
from specport.core.ports import Row
from specport.errors import ContextFull

_SHARE = 0.6  # of the cache's memory, at most, for windows
_MOST_WINDOWS = 64
_READ = 32  # tokens of a step that reads attention weights


@dataclass(eq=False)
class Window:
    """Hold where a window's keys and values are, and how many sequences have it."""

    place: int
    users: int = 1


@dataclass
class ConditionedSequence(PagedSequence):
    """Hold the window that a sequence belongs to; None where it is closed."""

    window: Window | None = field(default=None)


class WindowPool:
    """Keys and values [windows, heads, frames, width] of all open windows, layer by layer.

    cross:   gives them for one encoder's output.
    decoder: they are bound to its inputs of the same names.
    most:    windows at a time. turned: whether keys are [windows, heads, width, frames].
    """

    def __init__(
        self, cross: Request, decoder: Request, most_bytes: int | None, *, turned: bool = False
    ) -> None:
        self._cross, self._decoder, self._turned = cross, decoder, turned
        shapes = {port.any_name: list(port.get_shape()) for port in cross.compiled.outputs}
        self._sizes = {name: tuple(shape[1:]) for name, shape in shapes.items()}
        self.window_bytes = 4 * sum(int(np.prod(size)) for size in self._sizes.values())
        self.most = _MOST_WINDOWS
        if most_bytes is not None:
            # While the arrays grow, the old and the new one of a layer are there together.
            self.most = min(self.most, max(1, most_bytes // self.window_bytes))
        self.windows: list[Window] = []
        self._arrays: dict[str, NDArray[np.float32]] = {}
        self._room = 0
        self._bound: tuple[int, int] | None = None
        (port,) = cross.compiled.inputs
        self.input_shape = tuple(port.get_shape())[1:]

    def open(self, states: NDArray[np.float32]) -> Window:
        """Return a new window for an encoder's output [frames, width]. Raises ContextFull."""
        place = len(self.windows)
        if place >= self.most:
            raise ContextFull(f"there is no room for more than {self.most} windows")
        if place >= self._room:
            self._grow(min(self.most, max(1, 2 * self._room)))
        self._cross({"states": states[None]})
        for name, array in self._arrays.items():
            array[place] = self._cross.output(name).data[0]
        window = Window(place)
        self.windows.append(window)
        return window

    def close(self, window: Window) -> None:
        """Give up one use of a window; the last one's place is taken by the window at the end."""
        window.users -= 1
        if window.users:
            return
        last = self.windows.pop()
        if last is not window:
            for array in self._arrays.values():
                array[window.place] = array[last.place]
            last.place, self.windows[window.place] = window.place, last

    def keys(self, window: Window, layer: int) -> NDArray[np.float32]:
        """Return the keys [heads, frames, width] of a layer."""
        found: NDArray[np.float32] = self._arrays[f"cross_key.{layer}"][window.place]
        return found.transpose(0, 2, 1) if self._turned else found

    def bind(self, first: int, count: int) -> None:
        """Let the decoder read these windows."""
        if self._bound == (first, count):
            return
        for name, array in self._arrays.items():
            self._decoder.bind(name, ov.Tensor(array[first : first + count], shared_memory=True))
        self._bound = first, count

    def _grow(self, room: int) -> None:
        self._bound = None
        for name, size in self._sizes.items():
            new = np.empty((room, *size), np.float32)
            if name in self._arrays:
                # An earlier growth that memory did not suffice for may have made this one longer already.
                new[: self._room] = self._arrays[name][: self._room]
            self._arrays[name] = new
        self._room = room


class ConditionedModel(PagedModel):
    """Like `PagedModel`, for the decoder of an encoder-decoder.

    cross:       graph from an encoder's output to keys and values of the decoder's layers.
    cache_bytes: most memory of windows and key/value cache together; None = no limit.
    turned_keys: whether both graphs have their keys transposed (`graph/cross.py`).
    """

    can_keep = False  # the same tokens mean something else in another window

    def __init__(
        self,
        request: Request,
        *,
        cross: Request,
        cache_bytes: int | None = None,
        turned_keys: bool = False,
        **options: Any,
    ) -> None:
        share = None if cache_bytes is None else int(_SHARE * cache_bytes)
        self.windows = WindowPool(cross, request, share, turned=turned_keys)
        if share is not None and cache_bytes is not None:
            cache_bytes -= min(share, self.windows.most * self.windows.window_bytes)
        super().__init__(request, cache_bytes=cache_bytes, **options)
        self.capabilities = replace(self.capabilities, conditioning=True)

    def room(self, handle: PagedSequence | None = None) -> int:
        if handle is None and len(self.windows.windows) >= self.windows.most:
            return 0
        return super().room(handle)

    def open(self, capacity: int = 0, conditioning: Any = None) -> PagedSequence:
        states = self._states(conditioning)
        handle = self._of(self.open_checked(capacity))
        try:
            handle.window = self.windows.open(states)
        except BaseException:
            self.close(handle)
            raise
        return handle

    def _states(self, conditioning: Any) -> NDArray[np.float32]:
        if conditioning is None:
            raise ValueError("this model needs an encoder's output")
        states = np.asarray(conditioning, np.float32)
        if states.shape != self.windows.input_shape:
            raise ValueError(f"an encoder's output of {states.shape}, not {self.windows.input_shape}")
        return states

    def fork_checked(self, handle: PagedSequence, length: int) -> PagedSequence:
        fork, window = self._of(super().fork_checked(handle, length)), self._of(handle).window
        assert window is not None
        window.users += 1
        fork.window = window
        return fork

    def close(self, handle: PagedSequence) -> None:
        super().close(handle)
        own = self._of(handle)
        if own.window is not None:
            self.windows.close(own.window)
        own.window = None

    def attention(
        self, conditioning: Any, tokens: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> NDArray[np.float32]:
        """Return [heads, tokens, frames] what tokens attend to, in these (layer, head) of cross-attention."""
        handle = self._of(self.open(len(tokens), conditioning))
        try:
            found: list[NDArray[np.float32]] = []
            for start in range(0, len(tokens), _READ):
                chunk = tokens[start : start + _READ]
                if self.step([Row(handle, Block.chain(chunk), logits="last")]).refused:
                    raise ContextFull(f"there is no room for {len(tokens)} tokens")
                found.append(self._weights(handle, len(chunk), heads))
                self.commit(handle, range(len(chunk)))
            return np.concatenate(found, axis=1)
        finally:
            self.close(handle)

    def _weights(
        self, handle: ConditionedSequence, count: int, heads: Sequence[tuple[int, int]]
    ) -> NDArray[np.float32]:
        assert handle.window is not None
        rows = []
        for layer, head in heads:
            keys = self.windows.keys(handle.window, layer)[head]
            width = keys.shape[1]
            queries = self._request.output(f"query.{layer}").data[:count, head * width :][:, :width]
            scores = queries @ keys.T / np.sqrt(np.float32(width))
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            rows.append(weights / weights.sum(axis=1, keepdims=True))
        return np.stack(rows).astype(np.float32)

    def _new(self) -> ConditionedSequence:
        return ConditionedSequence()

    def _segments(self, row: Row, parents: tuple[int, ...] | None) -> list[Segment]:
        window = self._of(row.handle).window
        if window is None:
            raise ValueError("a sequence that is closed")
        segments = super()._segments(row, parents)
        for segment in segments:
            segment.window = window.place
        return segments

    def _infer(self, inputs: Mapping[str, Array]) -> float:
        of = inputs[WINDOWS]
        first, count = int(of.min()), int(of.max() - of.min()) + 1
        self.windows.bind(first, count)
        rows, back = spread(of - first, count, 2 if self._exact else 1)
        # The copy of a lone token may stand behind the last position of the table.
        places = np.minimum(inputs["position_ids"], self.max_context - 1)
        return self._request({**inputs, "position_ids": places, "cross_rows": rows, "cross_back": back})

    @staticmethod
    def _of(handle: PagedSequence) -> ConditionedSequence:
        assert isinstance(handle, ConditionedSequence)
        return handle


def spread(of: NDArray[Any], count: int, fewest: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Lay tokens out by window. of: [N] window of each token, below `count`.

    Returns `cross_rows` [count, T] with T at least `fewest`, filled up with any token, and `cross_back` [N].
    """
    sizes = np.bincount(of, minlength=count)
    width = max(int(sizes.max()), fewest)
    order = np.argsort(of, kind="stable")
    begins = np.cumsum(sizes) - sizes
    column = np.arange(len(of)) - np.repeat(begins, sizes)
    rows = np.zeros((count, width), np.int32)
    rows[of[order], column] = order
    back = np.empty(len(of), np.int32)
    back[order] = of[order] * width + column
    return rows, back
