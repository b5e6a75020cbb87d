"""Evaluate grammars with llguidance, imported when first used: which tokens may follow, and which must.

llguidance tokenizes bytes that must follow in the tokenizer's own way, and then allows that token only. Masks
are a function of the prefix, and forced tokens are accepted whenever they are drafted.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from specport.core.sampling.constraint import Continuation, Mask
from specport.core.sampling.processors import Prefix
from specport.errors import InvalidInput

if TYPE_CHECKING:
    import llguidance

_MAX_LEXER_STATES = 50_000  # about 2 kB each
_KEPT = 32  # grammars that are kept compiled for each tokenizer
_MOST_MASKS = 512  # kept for the prefixes of one round
# Written before a text whose tokenization alone would begin with a space (SentencePiece).
_BEFORE = "\x02"


class Bytes(Protocol):
    """What a grammar needs of a tokenizer; see `Tokenizer`."""

    @property
    def eos_ids(self) -> frozenset[int]: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def table(self) -> Mapping[int, bytes]: ...

    def encode_part(self, text: str) -> list[int]: ...


def from_json_schema(schema: str, options: Mapping[str, Any]) -> str:
    """Return the grammar of a JSON schema. Raises InvalidInput where it is no JSON object."""
    try:
        compiled: str = _llguidance().LLMatcher.grammar_from_json_schema(schema, defaults=dict(options))
    except ValueError as error:
        raise InvalidInput(f"the JSON schema cannot be used: {_line(str(error))}") from error
    return compiled


def from_regex(expression: str) -> str:
    """Return the grammar of a regular expression."""
    compiled: str = _llguidance().LLMatcher.grammar_from_regex(expression)
    return compiled


def from_lark(grammar: str) -> str:
    """Return the grammar of a text in Lark's syntax."""
    compiled: str = _llguidance().LLMatcher.grammar_from_lark(grammar)
    return compiled


def problem(compiled: str) -> str:
    """Return why a grammar cannot be used, in one line; "" where it can, as far as no tokenizer is needed."""
    wrong, messages = _llguidance().LLMatcher.validate_grammar_with_warnings(compiled, None, limits=_limits())
    return _line(messages[0]) if wrong else ""


class Vocabulary:
    """Hold a tokenizer as llguidance reads it, and the grammars compiled for it. Thread-safe.

    Making one takes up to a second for 150,000 tokens.
    """

    def __init__(self, tokenizer: Bytes) -> None:
        self._table = tokenizer.table
        self._encode = tokenizer.encode_part
        size = max(self._table, default=-1) + 1
        self._ids = {data: i for i, data in self._table.items() if i not in tokenizer.special_ids}
        self._longest = max(map(len, self._ids), default=1)
        # llguidance needs an end token. For a tokenizer without one it gets an id that no model has.
        self.ends = frozenset(tokenizer.eos_ids) or frozenset([size])
        self.eos_token_id = min(self.ends)
        self.bos_token_id: int | None = None
        self.tokens = [self._table.get(i, b"") for i in range(size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        if not tokenizer.eos_ids:
            self.tokens.append(b"<end>")
            self.special_token_ids.append(size)
        lib = _llguidance()
        self._inner = lib.LLTokenizer(
            lib.TokenizerWrapper(self), n_vocab=len(self.tokens), eos_token=sorted(self.ends)
        )
        self._lock = threading.Lock()
        self._compiled: dict[str, llguidance.LLMatcher] = {}

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the ids of a text in the tokenizer's own way; their bytes are exactly the text's."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        try:
            whole = data.decode()
        except UnicodeDecodeError:
            return self._longest_first(data)
        for before in ("", _BEFORE):
            ids = self._encode(before + whole)
            found = [self._table.get(i, b"") for i in ids]
            while found and sum(map(len, found)) > len(data):
                del found[0]
            if b"".join(found) == data:
                return ids[len(ids) - len(found) :]
        return self._longest_first(data)

    def _longest_first(self, data: bytes) -> list[int]:
        """Return the ids of bytes, always the longest token that fits; [] where one does not exist."""
        ids: list[int] = []
        start = 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is None:
                return []
            ids.append(self._ids[data[start:end]])
            start = end
        return ids

    def length(self, tokens: Sequence[int]) -> int:
        """Return the number of bytes of these tokens."""
        return sum(len(self._table.get(token, b"")) for token in tokens)

    def matcher(self, compiled: str) -> llguidance.LLMatcher:
        """Return a fresh matcher of a grammar. Raises InvalidInput where it cannot be used."""
        with self._lock:
            first = self._compiled.pop(compiled, None)
            if first is None:
                first = _llguidance().LLMatcher(self._inner, compiled, log_level=0, limits=_limits())
                if first.is_error():
                    raise InvalidInput(f"the grammar cannot be used: {_line(first.get_error())}")
                while len(self._compiled) >= _KEPT:
                    del self._compiled[next(iter(self._compiled))]
            self._compiled[compiled] = first  # the latest is last
            return first.deep_copy()


class GrammarConstraint:
    """Hold one text to a grammar (`Constraint`): the matcher's state, and masks of this round's prefixes.

    start: position of the text's first token; what stands before is the prompt.
    """

    def __init__(self, vocabulary: Vocabulary, compiled: str, start: int) -> None:
        self._vocabulary, self._start = vocabulary, start
        self._matcher = vocabulary.matcher(compiled)
        self._read = 0  # tokens of the text that the matcher has consumed
        self._masks: dict[tuple[int, ...], Mask | None] = {}  # by the path behind these tokens
        self._fault = ""

    def mask(self, prefix: Prefix) -> Mask | None:
        self._follow(prefix.base)
        if prefix.path in self._masks:
            return self._masks[prefix.path]
        if len(self._masks) >= _MOST_MASKS:
            self._masks.clear()
        self._masks[prefix.path] = found = self._computed(prefix.path)
        return found

    def forced(self, prefix: Prefix) -> Continuation:
        self._follow(prefix.base)
        if prefix.path or self._fault or self._matcher.is_stopped():
            return Continuation()
        certain = self._matcher.compute_ff_tokens()
        rest = self._matcher.compute_ff_bytes()[self._vocabulary.length(certain) :]
        self._check()
        likely = self._vocabulary(rest) if rest else []
        return Continuation((*certain, *likely), len(certain))

    def complete(self, tokens: Sequence[int]) -> bool:
        self._follow(tokens)
        if self._fault:
            raise InvalidInput(f"the grammar cannot be followed any further: {self._fault}", "simplify it")
        return bool(self._matcher.is_stopped())

    def _follow(self, base: Sequence[int]) -> None:
        """Read the committed tokens that are new."""
        unread = base[self._start + self._read :]
        if not unread or self._fault:
            return
        self._masks.clear()
        self._read += len(unread)
        if not self._matcher.consume_tokens([*unread]):
            self._check()

    def _computed(self, path: tuple[int, ...]) -> Mask | None:
        if self._fault or not self._vocabulary.ends.isdisjoint(path):  # nothing follows the end
            return None
        matcher = self._matcher
        taken = matcher.try_consume_tokens([*path]) if path else 0
        found = None
        if taken == len(path):
            found = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            self._check()
            if not self._fault and not found.any():
                self._fault = "no token can follow"
        if taken and not self._fault and not matcher.rollback(taken):
            self._check()
        return None if self._fault else found

    def _check(self) -> None:
        """Remember the matcher's error: it reaches the caller when the next token is committed.

        An error in the middle of a round must not end the round of other texts.
        """
        if self._matcher.is_error():
            self._fault = _line(self._matcher.get_error()) or "unknown error"


@cache
def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise InvalidInput(
            f"grammars need the package llguidance: {error}", "pip install 'specport[grammar]'"
        ) from error
    return llguidance


@cache
def _limits() -> Any:
    return _llguidance().LLParserLimits(max_lexer_states=_MAX_LEXER_STATES, verbose_errors=False)


def _line(message: str) -> str:
    """Return the telling part of a message of several lines."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = next((line for line in lines if line.startswith("error: ")), "")
    return (telling.removeprefix("error: ") or next(iter(lines), ""))[:300]
