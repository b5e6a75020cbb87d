"""Write a tokenizer from CTranslate2's list of tokens, for folders without tokenizer.json.

The list has no merges, but Whisper's tokens are numbered in the order in which they were merged. So the pair
that a token was made of is what the merges before it leave of its bytes.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import tokenizers
from msgspec import Meta

from specport.errors import ModelError
from specport.models.json_file import MAX_FILE_BYTES, TOKENIZER_FILE
from specport.outside import Format, plain_values, read_bytes

FILES = ("vocabulary.json", "vocabulary.txt")
_END = "<|endoftext|>"
_LONGEST = 200  # characters of a token; real ones have up to 128
_HINT = "copy the model's tokenizer.json into the folder"
_TOKENS = Format(
    list[Annotated[str, Meta(min_length=1)]], "a list of tokens", _HINT, most_bytes=MAX_FILE_BYTES,
    parse=plain_values.from_foreign_json,
)  # fmt: skip


def write(folder: Path, target: Path) -> None:
    """Write tokenizer.json into `target` from the list in `folder`. Raises ModelError."""
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError(f"{folder} has no {TOKENIZER_FILE}", _HINT)
    tokens = _tokens(path)
    if _END not in tokens or len({*tokens}) != len(tokens):
        raise ModelError(f"{path} is no list of Whisper's tokens", _HINT)
    words, special = tokens[: tokens.index(_END)], tokens[tokens.index(_END) :]
    ranks = {token: i for i, token in enumerate(words)}
    alphabet = {*tokenizers.pre_tokenizers.ByteLevel.alphabet()}
    if not alphabet <= {*words} or max(map(len, words)) > _LONGEST:
        raise ModelError(f"{path} is no list of byte-level tokens", _HINT)
    merges = [pair for token in words if len(token) > 1 and (pair := _parts(token, ranks))]
    backend: Any = tokenizers.Tokenizer(tokenizers.models.BPE(ranks, merges))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    backend.save(str(target / TOKENIZER_FILE))


def _tokens(path: Path) -> list[str]:
    if path.suffix == ".json":
        return _TOKENS.read(path)
    try:
        text = read_bytes(path, MAX_FILE_BYTES).decode().replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", _HINT) from error
    return _TOKENS.of(text.rstrip("\n").split("\n"), str(path))


def _parts(token: str, ranks: dict[str, int]) -> tuple[str, str] | None:
    """Return the two tokens that a token was merged from; None where the earlier ones do not give it."""
    parts, own = [*token], ranks[token]
    while len(parts) > 2:
        joined = [ranks.get(a + b, own) for a, b in pairwise(parts)]
        best = min(joined)
        if best >= own:
            return None
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (parts[0], parts[1]) if all(ranks.get(part, own) < own for part in parts) else None
