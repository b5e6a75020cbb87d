"""How byte-level vocabularies cut a text into words before merging, by the name in `tokenizer.ggml.pre`.

The expressions are those of the models' own tokenizers; names and flags are llama.cpp's
(src/llama-vocab.cpp). tests/text/test_gguf_splits.py compares the ids with those that llama.cpp gives.
"""

from __future__ import annotations

from collections.abc import Mapping

_CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_CASED = r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])*(?:(?=\p{L})[^A-Z])+%s|" + (
    r"[^\r\n\p{L}\p{N}]?(?:(?=\p{L})[^a-z])+(?:(?=\p{L})[^A-Z])*%s|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_MARKED = (  # words with their combining marks
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
)
_SEED = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|" + _SPACES
_BAILING = (
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_PUNCTUATED = (
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_WIDE = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_CASED_LETTERS = "\\s?(?:(?![\U0001d400-\U0001d7ff])[\\p{Lu}\\p{Ll}\\p{Lt}])+"  # but those of mathematics
_SENTENCES = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# Expressions are applied in order, each to the pieces left by the one before.
SPLITS: Mapping[str, tuple[str, ...]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
    "qwen2": (_WORDS % "",),
    "qwen35": (_MARKED,),
    "seed-coder": (_SEED,),
    "bailingmoe": (_BAILING,),
    "llama-bpe": (_WORDS % "{1,3}",),
    "minicpm5": (r"\p{N}{1,3}", _WORDS % "+"),
    "tekken": (_CASED % ("", "", ""),),
    "gpt-4o": (_CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?", "{1,3}"),),
    "deepseek-v3": (r"\p{N}{1,3}", _KANA, _PUNCTUATED),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN, r"\p{N}"),
    "deepseek-llm": (r"[\r\n]", _CASED_LETTERS, _WIDE, r"\s+$", _HAN, r"\p{N}+"),
    "bloom": (_SENTENCES,),
    "viking": (_SENTENCES, r"\p{N}"),
}
_LIKE_LLAMA3 = ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano")
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "gpt-2": (
        "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "mellum", "gigachat", "a.x-4.0",
        "granite-docling",
    ),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "qwen2": ("deepseek-r1-qwen", "kormo", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2"),
    "llama-bpe": (*_LIKE_LLAMA3, "dbrx", "smaug-bpe", "glm4", "chatglm-bpe"),
    "gpt-4o": ("llama4", "kanana2", "minimax-m2"),
    "deepseek-v3": ("hunyuan-dense", "joyai-llm"),
    "bailingmoe": ("bailingmoe2", "llada-moe"),
    "bloom": ("poro-chat", "gpt3-finnish"),
}  # fmt: skip
NAMES: Mapping[str, str] = {alias: name for name, aliases in _ALIASES.items() for alias in aliases}
# A word that is a token as a whole is not merged from its bytes.
IGNORE_MERGES = frozenset({"llama-bpe", *_LIKE_LLAMA3, "tekken", "minicpm5"})
BOS_BY_DEFAULT = frozenset({"llama-bpe", *_LIKE_LLAMA3, "tekken"})
# Files from before `tokenizer.ggml.pre`, where the architecture leaves no doubt.
OF_ARCHITECTURE: Mapping[str, str] = {
    "qwen2": "qwen2", "qwen2moe": "qwen2", "qwen3": "qwen2", "qwen3moe": "qwen2", "starcoder2": "starcoder",
    "falcon": "falcon", "gpt2": "gpt-2", "bloom": "bloom", "lfm2": "lfm2",
}  # fmt: skip
