"""Read vocabulary, special tokens and chat template from the metadata of a GGUF file, checked."""

from __future__ import annotations

from specport.errors import ModelError
from specport.models.gguf.file import GgufHeader
from specport.models.gguf.values import Values
from specport.text import gguf_splits

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # tokenizer.ggml.token_type

# Texts that end a turn or a text regardless of the metadata (llama.cpp has a similar list).
END_OF_TURN = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
})  # fmt: skip
_TEMPLATE = "chat_template"


class Vocabulary:
    """Hold the `tokenizer.*` metadata of a GGUF file.

    kind: "gpt2" (byte-level BPE) or "llama" (SentencePiece), or another that `gguf_tokenizer` refuses.
    pre:  how a text is cut into words before merging; "" = the file does not say.
    """

    def __init__(self, header: GgufHeader) -> None:
        self.path, self.values = header.path, Values(header, "tokenizer.ggml")
        tokens = self.values.get("tokens")
        if not isinstance(tokens, list) or not tokens:
            raise ModelError(f"{self.path} has no vocabulary", "use a GGUF file that holds its tokenizer")
        types, scores = self._numbers("token_type", len(tokens)), self._numbers("scores", len(tokens))
        self.tokens: list[str] = tokens
        self.types: list[int] = [1] * len(tokens) if types is None else [int(t) for t in types]
        self.scores: list[float] = [] if scores is None else [float(s) for s in scores]
        self.kind = self.values.text("model")
        self.pre = self.values.text("pre") or gguf_splits.OF_ARCHITECTURE.get(header.architecture, "")
        self.spm = self.kind == "llama"
        self.add_bos = self.values.flag("add_bos_token", self.spm or self.pre in gguf_splits.BOS_BY_DEFAULT)
        self.add_eos = self.values.flag("add_eos_token", False)
        self.add_space_prefix = self.values.flag("add_space_prefix", self.spm)
        self.chat_template = _chat_template(header)

    def _numbers(self, key: str, count: int) -> list[float] | None:
        """Return an array with a number for each token, None where the file has none."""
        values = self.values.get(key)
        if values is None:
            return None
        try:
            found = [float(value) for value in values]
        except (TypeError, ValueError):
            raise self.values.wrong(key, values) from None
        if len(found) < count:
            what = {"token_type": "token types"}.get(key, key)
            raise ModelError(
                f"{self.path}: {count} tokens but {len(found)} {what}", "download the file again"
            )
        return found

    def special(self, name: str, default: int | None = None) -> int | None:
        """Return the id of the `bos`, `eos`, `eot`, `eom`, `unknown` or `padding` token, or None."""
        value = self.values.whole(f"{name}_token_id", default)
        return value if value is not None and 0 <= value < len(self.tokens) else None

    @property
    def bos(self) -> int | None:
        return self.special("bos", 1 if self.spm else None)

    @property
    def eos(self) -> int | None:
        return self.special("eos", 2 if self.spm else None)

    def end_ids(self) -> list[int]:
        """Return every id that ends a turn or a text."""
        ids = {self.eos, self.special("eot"), self.special("eom")}
        ids.update(i for i, text in enumerate(self.tokens) if text in END_OF_TURN and self.types[i] != 1)
        return sorted(i for i in ids if i is not None)


def _chat_template(header: GgufHeader) -> str:
    """Return the chat template, "" where there is none.

    A file may hold several by name: "default" is for chats, others for tools or retrieval. One that stands
    alone is taken whatever its name.
    """
    values = Values(header, "tokenizer")
    names = [
        key.removeprefix("tokenizer.") for key in header.metadata if key.startswith(f"tokenizer.{_TEMPLATE}.")
    ]
    for key in (_TEMPLATE, f"{_TEMPLATE}.default", *(names if len(names) == 1 else ())):
        if template := values.text(key):
            return template
    return ""
