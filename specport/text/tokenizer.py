"""Convert text to token ids and back. Does not import transformers, which takes seconds at every start."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from specport.errors import InvalidInput, ModelError
from specport.models.json_file import MAX_FILE_BYTES, TOKENIZER_FILE, read_json
from specport.outside import read_bytes
from specport.text.chat_template import ChatTemplate
from specport.text.gguf_vocabulary import END_OF_TURN
from specport.text.template_limits import MOST_SOURCE


def _gpt2_bytes() -> dict[int, int]:
    """Return code point -> byte for the alphabet in which byte-level BPE writes bytes (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: byte for byte in printable}, **{256 + i: byte for i, byte in enumerate(others)}}


_GPT2_BYTES = _gpt2_bytes()
_MOST_IDS = 1 << 31
_COPY = "copy the model's tokenizer files again"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Tokenizer:
    """Hold a model's tokenizer and chat template. Thread-safe.

    eos_ids:    every id that ends a turn or a text.
    vocab_size: highest id + 1; the model's own vocabulary may be padded beyond it.
    tool_template: chat template for conversations with tools; None = the same.
    digest:     SHA-256 of the file that it was read from; "" = of none. Equal ones mean that all ids have the
                same meaning.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        eos_ids: Iterable[int] = (),
        chat_template: str | None = None,
        tool_template: str | None = None,
        special_texts: Mapping[str, str] | None = None,
        add_bos: bool | None = None,
        digest: str = "",
    ) -> None:
        self.digest = digest
        self._backend = backend
        self._lock = threading.Lock()
        self._vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self._special_texts = dict(special_texts or {})
        self._added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special)
        ends = {i for i, token in self._added.items() if token.special and token.content in END_OF_TURN}
        self.eos_ids = frozenset(eos_ids) | frozenset(ends)
        self.vocab_size = max(self._vocab.values(), default=-1) + 1
        decoder = backend.decoder
        self._form = json.dumps(json.loads(decoder.__getstate__())) if decoder is not None else ""
        self._template = ChatTemplate(chat_template) if chat_template else None
        self._tool_template = ChatTemplate(tool_template) if tool_template else self._template
        self._bos = self._bos_id(add_bos)

    def _bos_id(self, add_bos: bool | None) -> int | None:
        """Return the BOS id if this tokenizer prepends one to a text, else None."""
        bos = self._vocab.get(self._special_texts.get("bos_token", ""))
        if bos is None or add_bos is False:
            return None
        start = self._backend.encode("", add_special_tokens=True).ids[:1]
        return bos if add_bos or start == [bos] else None

    @property
    def has_chat_template(self) -> bool:
        return self._template is not None

    @property
    def takes_tools(self) -> bool:
        """Return whether the chat template writes tools into the prompt."""
        return self._tool_template is not None and self._tool_template.takes_tools

    @property
    def template_source(self) -> str:
        """Return the text of the chat template for tools; "" without one."""
        return self._tool_template.source if self._tool_template is not None else ""

    def special_id(self, text: str) -> int | None:
        """Return the id of a control token by its text; None where there is none."""
        token = self._vocab.get(text)
        return token if token in self.special_ids else None

    @property
    def bos(self) -> int | None:
        """The BOS id that `encode` prepends to a text, or None."""
        return self._bos

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the ids of plain text, with the BOS or EOS of the model's convention; never two BOS.

        parse_special: False = text that looks like a control token is encoded as plain text.
        """
        return self._encode(text, True, parse_special)

    def encode_part(self, text: str) -> list[int]:
        """Return the ids of a piece of plain text: no BOS, no EOS, and no control tokens."""
        return self._ids(text, False, False)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Return the ids of a conversation of {"role", "content"} messages, up to where the answer starts."""
        return self._encode(self.render(messages, add_generation_prompt, tools), False, True)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the text that `chat` encodes. Raises InvalidInput when the model has no chat template."""
        template = self._tool_template if tools else self._template
        if template is None:
            raise InvalidInput("this model has no chat template", "give a plain prompt instead of messages")
        return template.render(messages, add_generation_prompt, tools, **self._special_texts)

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        ids = self._ids(text, add_special, parse_special)
        if self._bos is None:
            return ids
        if ids[:2] == [self._bos, self._bos]:
            return ids[1:]
        return ids if ids[:1] == [self._bos] else [self._bos, *ids]

    def _ids(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        try:
            with self._lock:  # the switch below is state of the backend, not of the call
                self._backend.encode_special_tokens = not parse_special
                ids: list[int] = self._backend.encode(text, add_special_tokens=add_special).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise InvalidInput(f"the text cannot be encoded: {error}", "give valid Unicode text") from error
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the exact text of `ids`, spaces unchanged; invalid UTF-8 becomes U+FFFD."""
        kept = (i for i in ids if not (skip_special_tokens and i in self.special_ids))
        return b"".join(self.token_bytes(i) for i in kept).decode("utf-8", errors="replace")

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of a token; empty for an id outside the vocabulary."""
        added = self._added.get(token)
        if added is not None:
            return str(added.content).encode("utf-8", errors="replace")
        text = self._backend.id_to_token(token) if 0 <= token < self.vocab_size else None
        return b"" if text is None else self._bytes(text)

    def _bytes(self, text: str) -> bytes:
        if "ByteLevel" in self._form:
            try:
                return text.translate(_GPT2_BYTES).encode("latin-1")
            except UnicodeEncodeError:  # the token is not written in the byte alphabet
                return text.encode("utf-8", errors="replace")
        if "ByteFallback" in self._form and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        return text.replace("▁", " ").encode("utf-8", errors="replace")

    @cached_property
    def table(self) -> Mapping[int, bytes]:
        """id -> bytes for the whole vocabulary."""
        table = {i: self._bytes(text) for text, i in self._vocab.items()}
        table.update((i, str(token.content).encode()) for i, token in self._added.items())
        return table

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over id -> bytes of every id. Equal fingerprints mean that ids have the same meaning."""
        digest = hashlib.sha256()
        for i, data in sorted(self.table.items()):
            digest.update(b"%d:%d:" % (i, len(data)) + data)
        return digest.hexdigest()

    def mismatch(self, other: Tokenizer) -> str | None:
        """Return why `other` cannot read ids of this tokenizer, or None when it can.

        Ids that only one of them has are accepted where they are added tokens: vocabularies are padded, and
        models of one family add different control tokens.
        """
        if self.fingerprint == other.fingerprint:
            return None
        mine, theirs = self.table, other.table
        for i in sorted(mine.keys() | theirs.keys()):
            if i in mine and i in theirs:
                if mine[i] != theirs[i]:
                    return (
                        f"token {i} is {_show(mine[i])} in one vocabulary and {_show(theirs[i])} in the other"
                    )
            elif i not in self._added and i not in other._added:
                only = mine if i in mine else theirs
                sizes = f"{len(mine)} and {len(theirs)} tokens"
                return f"token {i}, {_show(only[i])}, is missing from one vocabulary ({sizes})"
        return None


def _show(data: bytes) -> str:
    return repr(data.decode("utf-8", errors="backslashreplace"))


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Read tokenizer.json and related files from a model folder. Raises ModelError."""
    folder = Path(folder)
    path, data = folder / TOKENIZER_FILE, _data(folder)
    try:
        backend = tokenizers.Tokenizer.from_buffer(data)
    except Exception as error:  # `tokenizers` raises plain Exception
        raise ModelError(f"{path} cannot be read: {error}", _COPY) from error
    backend.no_truncation()
    backend.no_padding()
    config = read_json(folder / "tokenizer_config.json")
    texts = {name: _text(config.get(f"{name}_token")) for name in ("bos", "eos", "unk", "pad")}
    ends: list[Any] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json(folder / name).get("eos_token_id")
        ends += value if isinstance(value, list) else [value]
    ends.append(backend.token_to_id(texts["eos"]) if texts["eos"] else None)
    add_bos = config.get("add_bos_token")
    return Tokenizer(
        backend,
        eos_ids=[i for i in ends if type(i) is int and 0 <= i < _MOST_IDS],
        chat_template=_chat_template(folder, config, "default"),
        tool_template=_chat_template(folder, config, "tool_use"),
        special_texts={f"{name}_token": text for name, text in texts.items() if text},
        add_bos=add_bos if isinstance(add_bos, bool) else None,
        digest=hashlib.sha256(data).hexdigest(),
    )


def load_beside(folder: Path, other: Tokenizer) -> Tokenizer:
    """Return the tokenizer of a draft's folder; `other` itself where both files are the same.

    Parsing and comparing two vocabularies of 150,000 tokens takes two seconds.
    """
    return other if other.digest == hashlib.sha256(_data(folder)).hexdigest() else load_tokenizer(folder)


def _data(folder: Path) -> bytes:
    """Return the content of tokenizer.json. Raises ModelError."""
    path = folder / TOKENIZER_FILE
    try:
        return read_bytes(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise ModelError(
            f"{folder} has no tokenizer ({TOKENIZER_FILE})", "copy the model's tokenizer files there"
        ) from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", _COPY) from error


def _text(token: Any) -> str:
    """Return a special token of tokenizer_config.json, given as its text or as an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _chat_template(folder: Path, config: Mapping[str, Any], name: str) -> str | None:
    """Return a template by its name in transformers; only "default" may be given without a name."""
    path = folder / "chat_template.jinja"
    if name == "default" and path.is_file():
        try:
            return read_bytes(path, MOST_SOURCE).decode("utf-8", errors="replace")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} cannot be read: {error}", _COPY) from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get(name)
    elif name != "default":
        return None
    return template if isinstance(template, str) else None
