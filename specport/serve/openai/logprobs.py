"""Log-probabilities in the two shapes of OpenAI's API."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from typing import Any

from specport.core.sampling.logprobs import TokenLogprob
from specport.text.detokenize import Detokenizer
from specport.text.logprobs import as_dict

Json = dict[str, Any]


class ChatLogprobs:
    """Tell of tokens as a chat's reply does: an object for each."""

    def __init__(self, tokenizer: Detokenizer) -> None:
        self._tokenizer = tokenizer

    def of(self, index: int, entries: Sequence[TokenLogprob]) -> Json | None:
        """Return the object `logprobs` of a choice; None where there is nothing to tell."""
        content = [as_dict(entry, self._tokenizer) for entry in entries]
        return {"content": content, "refusal": None} if content else None


class CompletionLogprobs:
    """Tell of tokens as a completion's reply does: lists side by side. Offsets count over all chunks."""

    def __init__(self, tokenizer: Detokenizer) -> None:
        self._tokenizer = tokenizer
        self._places: dict[int, _Place] = {}  # of a choice

    def of(self, index: int, entries: Sequence[TokenLogprob]) -> Json | None:
        """Return the object `logprobs` of a choice; None where there is nothing to tell."""
        if not entries:
            return None
        place = self._places.setdefault(index, _Place())
        return {
            "tokens": [self._name(entry.token) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            # As in OpenAI's API, the token itself is among them, too.
            "top_logprobs": [
                {self._name(token): logprob for token, logprob in (*entry.top, (entry.token, entry.logprob))}
                for entry in entries
            ],
            "text_offset": [place.behind(self._tokenizer.token_bytes(entry.token)) for entry in entries],
        }

    def _name(self, token: int) -> str:
        """Return a token's text; one that is a part of a character is told by its bytes, as OpenAI does."""
        piece = self._tokenizer.token_bytes(token)
        try:
            return piece.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class _Place:
    """Count the characters of a text that comes in pieces of bytes."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def behind(self, piece: bytes) -> int:
        """Return where the piece begins."""
        start = self._length
        self._length += len(self._decoder.decode(piece))
        return start
