"""Hidden states of a target at the tokens of its own text: files of float16, one beside each shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from specport.quantize.text.dialogues import Dialogue, read_shard

from specport.core.arrays import to_host
from specport.core.ports import Block, Model, Row
from specport.errors import ModelError
from specport.models.atomic import owner_only, replacing
from specport.models.os_errors import cause
from specport.progress import Progress

_CHUNK = 512  # tokens of a step
SUFFIX = ".hidden.npy"


def write_hidden(
    load: Callable[[], Model],
    layers: Sequence[int],
    shards: Sequence[Path],
    folder: Path,
    progress: Progress,
    *,
    whole: bool = False,
) -> list[Path]:
    """Return a file for each shard in `folder`: [answer tokens, layers * width], shard by shard.

    The row of a token has the states at the token before it, of all layers side by side. Files that exist
    are kept.

    load:   loads the target, which returns the states of `layers`; called only where a file is missing.
    whole:  whether the tokens of prompts have rows too, all but the first token of each text.
    Raises ModelError where a file cannot be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (shard.stem + SUFFIX) for shard in shards]
    model: Model | None = None
    for number, (shard, path) in enumerate(zip(shards, paths, strict=True)):
        progress("reading the text's hidden states", number / len(shards))
        if path.is_file():
            continue
        model = load() if model is None else model
        rows = [_states(model, layers, dialogue, whole) for dialogue in read_shard(shard)]
        _save(path, np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float16))
    return paths


def with_hidden(shard: Path, path: Path, *, whole: bool = False) -> list[Dialogue]:
    """Return the dialogues of a shard with their states, which stay in the file. whole: as written.

    Raises ModelError.
    """
    dialogues = read_shard(shard)
    try:
        states = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot read {path}: {message}", hint) from error
    except (ValueError, EOFError, ArithmeticError, MemoryError) as error:
        raise ModelError(f"{path} is damaged: {error}", "remove it and run the command again") from error
    ends = np.cumsum([0, *(len(d.tokens) - (1 if whole else d.start) for d in dialogues)])
    if dialogues and (states.ndim != 2 or len(states) != ends[-1] or states.dtype != np.float16):
        raise ModelError(f"{path} does not fit {shard}", "remove it and run the command again")
    return [
        replace(dialogue, hidden=states[first:end])
        for dialogue, first, end in zip(dialogues, ends, ends[1:], strict=False)
    ]


def _states(model: Model, layers: Sequence[int], dialogue: Dialogue, whole: bool) -> NDArray[np.float16]:
    """Return [tokens, layers * width] the states before each token of the answer, or of the whole text."""
    first = 0 if whole else dialogue.start - 1
    tokens = dialogue.tokens[:-1].tolist()
    handle = model.open(min(len(tokens), model.max_context))
    found: list[NDArray[np.float16]] = []
    try:
        for start in range(0, len(tokens), _CHUNK):
            chunk = tokens[start : start + _CHUNK]
            output = model.step([Row(handle, Block.chain(chunk), logits="none", hidden="all")])
            if output.refused:
                raise ModelError("a text of the target does not fit its context", "start anew")
            hidden = output.hidden_of(0)
            wide = np.concatenate([to_host(hidden[layer]) for layer in layers], axis=1)
            found.append(wide[max(0, first - start) :].astype(np.float16))
            model.commit(handle, range(len(chunk)))
    finally:
        model.close(handle)
    return np.concatenate(found)


def _save(path: Path, states: NDArray[np.float16]) -> None:
    try:
        with replacing(path) as temporary, open(temporary, "wb", opener=owner_only) as file:
            np.save(file, states)
    except OSError as error:
        message, hint = cause(error, "free some space and run the command again: complete files are kept")
        raise ModelError(f"cannot write {path}: {message}", hint) from error
