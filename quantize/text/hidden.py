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
from specport.errors import InvalidInput, ModelError
from specport.models.atomic import owner_only, replacing
from specport.models.os_errors import cause
from specport.progress import Progress

_CHUNK = 512  # tokens of a step
HELD_OUT = 0.05  # share of the shards, at least one
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


def divided(
    shards: Sequence[str], states: Sequence[str], *, whole: bool = False
) -> tuple[list[Dialogue], list[Dialogue]]:
    """Return the texts to learn from, and held-out ones, with their states. whole: as written.

    Kinds of text alternate from shard to shard: held-out shards are spread evenly. Raises ModelError.
    """
    count = max(1, round(HELD_OUT * len(shards)))
    texts = [with_hidden(Path(a), Path(b), whole=whole) for a, b in zip(shards, states, strict=True)]
    step = len(texts) / count
    chosen = {int(step * (i + 0.5)) for i in range(count)}
    learnt = [text for i, shard in enumerate(texts) if i not in chosen for text in shard]
    return learnt, [text for i in sorted(chosen) for text in texts[i]]


def next_states(
    texts: Sequence[Dialogue], width: int, count: int
) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
    """Return states, the tokens behind them, and the states behind those, of about `count` places.

    States are [n, layers * width], those behind [n, width] of the last layer only. Raises InvalidInput where
    no text has two states.
    """
    before: list[NDArray[np.float16]] = []
    tokens: list[NDArray[np.int32]] = []
    after: list[NDArray[np.float16]] = []
    found = 0
    for text in texts:
        if text.hidden is None or len(text.hidden) < 2:
            continue
        before.append(text.hidden[:-1])
        tokens.append(text.tokens[-len(text.hidden) : -1])
        after.append(text.hidden[1:, -width:])
        found += len(tokens[-1])
        if found >= count:
            break
    if not found:
        raise InvalidInput("no text is long enough to learn from", "ask for more tokens")
    return (
        np.concatenate(before).astype(np.float32),
        np.concatenate(tokens),
        np.concatenate(after).astype(np.float32),
    )


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
