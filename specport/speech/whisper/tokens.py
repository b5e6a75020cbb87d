"""Whisper's special tokens. Their ids follow from the tokenizer's names and the size of the vocabulary."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from specport.errors import ModelError
from specport.text.tokenizer import Tokenizer

_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")  # newer and older tokenizers
_STEP = 0.02  # seconds
_MULTILINGUAL = 51865  # smallest vocabulary of a multilingual model

# Signs that no one speaks, and that begin or end remarks on sounds, as in OpenAI's whisper/tokenizer.py.
_SIGNS = [*'"#()*+/:;<=>@[\\]^_`{|}~「」『』']
_SIGNS += "<< >> <<< >>> -- --- -( -[ (' (\" (( )) ((( ))) [[ ]] {{ }} ♪♪ ♪♪♪".split()  # noqa: SIM905
_MUSIC = "♩♪♫♬♭♮♯"


class WhisperTokens:
    """Hold the ids of special tokens, and turn ids into text and back.

    tokenizer: of the model; it need not have the timestamps.
    vocab:     width of the model's logits.
    generation: the model's generation_config.json; what it lacks has the values of OpenAI's own decoder.

    Raises ModelError where the tokenizer is not Whisper's.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, generation: Mapping[str, Any] | None = None) -> None:
        self.tokenizer, self.vocab = tokenizer, vocab
        self._generation = generation or {}
        self.eot = self._id("<|endoftext|>")
        self.sot = self._id("<|startoftranscript|>")
        self.sot_prev = self._id("<|startofprev|>")
        self.transcribe = self._id("<|transcribe|>")
        self.translate = self._id("<|translate|>")
        self.no_timestamps = self._id("<|notimestamps|>")
        self.timestamp_begin = self.no_timestamps + 1
        found = (tokenizer.special_id(name) for name in _NO_SPEECH)
        self.no_speech: int | None = next((i for i in found if i is not None and i < vocab), None)
        told = self._generation.get("is_multilingual")
        self.multilingual = told if isinstance(told, bool) else vocab >= _MULTILINGUAL
        most = max(self.timestamp_begin, self.sot_prev, self.transcribe, self.translate)
        if not self.eot < self.sot < self.timestamp_begin <= most < vocab:
            raise ModelError(f"the tokenizer does not fit a model of {vocab} ids", "copy its files again")

    def _id(self, name: str) -> int:
        found = self.tokenizer.special_id(name)
        if found is None:
            raise ModelError(f"the tokenizer has no {name}: it is not Whisper's", "copy its files again")
        return found

    @cached_property
    def languages(self) -> dict[str, int]:
        """Return language code -> id; empty for an English-only model, whose ids of them mean nothing."""
        return self._named if self.multilingual else {}

    @cached_property
    def _named(self) -> dict[str, int]:
        table = self.tokenizer.table
        known = (i for i in sorted(self.tokenizer.special_ids) if i < self.vocab)
        names = ((i, _LANGUAGE.fullmatch(table[i].decode())) for i in known)
        return {match[1]: i for i, match in names if match}

    @cached_property
    def suppressed(self) -> tuple[int, ...]:
        """Return ids that no text has."""
        given = self._given("suppress_tokens")
        if given is not None:
            return given
        control = [self.transcribe, self.translate, self.sot, self.sot_prev, self.no_speech]
        control.append(self.tokenizer.special_id("<|startoflm|>"))
        return tuple(sorted({*self._signs(), *(i for i in control if i is not None)}))

    def _signs(self) -> set[int]:
        found: set[int] = set()
        for sign in (*_SIGNS, *_MUSIC):
            for text in (sign, f" {sign}"):
                ids = self.encode(text)
                # Signs of music have several tokens, whose first one no other text has.
                if len(ids) == 1 or sign in _MUSIC:
                    found.update(ids[:1])
        return found.union(*(self.encode(text)[:1] for text in (" -", " '")))

    @cached_property
    def suppressed_first(self) -> tuple[int, ...]:
        """Return ids that no text begins with: a blank, and the end."""
        given = self._given("begin_suppress_tokens")
        return (*self.encode(" "), self.eot) if given is None else given

    def _given(self, name: str) -> tuple[int, ...] | None:
        ids = self._generation.get(name)
        if not isinstance(ids, list):
            return None
        if ids == [-1]:  # OpenAI's and CTranslate2's name of the default
            return None
        return tuple(i for i in ids if isinstance(i, int) and 0 <= i < self.vocab)

    def alignment_heads(self, layers: int, heads: int) -> list[tuple[int, int]]:
        """Return (layer, head) of cross-attention that follow the words; without a list, the later half's."""
        given = self._generation.get("alignment_heads")
        found = [
            (int(pair[0]), int(pair[1]))
            for pair in (given if isinstance(given, list) else [])
            if isinstance(pair, list) and len(pair) == 2 and all(isinstance(i, int) for i in pair)
        ]
        found = [(layer, head) for layer, head in found if 0 <= layer < layers and 0 <= head < heads]
        return found or [(layer, head) for layer in range(layers // 2, layers) for head in range(heads)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; special tokens and timestamps are left out."""
        return self.tokenizer.decode([i for i in ids if i < self.eot])

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text, without special tokens."""
        return tuple(self.tokenizer.encode_part(text))

    def mismatch(self, other: WhisperTokens) -> str | None:
        """Return why the ids of another model mean something else, or None where they mean the same."""
        if self.vocab != other.vocab:
            return f"it has {self.vocab} ids, not {other.vocab}"
        return self.tokenizer.mismatch(other.tokenizer)

    @cached_property
    def vocabulary(self) -> WhisperVocabulary:
        """Return what a translation between vocabularies needs."""
        return WhisperVocabulary(self)


class WhisperVocabulary:
    """Show Whisper's tokens to `drafters.cross_vocab`: timestamps are control tokens with names.

    An English-only model has no names of languages and tasks: it was not trained to read them.
    """

    bos = None

    def __init__(self, tokens: WhisperTokens) -> None:
        first, ends = tokens.eot, range(tokens.timestamp_begin, tokens.vocab)
        unread = () if tokens.multilingual else (*tokens._named.values(), tokens.transcribe, tokens.translate)
        table = tokens.tokenizer.table
        self.table: dict[int, bytes] = {i: data for i, data in table.items() if i < first}
        named = {i: data for i, data in table.items() if first <= i < tokens.timestamp_begin}
        if tokens.no_speech is not None:
            named[tokens.no_speech] = _NO_SPEECH[0].encode()
        named |= {i: b"<|%.2f|>" % (_STEP * (i - tokens.timestamp_begin)) for i in ends}
        named = {i: data for i, data in named.items() if i not in unread}
        self.table |= named
        self.special_ids = frozenset(named)
        self.encode_part = tokens.tokenizer.encode_part
