"""Assistants of another tokenizer: translation loses nothing, texts and sampling laws stay what they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import pytest
import tokenizers
from support.faults.translation_fuzz import fuzz, plain, random_text
from support.generations import begin, drafted, run
from support.laws.sampling_law import check_law
from support.tiny.sentencepiece import fallback
from support.toys.toy_model import ToyModel
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import Fixed, make_length_rule
from specport.core.ports import Drafted, DraftRequest, Model, Plan, Row, StepOutput
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.core.verify.rules import rule_for
from specport.drafters.cross_vocab.translation import Translation
from specport.drafters.cross_vocab.translator import TextEncoder, Translator
from specport.drafters.cross_vocab.universal import UniversalDrafter
from specport.errors import ModelError
from specport.text.tokenizer import Tokenizer

CODE = Path(__file__).read_text(encoding="utf-8")
COSTS = StepCosts((1, 8), (0,), ((1.0, 1.5),), measured=True)
CHEAP = StepCosts((1, 2, 8), (0,), ((0.01, 0.011, 0.014),), measured=True)


def trained(vocab_size: int, special: list[str], text: str = CODE) -> tokenizers.Tokenizer:
    """Byte-level BPE, as Qwen and Llama 3 have it."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


@cache
def vocabulary(name: str) -> Tokenizer:
    turns = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|only_here|>"]
    if name == "byte-level":
        return Tokenizer(trained(500, turns))
    if name == "composing":  # as Qwen's own file does
        backend = trained(700, turns[1:])
        backend.normalizer = normalizers.NFC()
        return Tokenizer(backend)
    others = ["<start_of_turn>", "<end_of_turn>", "<eos>"]
    bos = {"bos_token": "<s>"}
    if name == "fallback":
        return Tokenizer(fallback(CODE, 400, others, prefix=False), special_texts=bos)
    return Tokenizer(fallback(CODE, 300, others, prefix=True), special_texts=bos)


NAMES = ("byte-level", "composing", "fallback", "prefixing")
PAIRS = [(a, b) for a in NAMES for b in NAMES if a != b]


def translator(target: str, assistant: str) -> Translator:
    return Translator(vocabulary(target), vocabulary(assistant))


@pytest.mark.parametrize(("target", "assistant"), PAIRS)
def test_no_text_is_lost(target: str, assistant: str) -> None:
    tally = fuzz(translator(target, assistant), vocabulary(target), seed=7, rounds=40)
    assert tally.same_as_at_once > 0.6 * tally.contexts
    assert tally.right > 0.9 * tally.drafted > 100


def test_control_tokens_go_by_name_and_role_and_others_are_left_out() -> None:
    ours, theirs = vocabulary("byte-level"), vocabulary("fallback")
    both = translator("byte-level", "fallback")
    context = ours.encode("<|im_start|>user\nfox<|im_end|><|only_here|>\n<|im_start|>")
    translation = Translation(both)
    translation.read(context)
    assert theirs.decode(translation.ids) == "<s><start_of_turn>user\nfox<end_of_turn>\n<start_of_turn>"
    # What only looks like a control token is text, in both.
    text = ours.encode("<|im_end|><eos>", parse_special=False)
    translation = Translation(both)
    translation.read(text)
    assert not set(translation.ids[1:]) & theirs.special_ids
    assert plain(both.assistant, translation.ids) == b"<|im_end|><eos>"


def test_there_is_one_bos() -> None:
    ours, theirs = vocabulary("prefixing"), vocabulary("fallback")
    for skip, start in ((0, [theirs.bos]), (1, [])):
        translation = Translation(translator("prefixing", "fallback"), skip)
        translation.read([ours.bos, *ours.encode_part("fox")])
        assert [i for i in translation.ids if i in theirs.special_ids] == start


def test_a_character_in_parts_is_whole_again_when_it_is_complete() -> None:
    theirs = vocabulary("byte-level")
    context = [1 + byte for byte in "x你".encode()]  # byte tokens
    translation = Translation(translator("fallback", "byte-level"))
    for n in range(1, len(context) + 1):
        translation.read(context[:n])
        assert plain(translator("byte-level", "fallback").target, translation.ids) == "x你".encode()[:n]
    assert translation.ids == theirs.encode_part("x你")
    unknown = "\u9f8d".encode()
    assert translation.to_target(unknown) == [(1 + byte, n) for n, byte in enumerate(unknown, 1)]


def test_a_draft_inside_what_would_be_one_token_stands_alone() -> None:
    ours = vocabulary("byte-level")
    (whole,) = ours.encode_part(" return")
    part = [*ours.encode_part(" re")]
    translation = Translation(translator("byte-level", "fallback"))
    translation.read(part)
    assert whole not in part
    assert b"".join(ours.table[token] for token, _ in translation.to_target(b"turn")) == b"turn"


@pytest.mark.parametrize("change", [normalizers.Lowercase(), normalizers.Replace("  ", " ")])
def test_a_tokenizer_that_changes_text_is_refused(change: normalizers.Normalizer) -> None:
    backend = trained(300, [], "x  y")
    backend.normalizer = change
    with pytest.raises(ModelError, match="the draft changes the text"):
        Translator(vocabulary("byte-level"), Tokenizer(backend))


class Random3(ToyModel):
    """A toy with many tokens: logits depend on the last two, by a table of 16 classes each."""

    def __init__(self, width: int, seed: int, **options: object) -> None:
        super().__init__(16, width=max(16, width), max_context=4096, **options)  # type: ignore[arg-type]
        self.vocab_size = width
        # Sharp, so that what it drafts seems sure enough to a planner.
        self.table = 5.0 * np.random.default_rng(seed).normal(size=(16, 16, width)).astype(np.float32)


def universal(target: Model, draft: Model, names: tuple[str, str], **options: object) -> UniversalDrafter:
    ours, theirs = (vocabulary(name) for name in names)
    return UniversalDrafter(draft, target.vocab_size, ours, theirs, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [*zip(NAMES, NAMES[1:] + NAMES[:1], strict=True)])
@pytest.mark.parametrize("policy", ["planned", "fixed", "confidence"])
def test_greedy_text_equals_plain_decoding(names: tuple[str, str], policy: str) -> None:
    widths = [vocabulary(name).vocab_size + pad for name, pad in zip(names, (3, 5), strict=True)]
    target, draft = Random3(widths[0], 1), Random3(widths[1], 2, batch=policy == "fixed")
    drafter = universal(target, draft, names)
    if policy == "planned":
        engine = Engine(target, Planner([Source(drafter, CHEAP)], COSTS))
    else:
        engine = drafted(target, drafter, rule=lambda: make_length_rule(policy))
    rng = Random(3)
    prompts = [vocabulary(names[0]).encode(random_text(rng, 6)) for _ in range(3)]
    penalty = SamplingParams(repetition_penalty=1.3)
    extra = begin(prompts[0], params=penalty)
    plain = [begin(p) for p in prompts]
    assert run(engine, *plain) == [target.greedy(p, 40) for p in prompts]
    assert run(engine, extra) == run(Engine(target), begin(prompts[0], params=penalty))
    assert sum(g.metrics.num_draft_tokens for g in (*plain, extra)) > 0
    assert draft.num_open == 0


class Script(ToyModel):
    """A target that writes these ids, whatever it has read."""

    def __init__(self, ids: list[int], width: int) -> None:
        super().__init__(max_context=4096)
        self.vocab_size = width
        self._ids = ids

    def step(self, rows: Sequence[Row]) -> StepOutput:
        (row,) = rows
        super().step(rows)
        positions = row.block.positions[{"all": 0, "last": -1, "none": len(row.block)}[row.logits] :]
        logits = np.zeros((len(positions), self.vocab_size), dtype=np.float32)
        for out, position in zip(logits, positions, strict=True):
            out[self._ids[row.handle.length + position + 1]] = 1.0
        return StepOutput(logits, (0, len(positions)))


class Reader(ToyModel):
    """An assistant that knows one text by heart: it goes on with it from wherever it has read to."""

    def __init__(self, tokenizer: Tokenizer, text: str) -> None:
        super().__init__(max_context=4096)
        self.vocab_size = tokenizer.vocab_size
        self._encoder, self._text = TextEncoder(tokenizer, "this"), text.encode()

    def step(self, rows: Sequence[Row]) -> StepOutput:
        (row,) = rows
        super().step(rows)
        read = plain(self._encoder, [*row.handle.tokens, *row.block.tokens])
        logits = np.full((1, self.vocab_size), -9.0, dtype=np.float32)
        if self._text.startswith(read):
            logits[0, self._encoder.encode(self._text[len(read) :][:400]).ids[0]] = 9.0
        return StepOutput(logits, (0, 1))


@pytest.mark.parametrize("names", PAIRS)
def test_what_the_assistant_knows_is_accepted(names: tuple[str, str]) -> None:
    text = CODE[:3000]
    ours, theirs = (vocabulary(name) for name in names)
    ids = TextEncoder(ours, "this").encode(text.encode()).ids
    target, draft = Script(ids, ours.vocab_size), Reader(theirs, text)
    engine = drafted(target, universal(target, draft, names), rule=lambda: Fixed(6))
    generation = begin(ids[:200], n=200)
    assert run(engine, generation) == [ids[200:400]]
    metrics = generation.metrics
    assert metrics.num_accepted_tokens > 0.8 * metrics.num_draft_tokens
    assert metrics.mean_acceptance_length > 4
    assert len(draft.widths) > 50 and np.mean(draft.widths[1:]) < 1.5  # the context is read but once


class Three:
    """Stops behind the third token."""

    top_k = 0

    def goes_on(self, token: Drafted) -> bool:
        return token.position < 3


def test_the_last_token_may_go_on_and_is_less_sure() -> None:
    ours, theirs = vocabulary("byte-level"), vocabulary("fallback")
    drafter = universal(ToyModel(width=600), Reader(theirs, CODE), ("byte-level", "fallback"))
    context = ours.encode_part(CODE)[:150]
    (tree,) = drafter.propose([DraftRequest(0, context, Plan(20, stop=Three()), Sampler(SamplingParams()))])
    assert 1 < len(tree) == len(tree.confidence) < 20 and tree.is_chain
    assert set(tree.sources) == {"universal"}
    *sure, last = tree.confidence
    # Each assistant token counts where it begins: three of them, however many tokens they became.
    assert min(sure) > 0.99 and last == pytest.approx(0.87, abs=0.01)


def test_it_knows_how_much_it_has_to_read_and_forgets() -> None:
    names = ("byte-level", "fallback")
    draft = Random3(vocabulary(names[1]).vocab_size, 2)
    drafter = universal(Random3(600, 1), draft, names, window=400)
    context = vocabulary(names[0]).encode_part(CODE[:300])
    asked = DraftRequest(0, context, Plan(3), Sampler(SamplingParams()))
    assert drafter.behind(asked) == len(context)
    drafter.propose([asked])
    context += vocabulary(names[0]).encode_part("\n\nimport")
    assert 0 < drafter.behind(asked) < 20
    assert draft.num_open == 1
    drafter.forget(0)
    assert draft.num_open == 0 and drafter.behind(asked) == len(context)


def test_of_a_long_context_only_the_end_is_translated() -> None:
    names = ("byte-level", "fallback")
    draft = Random3(vocabulary(names[1]).vocab_size, 2)
    drafter = universal(Random3(600, 1), draft, names, window=16)
    context = vocabulary(names[0]).encode_part(CODE[:3000])
    asked = DraftRequest(0, context, Plan(3), Sampler(SamplingParams()))
    assert drafter.behind(asked) == 16
    assert len(drafter.propose([asked])[0])


def test_sampled_drafts_come_from_the_intersection_and_say_so() -> None:
    names = ("byte-level", "fallback")
    ours, theirs = (vocabulary(name) for name in names)
    target = Random3(ours.vocab_size + 4, 1)
    drafter = universal(target, Random3(theirs.vocab_size, 2), names)
    context = ours.encode("def f(x):\n    ")
    sampler = Sampler(SamplingParams(temperature=2.0, seed=1))
    (tree,) = drafter.propose([DraftRequest(0, context, Plan(12), sampler)])
    shared = {data: i for i, data in ours.table.items() if i not in ours.special_ids}.keys()
    shared &= {data for i, data in theirs.table.items() if i not in theirs.special_ids}
    assert len(tree) == 12 and tree.probs is not None
    for token, q in zip(tree.tokens, tree.probs, strict=True):
        assert q is not None and q.shape == (target.vocab_size,) and q[token] > 0
        assert q.sum() == pytest.approx(1, abs=1e-5)
        likely = {int(i) for i in np.flatnonzero(q)}
        control = likely & ours.special_ids
        assert {ours.table[i] for i in control} == {b"<|im_start|>", b"<|im_end|>", b"<|endoftext|>"}
        assert {ours.table[i] for i in likely - control} <= shared


def test_a_head_without_a_shared_token_is_refused() -> None:
    names = ("byte-level", "fallback")
    unk = 0  # a control token without a counterpart
    drafter = universal(Random3(600, 1), Random3(1, 2), names, token_map=[unk])
    request = DraftRequest(0, [70, 71], Plan(2), Sampler(SamplingParams(temperature=1.0)))
    with pytest.raises(ModelError, match="no token in common"):
        drafter.propose([request])


class Letters:
    """A vocabulary of a few tokens that models use, and all other bytes."""

    special_ids: frozenset[int] = frozenset()
    bos = None

    def __init__(self, *used: bytes) -> None:
        others = (bytes([b]) for b in range(256) if bytes([b]) not in used)
        self.table: Mapping[int, bytes] = dict(enumerate([*used, *others]))
        self._ids = {data: i for i, data in self.table.items()}

    def encode_part(self, text: str) -> list[int]:
        """The longest token first."""
        data, ids = text.encode(), []
        while data:
            length = 2 if data[:2] in self._ids else 1
            ids.append(self._ids[data[:length]])
            data = data[length:]
        return ids


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize("kind", ["chain", "tree", "planned", "cut"])
def test_sampling_law_of_the_whole_loop(kind: str, rule: str) -> None:
    """Chi-square of three-token texts against the exact law by enumeration."""
    vocab, samples = 4, 1500
    ours, theirs = Letters(b"a", b"b", b"ab", b"c"), Letters(b"c", b"bc", b"b", b"a")
    params = [
        SamplingParams(temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=i) for i in range(samples)
    ]
    target = ToyModel(vocab, sharpness=1.0, width=len(ours.table))
    draft = ToyModel(vocab, sharpness=1.0, seed=9, width=len(theirs.table))
    head = [3, 1, 0] if kind == "cut" else None
    if head:
        draft.table, draft.vocab_size = draft.table[:, :, head], len(head)
    drafter = UniversalDrafter(draft, target.vocab_size, ours, theirs, head)
    policy = Fixed(2, (3, 2)) if kind == "tree" else Fixed(3)
    engine = drafted(target, drafter, rule=lambda: policy)
    if kind == "planned":
        engine = Engine(target, Planner([Source(drafter, CHEAP)], COSTS))
    prompt = [1, 2, 1, 3, 2]
    counts = np.zeros((vocab,) * 3)
    accepted = 0
    for p in params:
        generation = begin(prompt, n=3, params=p, rule=rule_for(p, rule))
        counts[tuple(run(engine, generation)[0])] += 1
        accepted += generation.metrics.num_accepted_tokens
    assert accepted > samples / 5
    check_law(counts, target, prompt, params[0])
