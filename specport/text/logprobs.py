"""Log-probabilities with the text of their tokens, as OpenAI's API gives them."""

from __future__ import annotations

from typing import Any

from specport.core.sampling.logprobs import TokenLogprob
from specport.text.detokenize import Detokenizer


def as_dict(entry: TokenLogprob, tokenizer: Detokenizer) -> dict[str, Any]:
    """Return an entry of OpenAI's `logprobs.content`, with token ids, ready for JSON."""
    top = [_token(token, logprob, tokenizer) for token, logprob in entry.top]
    return {**_token(entry.token, entry.logprob, tokenizer), "top_logprobs": top}


def _token(token: int, logprob: float, tokenizer: Detokenizer) -> dict[str, Any]:
    """Return a token's part. Its text may be a part of a character, so its bytes are there too."""
    piece = tokenizer.token_bytes(token)
    return {
        "token": piece.decode("utf-8", errors="replace"),
        "token_id": token,
        "bytes": list(piece),
        "logprob": logprob,
    }
