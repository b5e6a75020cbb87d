"""Whisper's rules for the next token, against transformers' processors."""

from __future__ import annotations

import json

import array_api_strict as strict
import numpy as np
import pytest
import torch
from support.tiny import tiny_whisper
from transformers import GenerationConfig
from transformers.generation.logits_process import (
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from specport.core.arrays import to_host
from specport.core.sampling.processors import Prefix
from specport.models.json_file import read_json
from specport.speech.whisper.rules import TimestampRules, processors
from specport.speech.whisper.tokens import WhisperTokens
from specport.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokens(models) -> WhisperTokens:
    config = read_json(models.target / "config.json")
    generation = read_json(models.target / "generation_config.json")
    return WhisperTokens(load_tokenizer(models.target), config["vocab_size"], generation)


def _texts(tokens: WhisperTokens, rng: np.random.Generator) -> list[list[int]]:
    """Texts with timestamps anywhere, as a draft may propose them."""
    stamp, found = tokens.timestamp_begin, [[]]
    for _ in range(60):
        kinds = rng.random(rng.integers(1, 7)) < 0.5
        found.append(
            [int(rng.integers(stamp, tokens.vocab) if kind else rng.integers(0, 250)) for kind in kinds]
        )
    return [*found, [stamp], [stamp, 7], [stamp + 3, stamp + 3], [7, stamp + 5], [7, stamp + 5, stamp + 5, 8]]


def test_they_are_those_of_transformers(tokens: WhisperTokens) -> None:
    prompt = [tokens.sot, tokens.languages["en"], tokens.transcribe]
    begin = len(prompt)
    config = GenerationConfig(
        no_timestamps_token_id=tokens.no_timestamps, eos_token_id=tokens.eot, bos_token_id=tokens.eot
    )
    config.max_initial_timestamp_index = 50
    theirs = [
        SuppressTokensAtBeginLogitsProcessor([*tokens.suppressed_first], begin),
        SuppressTokensLogitsProcessor([*tokens.suppressed]),
        WhisperTimeStampLogitsProcessor(config, begin),
    ]
    rng = np.random.default_rng(0)
    kinds = set()
    for text in _texts(tokens, rng):
        for lift in (0.0, 3.0):  # with likelier timestamps
            logits = rng.normal(size=tokens.vocab).astype(np.float32)
            logits[tokens.timestamp_begin :] += lift
            ids, want = torch.tensor([[*prompt, *text]]), torch.from_numpy(logits)[None]
            for processor in theirs:
                want = processor(ids, want)
            expected = want[0].numpy()
            half = len(text) // 2
            for ours in (logits, strict.asarray(logits)):
                found, prefix = ours, Prefix([*prompt, *text[:half]], tuple(text[half:]))
                for processor in processors(tokens, begin, timestamps=True):
                    found = processor(found, prefix)
                assert np.array_equal(to_host(found), expected), text
            kinds.add(np.isinf(expected).tobytes())
    assert len(kinds) > 20


def test_first_timestamp_is_bounded(tokens: WhisperTokens) -> None:
    logits = np.zeros(tokens.vocab, np.float32)
    found = TimestampRules(tokens, 1, first_within=4)(logits, [tokens.sot])
    allowed = np.flatnonzero(found > -np.inf)
    assert allowed.tolist() == [*range(tokens.timestamp_begin, tokens.timestamp_begin + 5)]


def test_a_draft_without_timestamps_is_left_alone(tokens: WhisperTokens) -> None:
    logits = np.zeros(100, np.float32)
    assert np.array_equal(TimestampRules(tokens, 1)(logits, [0, 5]), logits)


def test_english_models_have_no_languages(models) -> None:
    config = read_json(models.english / "config.json")
    found = WhisperTokens(load_tokenizer(models.english), config["vocab_size"], {"is_multilingual": False})
    assert not found.multilingual and found.languages == {}
    named = {found.vocabulary.table[i] for i in found.vocabulary.special_ids}
    assert b"<|en|>" not in named and {b"<|startoftranscript|>", b"<|0.02|>", b"<|endoftext|>"} <= named


def test_the_default_suppresses_signs_and_control_tokens(models) -> None:
    config = read_json(models.target / "config.json")
    found = WhisperTokens(load_tokenizer(models.target), config["vocab_size"])
    assert {found.sot, found.transcribe, found.no_speech} <= {*found.suppressed}
    assert found.encode("#")[0] in found.suppressed and found.encode("a")[0] not in found.suppressed
    assert found.suppressed_first == (*found.encode(" "), found.eot)
    assert config["vocab_size"] - found.timestamp_begin == tiny_whisper.STAMPS


@pytest.mark.parametrize("wrong", [5, "x", [[0]], [["a", 1]], [[99, 0], [-1, 0]], None])
def test_alignment_heads_that_are_none(models, wrong: object) -> None:
    config = read_json(models.target / "config.json")
    found = WhisperTokens(load_tokenizer(models.target), config["vocab_size"], {"alignment_heads": wrong})
    assert found.alignment_heads(2, 2) == [(1, 0), (1, 1)]


def test_a_tokenizer_with_more_ids_than_the_model(models, tmp_path) -> None:
    known = json.loads((models.target / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = read_json(models.target / "config.json")["vocab_size"]
    first = max(each["id"] for each in known["added_tokens"]) + 1
    names = [*(f"<|filler {i}|>" for i in range(tiny_whisper.STAMPS)), "<|fr|>"]
    more = [{**known["added_tokens"][0], "id": first + i, "content": name} for i, name in enumerate(names)]
    known["added_tokens"] += more
    (tmp_path / "tokenizer.json").write_text(json.dumps(known), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_id("<|fr|>") == vocab
    found = WhisperTokens(tokenizer, vocab, {"is_multilingual": True})
    assert [*found.languages] == ["en", "de"]
