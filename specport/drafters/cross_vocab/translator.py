"""Encode text in two vocabularies, and match the tokens that they share.

All positions are in bytes. A byte position means the same in every tokenizer, so the tokens of two tokenizers
are aligned exactly, also in repetitive text, and a token may hold a part of a character.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError

# Control tokens of equal meaning and different names: start of turn, end of turn, end of text.
_ROLES = (
    ("<|im_start|>", "<start_of_turn>", "<|start_header_id|>", "<|start|>"),
    ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>"),
    ("<|endoftext|>", "<eos>", "</s>", "<|end_of_text|>"),
)
# Text that a usable tokenizer must preserve: case, accents, whitespace, line ends, punctuation, digits.
_SAMPLE = 'Hello World, naïve 你好 😀!  x_1 = [2.50];\n\n\tif "A" != b:\r\n'
# Prefixes for tokenizers that treat the beginning of a text differently (an added blank).
_LEADS = ("", "\n", ".")
_LONGEST = 16  # maximum bytes of a token that is looked up by its bytes


class Vocabulary(Protocol):
    """Define what translation needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def table(self) -> Mapping[int, bytes]:
        """Return id -> bytes of the token."""
        ...

    @property
    def bos(self) -> int | None:
        """Return the id that starts every text, or None."""
        ...

    def encode_part(self, text: str) -> list[int]:
        """Return the ids of plain text, without added tokens; names of control tokens are plain text."""
        ...


@dataclass
class Pieces:
    """Hold an encoded text. Bytes without a token are left out.

    ids:  [n] token ids.
    ends: [n] the byte of the text at which each token ends.
    """

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class TextEncoder:
    """Encode bytes with a tokenizer, with the end position of each token.

    Text that the tokenizer would change (by normalization) and bytes that are not UTF-8 are covered greedily
    by the longest matching tokens.

    Raises ModelError for a tokenizer that changes ordinary text.
    """

    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        self.special_ids = vocabulary.special_ids
        self.table = vocabulary.table
        self.bos = vocabulary.bos
        self._encode_part = vocabulary.encode_part
        usable = {lead: self._behind(lead, _SAMPLE) is not None for lead in _LEADS}
        if not any(usable.values()):
            raise ModelError(
                f"the tokenizer of {name} changes the text it encodes, so its model cannot draft for another",
                "choose a draft whose tokenizer keeps case and blanks",
            )
        self._leads = sorted(_LEADS, key=lambda lead: not usable[lead])

    def encode(self, data: bytes) -> Pieces:
        """Return the tokens of `data`."""
        pieces, end = Pieces(), 0
        for token in self._tokens(data):
            end += len(self.table[token]) if token >= 0 else 1
            if token >= 0:
                pieces.ids.append(token)
                pieces.ends.append(end)
        return pieces

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """Return ordinary tokens by their bytes; of several with equal bytes, the one that encoding gives."""
        tokens: dict[bytes, int] = {}
        for token, data in self.table.items():
            if not data or token in self.special_ids:
                continue
            if data in tokens and not self._gives(token, data):
                continue
            tokens[data] = token
        return tokens

    def _gives(self, token: int, data: bytes) -> bool:
        """Return whether the tokenizer encodes `data` as this one token."""
        try:
            return self._exact(data.decode()) == [token]
        except UnicodeDecodeError:
            return False

    def _tokens(self, data: bytes) -> list[int]:
        """Return the ids of `data`; -1 for each byte without a token."""
        tokens: list[int] = []
        while data:
            try:
                text, bad, data = data.decode(), b"", b""
            except UnicodeDecodeError as error:
                text, bad = data[: error.start].decode(), data[error.start : error.end]
                data = data[error.end :]
            tokens += self._text(text)
            tokens += self._cover(bad)
        return tokens

    def _text(self, text: str) -> list[int]:
        exact = self._exact(text)
        if exact is not None:
            return exact
        # Cover only the lines that the tokenizer changes; other lines keep their usual tokens.
        tokens: list[int] = []
        for line in text.splitlines(keepends=True):
            exact = self._exact(line)
            tokens += self._cover(line.encode()) if exact is None else exact
        return tokens

    def _exact(self, text: str) -> list[int] | None:
        """Return the tokenizer's own ids if their bytes are exactly this text, else None."""
        if not text:
            return []
        for lead in self._leads:
            ids = self._behind(lead, text)
            if ids is not None:
                return ids
        return None

    def _behind(self, lead: str, text: str) -> list[int] | None:
        """Return the ids of `text` encoded after `lead`; None where no token starts there or bytes differ."""
        ids = self._encode_part(lead + text)
        data = text.encode()
        left, first = len(data), len(ids)
        while left > 0 and first:
            first -= 1
            piece = self.table[ids[first]]
            left -= len(piece)
            if left < 0 or not data.startswith(piece, left):
                return None
        return None if left else ids[first:]

    def _cover(self, data: bytes) -> list[int]:
        """Return the longest tokens that match, from left to right; -1 for each byte without a token."""
        tokens: list[int] = []
        at = 0
        while at < len(data):
            for end in range(min(len(data), at + _LONGEST), at, -1):
                token = self.by_bytes.get(data[at:end])
                if token is not None:
                    break
            tokens.append(-1 if token is None else token)
            at += 1 if token is None else end - at
        return tokens


@dataclass(frozen=True)
class Intersection:
    """Hold the one-to-one mapping of the tokens that both vocabularies have.

    to_target: [assistant vocab] target id of each assistant token, or -1.
    columns:   [target vocab] assistant id of each target token; the assistant's vocabulary size without one.
    """

    to_target: NDArray[np.int64]
    columns: NDArray[np.int64]


class Translator:
    """Map between the vocabularies of a target and an assistant.

    Control tokens have no text: those of equal name or role are counterparts (`to_assistant`, `to_target`);
    others have no counterpart.

    Raises ModelError for a tokenizer that changes ordinary text.
    """

    def __init__(self, target: Vocabulary, assistant: Vocabulary) -> None:
        self.target = TextEncoder(target, "the target")
        self.assistant = TextEncoder(assistant, "the draft")
        self.to_assistant = self._control_tokens()
        self.to_target = {theirs: ours for ours, theirs in self.to_assistant.items()}

    def _control_tokens(self) -> dict[int, int]:
        ours, theirs = ({e.table[i]: i for i in e.special_ids} for e in (self.target, self.assistant))
        pairs = {i: theirs[data] for data, i in ours.items() if data in theirs}
        taken = set(pairs.values())
        for role in _ROLES:
            names = [name.encode() for name in role]
            mine = next((ours[n] for n in names if n in ours and ours[n] not in pairs), None)
            other = next((theirs[n] for n in names if n in theirs and theirs[n] not in taken), None)
            if mine is not None and other is not None:
                pairs[mine] = other
        return pairs

    def intersection(self, target_vocab: int, assistant_vocab: int) -> Intersection:
        """Return the tokens with equal bytes, and control tokens of equal name or role.

        target_vocab, assistant_vocab: widths of the logits.
        """
        ours, theirs = self.target.by_bytes, self.assistant.by_bytes
        pairs = [(theirs[data], token) for data, token in ours.items() if data in theirs]
        pairs += self.to_target.items()
        to_target = np.full(assistant_vocab, -1, dtype=np.int64)
        columns = np.full(target_vocab, assistant_vocab, dtype=np.int64)
        for other, mine in pairs:
            if other < assistant_vocab and mine < target_vocab:
                to_target[other], columns[mine] = mine, other
        return Intersection(to_target, columns)
