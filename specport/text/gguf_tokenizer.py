"""Build a `tokenizers` tokenizer from the vocabulary in a GGUF file, with llama.cpp's token ids.

The result is saved as an ordinary Hugging Face tokenizer, so that transformers reads it too.
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
from specport.models.gguf.values import Values
from specport.text import gguf_splits
from specport.text.chat_template import ChatTemplate
from specport.text.gguf_vocabulary import CONTROL, END_OF_TURN, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary

_HINT = "use the model's Hugging Face folder"
# A text that every vocabulary has to give back as it was.
_ASCII = "".join(map(chr, range(ord(" ") + 1, 127))) + "\n a"
_SHOWN = 40
_MOST_LETTERS, _MOST_CUTS = 1024, 16  # of a token, and of all tokens on the average; gemma has 2


def check_kind(vocabulary: Vocabulary) -> None:
    """Raise ModelError for a kind of tokenizer that `build` refuses, or a broken chat template. Fast."""
    if vocabulary.kind == "gpt2":
        if not vocabulary.pre:
            raise ModelError(
                f"{vocabulary.path} does not say how it splits words (tokenizer.ggml.pre)",
                "use a newer GGUF file of this model, or its Hugging Face folder",
            )
        if gguf_splits.NAMES.get(vocabulary.pre, vocabulary.pre) not in gguf_splits.SPLITS:
            raise ModelError(
                f"{vocabulary.path}: pre-tokenizer {vocabulary.pre[:_SHOWN]!r} is not supported", _HINT
            )
    elif not vocabulary.spm:
        raise ModelError(
            f"{vocabulary.path}: tokenizer model {vocabulary.kind[:_SHOWN]!r} is not supported",
            "use a GGUF file with a 'gpt2' or 'llama' tokenizer, or the model's Hugging Face folder",
        )
    if vocabulary.chat_template:
        try:
            ChatTemplate(vocabulary.chat_template)
        except ModelError as error:
            raise ModelError(f"{vocabulary.path}: {error.message}", _HINT) from error


def build(vocabulary: Vocabulary) -> Tokenizer:
    """Return the tokenizer of a GGUF vocabulary, checked against it.

    Raises ModelError for an unsupported kind, and where an id would have another meaning than in the file.
    """
    check_kind(vocabulary)
    tokenizer = _sentencepiece(vocabulary) if vocabulary.spm else _byte_level(vocabulary)
    _add_special_tokens(tokenizer, vocabulary)
    _check(tokenizer, vocabulary)
    _add_template(tokenizer, vocabulary)
    return tokenizer


def _check(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Raise ModelError where ids, special tokens or plain texts are not those of the file."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    for text, i in _real_tokens(vocabulary).items():
        control = vocabulary.types[i] == CONTROL
        if known.get(text) != i or (control and tokenizer.encode(text, add_special_tokens=False).ids != [i]):
            raise ModelError(
                f"{vocabulary.path}: token {i}, {text[:_SHOWN]!r}, cannot be kept as it is", _HINT
            )
    if tokenizer.decode(tokenizer.encode(_ASCII, add_special_tokens=False).ids) != _ASCII:
        raise ModelError(f"{vocabulary.path}: the vocabulary does not hold all of ASCII", _HINT)


def _real_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """Return text -> id without padding tokens, which only round up the embedding size."""
    out: dict[str, int] = {}
    for i, text in enumerate(vocabulary.tokens):
        if vocabulary.types[i] == UNUSED and text == f"[PAD{i}]":
            continue
        out.setdefault(text or f"[EMPTY_{i}]", i)
    return out


def _byte_level(vocabulary: Vocabulary) -> Tokenizer:
    merges = vocabulary.values.get("merges")
    if not isinstance(merges, list):
        raise ModelError(f"{vocabulary.path} has no tokenizer merges", _HINT)
    name = gguf_splits.NAMES.get(vocabulary.pre, vocabulary.pre)
    tokens = _real_tokens(vocabulary)
    pairs = []
    for merge in merges:
        left, _, right = merge[1:].partition(
            " "
        )  # llama.cpp searches for the space from the second character on
        left = merge[:1] + left
        if left in tokens and right in tokens and left + right in tokens:
            pairs.append((left, right))
    model = BPE(vocab=tokens, merges=pairs, ignore_merges=vocabulary.pre in gguf_splits.IGNORE_MERGES)
    tokenizer = Tokenizer(model)
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in gguf_splits.SPLITS[name]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    tokens = _real_tokens(vocabulary)
    if not vocabulary.scores:
        raise ModelError(f"{vocabulary.path} has no token scores", _HINT)
    unknown = vocabulary.special("unknown", 0)
    model = BPE(
        vocab=tokens,
        merges=_merges_from_scores(tokens, vocabulary.scores, vocabulary.path),
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


def _merges_from_scores(tokens: Mapping[str, int], scores: list[float], path: Path) -> list[tuple[str, str]]:
    """Return merge rules that join pieces in the order of the merged piece's score, as SentencePiece does.

    Raises ModelError where the tokens are longer, or can be cut in more ways, than those of any real model:
    both take memory and time that grow with the square of the file.
    """
    found: list[tuple[float, int, str, str]] = []
    for text, i in tokens.items():
        if len(text) > _MOST_LETTERS or len(found) > _MOST_CUTS * len(tokens):
            raise ModelError(f"{path}: its tokens are not those of a SentencePiece vocabulary", _HINT)
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
        "model_max_length": Values(header, header.architecture).whole("context_length", 1 << 30),
    }
    named = {"bos": vocabulary.bos, "eos": vocabulary.eos}
    named |= {"unk": vocabulary.special("unknown"), "pad": vocabulary.special("padding")}
    config |= {f"{name}_token": vocabulary.tokens[i] for name, i in named.items() if i is not None}
    write_json(folder / "tokenizer_config.json", config, indent=2)
    if vocabulary.chat_template:
        write_atomically(folder / "chat_template.jinja", vocabulary.chat_template)
