"""The matcher on real kinds of vocabularies: masks, forced tokens, roll-back along drafted paths, the end."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from support.tiny import tiny_models
from support.tiny.sentencepiece import fallback
from support.toys.toy_pipeline import ToyTokenizer

from specport.core.sampling.processors import Prefix
from specport.errors import InvalidInput
from specport.text.grammar import matcher
from specport.text.grammar.grammar import Grammar
from specport.text.grammar.matcher import Bytes, GrammarConstraint, Vocabulary
from specport.text.tokenizer import Tokenizer, load_tokenizer

CODE = Path(__file__).read_text(encoding="utf-8")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "größe": {"type": "integer", "minimum": 0, "maximum": 300},
        "kind": {"enum": ["alpha", "beta"]},
    },
    "required": ["name", "größe", "kind"],
    "additionalProperties": False,
}
GRAMMARS = {
    "json": Grammar.json_schema(SCHEMA),
    "json with spaces": Grammar.json_schema(SCHEMA, whitespace=True),
    "regex": Grammar.regex("[a-c]{2,5}(x|yz)*"),
    "lark": Grammar.lark('start: a "b"\na: ("x" | "(" a ")")'),
}


@pytest.fixture(scope="module", params=["byte-level", "byte fallback", "byte fallback with a blank before"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "byte-level":
        folder = tmp_path_factory.mktemp("tokenizer")
        tiny_models.save_tokenizer(folder)
        return load_tokenizer(folder)
    backend = fallback(CODE, 400, ["</s>", "<end>"], prefix="before" in request.param)
    return Tokenizer(backend, eos_ids=[backend.token_to_id("</s>"), backend.token_to_id("<end>")])


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


def allowed(constraint: GrammarConstraint, prefix: Prefix) -> list[int]:
    mask = constraint.mask(prefix)
    return [] if mask is None else np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()


@pytest.mark.parametrize("grammar", GRAMMARS.values(), ids=GRAMMARS)
def test_masks_along_drafted_paths_are_those_of_a_text_read_from_its_start(
    tokenizer: Tokenizer, vocabulary: Vocabulary, grammar: Grammar
) -> None:
    random = Random(3)
    for _ in range(3):
        base = [7, 7]  # a prompt
        constraint = GrammarConstraint(vocabulary, grammar.compiled(), 2)
        for _ in range(60):
            for _ in range(2):  # two branches
                path: tuple[int, ...] = ()
                for _ in range(3):
                    found = allowed(constraint, Prefix(base, path))
                    fresh = GrammarConstraint(vocabulary, grammar.compiled(), 2)
                    if tokenizer.eos_ids.isdisjoint(path):
                        assert found == allowed(fresh, Prefix([*base, *path]))
                    else:
                        assert not found
                    if not found:
                        break
                    path += (random.choice(found) if random.random() < 0.8 else random.randrange(200),)
            choices = allowed(constraint, Prefix(base))
            forced = constraint.forced(Prefix(base))
            if forced.certain:
                assert choices == [forced.tokens[0]]
            token = random.choice(choices)
            if token in tokenizer.eos_ids:
                break
            base.append(token)
            if constraint.complete(base):
                assert set(allowed(constraint, Prefix(base))) == tokenizer.eos_ids
                break
        # The end is allowed only where the text is whole, and all that was written can become whole.
        text = tokenizer.decode(base[2:])
        if grammar.kind == "json_schema" and constraint.complete(base):
            assert set(json.loads(text)) == set(SCHEMA["properties"])


def test_a_canonical_text_is_allowed_and_its_forced_parts_are_known(
    tokenizer: Tokenizer, vocabulary: Vocabulary
) -> None:
    text = '{"name": "Ann Öd", "größe": 170, "kind": "beta"}'
    constraint = GrammarConstraint(vocabulary, GRAMMARS["json"].compiled(), 0)
    base: list[int] = []
    num_forced = 0
    while not constraint.complete(base):
        left = text.encode()[sum(len(tokenizer.token_bytes(token)) for token in base) :]
        fitting = [t for t in allowed(constraint, Prefix(base)) if left.startswith(tokenizer.token_bytes(t))]
        assert fitting, tokenizer.decode(base)
        num_forced += bool(constraint.forced(Prefix(base)).certain)
        base.append(max(fitting, key=lambda token: len(tokenizer.token_bytes(token))))
    assert tokenizer.decode(base) == text
    assert num_forced >= 5
    # The forced beginning is written as the tokenizer itself would write it.
    start = constraint_start(vocabulary)
    assert tokenizer.decode(start).startswith('{"name":') and [*start] == vocabulary(text)[: len(start)]


def constraint_start(vocabulary: Vocabulary) -> tuple[int, ...]:
    forced = GrammarConstraint(vocabulary, GRAMMARS["json"].compiled(), 0).forced(Prefix([]))
    return forced.tokens[: forced.certain]


def test_a_text_is_tokenized_to_exactly_its_bytes(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    for text in ("name", " name", 'a": {"b', "größe", "  two", "\n", "hello world", "€", ""):
        ids = vocabulary(text)
        assert b"".join(tokenizer.token_bytes(i) for i in ids) == text.encode()
    cut = "€".encode()[:2]
    assert b"".join(tokenizer.token_bytes(i) for i in vocabulary(cut)) == cut


def test_control_tokens_are_no_text(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    constraint = GrammarConstraint(vocabulary, Grammar.regex("(.|\n)*").compiled(), 0)
    assert tokenizer.special_ids & {*allowed(constraint, Prefix([]))} == tokenizer.eos_ids


def test_a_tokenizer_without_an_end_token() -> None:
    toy: Bytes = ToyTokenizer()
    constraint = GrammarConstraint(Vocabulary(toy), Grammar.regex("ab(c|d)").compiled(), 0)
    assert allowed(constraint, Prefix([])) == [0] and constraint.forced(Prefix([])).tokens == (0, 1)
    assert allowed(constraint, Prefix([0, 1])) == [2, 3]
    assert not constraint.complete([0, 1]) and constraint.complete([0, 1, 3])


def test_too_complex_a_grammar_fails_at_the_next_token(
    tokenizer: Tokenizer, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    import llguidance

    monkeypatch.setattr(
        matcher, "_limits", lambda: llguidance.LLParserLimits(step_max_items=1, verbose_errors=False)
    )
    fresh = Vocabulary(tokenizer)
    constraint = GrammarConstraint(fresh, GRAMMARS["json with spaces"].compiled(), 0)
    text = fresh('{"name": "Ann", "größe": 1')
    for end in range(1, len(text)):
        constraint.mask(Prefix(text[:end]))
        if constraint._fault:
            break
    assert constraint.mask(Prefix(text)) is None and not constraint.forced(Prefix(text)).tokens
    with pytest.raises(InvalidInput, match="cannot be followed any further"):
        constraint.complete(text)


def test_grammars_are_compiled_once(vocabulary: Vocabulary) -> None:
    compiled = Grammar.regex("once").compiled()
    vocabulary.matcher(compiled)
    first = vocabulary._compiled[compiled]
    vocabulary.matcher(compiled)
    assert vocabulary._compiled[compiled] is first
    for i in range(40):
        vocabulary.matcher(Grammar.regex(f"r{i}").compiled())
    assert len(vocabulary._compiled) <= 32 and compiled not in vocabulary._compiled
