"""Two vocabularies side by side: text in either one's ids, and the tokens that they share.

Everything goes by bytes. A byte position means the same in every tokenizer, so what two of them make of
a text is lined up exactly, also where text repeats; and a token may hold part of a character.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from specport.errors import ModelError

# Control tokens that mean the same though they read differently: turns begin, turns end, texts end.
_ROLES = (
    ("<|im_start|>", "<start_of_turn>", "<|start_header_id|>", "<|start|>"),
    ("<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|end|>"),
    ("<|endoftext|>", "<eos>", "</s>", "<|end_of_text|>"),
)
# Text that a usable tokenizer must give back: case, accents, blanks, line ends, signs, digits.
_SAMPLE = 'Hello World, naïve 你好 😀!  x_1 = [2.50];\n\n\tif "A" != b:\r\n'
# Put in front of a text for tokenizers that treat the beginning of a text apart (an added blank).
_LEADS = ("", "\n", ".")
_LONGEST = 16  # bytes of a token that is looked up by its bytes


class Vocabulary(Protocol):
    """What translation needs of a tokenizer."""

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def table(self) -> Mapping[int, bytes]:
        """id -> the bytes it stands for."""
        ...

    @property
    def bos(self) -> int | None:
        """The id that stands in front of every text, or None."""
        ...

    def encode_part(self, text: str) -> list[int]:
        """Ids of a stretch of plain text, nothing added; what looks like a control token is text."""
        ...


@dataclass
class Pieces:
    """A text in ids. Bytes for which there is no token are left out.

    ids:  [n] token ids.
    ends: [n] the byte of the text at which each of them ends.
    """

    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


class TextEncoder:
    """Encodes bytes with a tokenizer, and knows where in them each token ends.

    A stretch that the tokenizer would change (it normalises), and bytes that are no UTF-8, are put
    together from the longest tokens that fit.

    Raises ModelError for a tokenizer that does not keep ordinary text as it is.
    """

    def __init__(self, vocabulary: Vocabulary, name: str) -> None:
        self.special_ids = vocabulary.special_ids
        self.table = vocabulary.table
        self.bos = vocabulary.bos
        self._encode_part = vocabulary.encode_part
        found = {lead: self._behind(lead, _SAMPLE) is not None for lead in _LEADS}
        if not any(found.values()):
            raise ModelError(
                f"the tokenizer of {name} changes the text it encodes, so its model cannot draft for another",
                "choose a draft whose tokenizer keeps case and blanks",
            )
        self._leads = sorted(_LEADS, key=lambda lead: not found[lead])

    def encode(self, data: bytes) -> Pieces:
        pieces, end = Pieces(), 0
        for token in self._tokens(data):
            end += len(self.table[token]) if token >= 0 else 1
            if token >= 0:
                pieces.ids.append(token)
                pieces.ends.append(end)
        return pieces

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """Ordinary tokens by their bytes. Of several with the same bytes, the one that encoding gives."""
        found: dict[bytes, int] = {}
        for token, data in self.table.items():
            if not data or token in self.special_ids:
                continue
            if data in found and not self._gives(token, data):
                continue
            found[data] = token
        return found

    def _gives(self, token: int, data: bytes) -> bool:
        try:
            return self._exact(data.decode()) == [token]
        except UnicodeDecodeError:
            return False

    def _tokens(self, data: bytes) -> list[int]:
        """Ids of `data`; -1 for each byte without a token."""
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
        # One odd character should not cost the whole text its usual tokens.
        tokens: list[int] = []
        for line in text.splitlines(keepends=True):
            exact = self._exact(line)
            tokens += self._cover(line.encode()) if exact is None else exact
        return tokens

    def _exact(self, text: str) -> list[int] | None:
        """The tokenizer's own ids, if they stand for exactly this text."""
        if not text:
            return []
        for lead in self._leads:
            ids = self._behind(lead, text)
            if ids is not None:
                return ids
        return None

    def _behind(self, lead: str, text: str) -> list[int] | None:
        """Ids of `text` as encoded behind `lead`; None where no token begins there or bytes differ."""
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
    """The tokens that both vocabularies have, one to one.

    to_target: [assistant vocab] the target's id of an assistant's token, or -1.
    columns:   [target vocab] the assistant's id of a target's token; beyond the last where it has none.
    """

    to_target: NDArray[np.int64]
    columns: NDArray[np.int64]


class Translator:
    """The vocabularies of a target and of an assistant.

    Control tokens have no text: those of equal name or role stand for each other (`to_assistant`,
    `to_target`), others have no counterpart.

    Raises ModelError for a tokenizer that does not keep ordinary text as it is.
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
        """Matched by bytes, control tokens by name or role. The arguments are the widths of the logits."""
        ours, theirs = self.target.by_bytes, self.assistant.by_bytes
        pairs = [(theirs[data], token) for data, token in ours.items() if data in theirs]
        pairs += self.to_target.items()
        to_target = np.full(assistant_vocab, -1, dtype=np.int64)
        columns = np.full(target_vocab, assistant_vocab, dtype=np.int64)
        for other, mine in pairs:
            if other < assistant_vocab and mine < target_vocab:
                to_target[other], columns[mine] = mine, other
        return Intersection(to_target, columns)
