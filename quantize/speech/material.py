"""What a target heard in the user's recordings, on disk: its ids with their likeliest tokens, and states.

The encoder's states take most of the room: 1.5 MB a window for whisper-base. They lie one after the other in
one file, which is mapped, not read. All files are parts of a build's working directory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from msgspec import Struct, to_builtins
from numpy.typing import NDArray
from specport.quantize.text.dialogues import Dialogue, read_shard, save_shard

from specport.errors import InvalidInput, ModelError
from specport.models.atomic import write_json
from specport.models.os_errors import cause
from specport.outside import Format
from specport.outside.numbers import Count, TokenId
from specport.speech.decoding.sequential import State

INDEX, STATES = "heard.json", "states.bin"
HELD_OUT = 0.1  # share of the windows
_LARGEST_FILE = 1 / 3  # of the windows, for a file to be held out whole


class Part(Struct):
    """Some windows of one recording, in order.

    file:      number of the recording. places: sample at which each window begins.
    greedy:    whether each window's text is greedy, not drawn after the greedy one had failed.
    position, window, context: where the recording goes on, as in `State`. ended: whether it does not.
    problem:   why nothing was heard, where the file could not be read.
    """

    file: Count
    language: str = ""
    places: tuple[Count, ...] = ()
    greedy: tuple[bool, ...] = ()
    position: Count = 0
    window: Count = 0
    context: tuple[TokenId, ...] = ()
    ended: bool = False
    problem: str = ""

    @property
    def state(self) -> State:
        """Return where the recording goes on."""
        return State(self.position, self.window, self.context)


class _Index(Struct):
    parts: tuple[Part, ...]


_INDEX = Format(_Index, "the record of what was heard", "remove the folder and run the command again")


class Material:
    """Hold what was heard so far in a folder; a part that is not complete is heard again.

    size: frames and width of the states of a window.
    """

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self._folder, self._size = folder, size
        found = _INDEX.read_if_there(folder / INDEX)
        self.parts = [*found.parts] if found else []

    @property
    def windows(self) -> list[tuple[int, int, str]]:
        """Return file, sample of the beginning, and language of each window."""
        return [(part.file, place, part.language) for part in self.parts for place in part.places]

    def add(self, part: Part, texts: Sequence[Dialogue], states: Sequence[NDArray[np.float32]]) -> None:
        """Add what was heard in the windows of a part. Raises ModelError where there is no room."""
        number, before = len(self.parts), len(self.windows)
        save_shard(self._shard(number), texts)
        try:
            with open(self._folder / STATES, "ab") as file:
                file.truncate(before * self._bytes)  # less what a killed run left
                for each in states:
                    file.write(np.ascontiguousarray(each, "<f2").tobytes())
                file.flush()
                os.fsync(file.fileno())
            self.parts.append(part)
            write_json(self._folder / INDEX, to_builtins(_Index(tuple(self.parts))), indent=None)
        except OSError as error:
            message, hint = cause(error, "free some space and run the command again: it resumes the build")
            raise ModelError(f"cannot write into {self._folder}: {message}", hint) from error

    def texts(self) -> list[Dialogue]:
        """Return all windows. `hidden` is [frames, width]: the encoder's states. Raises ModelError."""
        path = self._folder / STATES
        found = [text for number in range(len(self.parts)) for text in read_shard(self._shard(number))]
        if not found:
            return []
        if len(found) != len(self.windows) or path.stat().st_size < len(found) * self._bytes:
            raise ModelError(f"{self._folder} is damaged", "remove it and run the command again")
        states = np.memmap(path, np.dtype("<f2"), "r", shape=(len(found), *self._size))
        return [replace(text, hidden=states[i]) for i, text in enumerate(found)]

    def held_out(self, seed: int) -> list[int]:
        """Return the windows that are kept for measurements: a tenth.

        They are whole recordings, where there are several and some fit; else the last windows. Raises
        InvalidInput where there are fewer than two windows.
        """
        owners = np.array([file for file, _, _ in self.windows])
        total = len(owners)
        if total < 2:
            raise InvalidInput(
                f"there is too little to learn from: {total} windows of speech", "name more recordings"
            )
        files, counts = np.unique(owners, return_counts=True)
        chosen: set[int] = set()
        kept = 0
        for i in np.random.default_rng(seed).permutation(len(files)):
            if kept < HELD_OUT * total and kept + counts[i] <= _LARGEST_FILE * total:
                chosen.add(int(files[i]))
                kept += int(counts[i])
        if chosen:
            return [i for i, owner in enumerate(owners) if int(owner) in chosen]
        return [*range(total - max(1, round(HELD_OUT * total)), total)]

    @property
    def greedy(self) -> list[bool]:
        """Return whether each window's text is greedy."""
        return [each for part in self.parts for each in part.greedy]

    @property
    def _bytes(self) -> int:
        """Return the bytes of the states of a window."""
        return 2 * self._size[0] * self._size[1]

    def _shard(self, number: int) -> Path:
        return self._folder / f"part-{number:05}.npz"
