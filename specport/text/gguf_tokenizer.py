"""Build a `tokenizers` tokenizer from the vocabulary in a GGUF file, with llama.cpp's token ids.

The pre-tokenizers and flags are those of llama.cpp (src/llama-vocab.cpp). The result is saved as an ordinary
Hugging Face tokenizer, so that transformers reads it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from specport.errors import ModelError
from specport.models.atomic import write_atomically, write_json
from specport.models.gguf.file import GgufHeader

UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 2, 3, 4, 5  # tokenizer.ggml.token_type

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_WORDS = _CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])*(?:(?=\p{L})[^A-Z])+%s|" + (
    r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])+(?:(?=\p{L})[^A-Z])*%s|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Expressions are applied in order, each to the pieces left by the one before.
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "qwen2": (_WORDS % "",),
    "llama-bpe": (_WORDS % "{1,3}",),
    "tekken": (_CASED % ("", "", ""),),
    "gpt-4o": (_CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?", "{1,3}"),),
}
ALIASES = {
    "": "default",
    **dict.fromkeys(("phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "mellum"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), "smollm"),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open"), "qwen2"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "lfm2", "dbrx", "smaug-bpe"), "llama-bpe"),
    **dict.fromkeys(("llama4", "kanana2"), "gpt-4o"),
}
IGNORE_MERGES = {"llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2", "tekken"}
BOS_BY_DEFAULT = IGNORE_MERGES

# Texts that end a turn or a text regardless of the metadata (llama.cpp has a similar list).
END_OF_TURN = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
})  # fmt: skip


class Vocabulary:
    """Hold the `tokenizer.ggml.*` metadata of a GGUF file, checked."""

    def __init__(self, header: GgufHeader) -> None:
        self.path, self._data = header.path, header.metadata
        tokens = self.get("tokens")
        if not isinstance(tokens, list) or not tokens:
            raise ModelError(f"{self.path} has no vocabulary", "use a GGUF file that holds its tokenizer")
        types, scores = self.get("token_type"), self.get("scores")
        for name, values in (("token types", types), ("scores", scores)):
            if values is not None and len(values) < len(tokens):
                raise ModelError(f"{self.path}: {len(tokens)} tokens but {len(values)} {name}")
        self.tokens: list[str] = tokens
        self.types: list[int] = [1] * len(tokens) if types is None else [int(t) for t in types]
        self.scores: list[float] = [] if scores is None else [float(s) for s in scores]
        self.kind = str(self.get("model", ""))
        self.pre = str(self.get("pre", ""))
        self.spm = self.kind == "llama"
        bos_default = self.spm or self.pre in BOS_BY_DEFAULT
        self.add_bos = bool(self.get("add_bos_token", bos_default))
        self.add_eos = bool(self.get("add_eos_token", False))
        self.add_space_prefix = bool(self.get("add_space_prefix", self.spm))
        self.chat_template = self._data.get("tokenizer.chat_template")

    def get(self, key: str, default: Any = None) -> Any:
        return self._data.get(f"tokenizer.ggml.{key}", default)

    def special(self, name: str, default: int | None = None) -> int | None:
        """Return the id of the `bos`, `eos`, `eot`, `eom`, `unknown` or `padding` token, or None."""
        value = self.get(f"{name}_token_id", default)
        return int(value) if value is not None and 0 <= int(value) < len(self.tokens) else None

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


def build(vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer of a GGUF vocabulary. Raises ModelError for an unsupported kind."""
    if vocabulary.spm:
        tokenizer = _sentencepiece(vocabulary)
    elif vocabulary.kind == "gpt2":
        tokenizer = _byte_level(vocabulary)
    else:
        raise ModelError(
            f"{vocabulary.path}: tokenizer model {vocabulary.kind!r} is not supported",
            "use a GGUF file with a 'gpt2' or 'llama' tokenizer, or the model's Hugging Face folder",
        )
    _add_special_tokens(tokenizer, vocabulary)
    _add_template(tokenizer, vocabulary)
    return tokenizer


def _real_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Return text -> id without padding tokens, which only round up the embedding size."""
    out: dict[str, int] = {}
    for i, text in enumerate(vocabulary.tokens):
        if vocabulary.types[i] == UNUSED and text == f"[PAD{i}]":
            continue
        out.setdefault(text or f"[EMPTY_{i}]", i)
    return out


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    merges = vocabulary.get("merges")
    if not isinstance(merges, list):
        raise ModelError(f"{vocabulary.path} has no tokenizer merges")
    name = ALIASES.get(vocabulary.pre, vocabulary.pre)
    if name not in PRE_TOKENIZERS:
        raise ModelError(
            f"{vocabulary.path}: pre-tokenizer {vocabulary.pre!r} is not supported",
            "use the model's Hugging Face folder instead",
        )
    tokens = _real_tokens(vocabulary)
    pairs = []
    for merge in merges:
        left, _, right = merge[1:].partition(
            " "
        )  # llama.cpp searches for the space from the second character on
        left = merge[:1] + left
        if left in tokens and right in tokens and left + right in tokens:
            pairs.append((left, right))
    model = BPE(vocab=tokens, merges=pairs, ignore_merges=vocabulary.pre in IGNORE_MERGES)
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in PRE_TOKENIZERS[name]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    tokens = _real_tokens(vocabulary)
    if not vocabulary.scores:
        raise ModelError(f"{vocabulary.path} has no token scores")
    unknown = vocabulary.special("unknown", 0)
    model = BPE(
        vocab=tokens,
        merges=_merges_from_scores(tokens, vocabulary.scores),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    prefix = [normalizers.Prepend("▁")] if vocabulary.add_space_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, spaces])
    tail = [decoders.Strip(" ", 1, 0)] if vocabulary.add_space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    return tokenizer


def _merges_from_scores(tokens: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return merge rules that join pieces in the order of the merged piece's score, as SentencePiece does."""
    found: list[tuple[float, int, str, str]] = []
    for text, i in tokens.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in tokens and right in tokens:
                found.append((-scores[i], i, left, right))
    found.sort(key=lambda row: row[:2])
    return [(left, right) for _, _, left, right in found]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    special, plain = [], []
    for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=False):
        if not text:
            continue
        if kind in (CONTROL, UNKNOWN) or (text in END_OF_TURN and kind == USER_DEFINED):
            special.append(AddedToken(text, normalized=False, special=True))
        elif kind == USER_DEFINED:
            plain.append(AddedToken(text, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_template(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Make the tokenizer add BOS and EOS where the model's convention does."""
    ends = []
    for wanted, i in ((vocabulary.add_bos, vocabulary.bos), (vocabulary.add_eos, vocabulary.eos)):
        ends.append((vocabulary.tokens[i], i) if wanted and i is not None else None)
    if ends == [None, None]:
        return
    first, last = ("" if end is None else end[0] for end in ends)
    pair = [first, "$A", last, first and f"{first}:1", "$B:1", last and f"{last}:1"]
    tokenizer.post_processor = TemplateProcessing(
        single=[part for part in (first, "$A", last) if part],
        pair=[part for part in pair if part],
        special_tokens=[end for end in ends if end is not None],
    )


def save(header: GgufHeader, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja into `folder`."""
    vocabulary = Vocabulary(header)
    build(vocabulary).save(str(folder / "tokenizer.json"), pretty=False)
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": vocabulary.add_bos,
        "add_eos_token": vocabulary.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(header.metadata.get(f"{header.architecture}.context_length", 1 << 30)),
    }
    named = {"bos": vocabulary.bos, "eos": vocabulary.eos}
    named |= {"unk": vocabulary.special("unknown"), "pad": vocabulary.special("padding")}
    config |= {f"{name}_token": vocabulary.tokens[i] for name, i in named.items() if i is not None}
    write_json(folder / "tokenizer_config.json", config, indent=2)
    if isinstance(vocabulary.chat_template, str) and vocabulary.chat_template:
        write_atomically(folder / "chat_template.jinja", vocabulary.chat_template)
