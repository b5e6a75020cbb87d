"""Random texts for translation between two tokenizers, and what must hold for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import dropwhile
from random import Random

from specport.drafters.cross_vocab.translation import Translation
from specport.drafters.cross_vocab.translator import TextEncoder, Translator, Vocabulary

_WORDS = [
    "the", " quick", " brown", "fox", " antidisestablishmentarianism", "def f(x):\n", "    return x\n",
    "  ", "\t", "\n\n", "\r\n", "x_1 = [2.50];", "12345", "//", "/*", "*/", "\\n", "'s", "'LL", "!", "?!",
    "http://a.b/c?d=e&f", "a" * 90, "=" * 70, "ab" * 60, "<|im_end|>", "<eos>", "</s>", "▁", "<0x41>",
    "é", "e\u0301", " naïve", "你好", "世界", "مرحبا", "हिन्दी", "\ufb01", "\uff21", "\x00", "\u2028",
    "😀", "\U0001f469\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "\u200b", "\ufeff", "\U0010ffff",
]  # fmt: skip


def random_text(rng: Random, num_words: int) -> str:
    """Words of many kinds, some of them several times in a row."""
    return "".join(rng.choice(_WORDS) * rng.choice((1, 1, 1, 1, 2, 5)) for _ in range(num_words))


def random_context(rng: Random, vocabulary: Vocabulary) -> list[int]:
    """Encoded texts, control tokens and tokens at random: what a model could have written."""
    control, ordinary = sorted(vocabulary.special_ids), sorted(vocabulary.table)
    out: list[int] = []
    for _ in range(rng.randint(1, 6)):
        kind = rng.random()
        if kind < 0.6:
            out += vocabulary.encode_part(random_text(rng, rng.randint(1, 12)))
        elif kind < 0.8 and control:
            out.append(rng.choice(control))
        else:
            out += rng.choices(ordinary, k=rng.randint(1, 8))
    return out


def plain(encoder: TextEncoder, ids: list[int]) -> bytes:
    """The bytes of the tokens that are text."""
    return b"".join(encoder.table[i] for i in ids if i not in encoder.special_ids)


def missing(encoder: TextEncoder) -> bytes:
    """Bytes without a token of their own; where a character needs one, it is left out."""
    return bytes(b for b in range(256) if bytes([b]) not in encoder.by_bytes)


def control(encoder: TextEncoder, ids: list[int]) -> list[int]:
    return [i for i in ids if i in encoder.special_ids]


@dataclass
class Tally:
    """How often growing step by step gave the ids of encoding at once, and drafted tokens came out right."""

    contexts: int = 0
    same_as_at_once: int = 0
    drafted: int = 0  # but the last of each draft
    right: int = 0


def check_context(translator: Translator, context: list[int], rng: Random, tally: Tally) -> None:
    """Nothing is lost or changed, however the context grows."""
    target, assistant = translator.target, translator.assistant
    translation, read, lost = Translation(translator), 0, missing(assistant)
    while read < len(context):
        read = min(len(context), read + rng.choice((1, 1, 2, 5, 40)))
        before = list(translation.ids)
        kept = translation.read(context[:read])
        assert translation.ids[:kept] == before[:kept] and kept <= len(before)
        ours, theirs = plain(target, context[:read]), plain(assistant, translation.ids)
        assert theirs.translate(None, lost) == ours.translate(None, lost)
        assert theirs == ours or len(theirs) < len(ours)
        if not lost:
            assert theirs == ours and (translation.complete or not translation.ids)
    expected = [translator.to_assistant[i] for i in control(target, context) if i in translator.to_assistant]
    found = control(assistant, translation.ids)
    assert _without_bos(found, assistant.bos) == _without_bos(expected, assistant.bos)
    once = Translation(translator)
    once.read(context)
    tally.contexts += 1
    tally.same_as_at_once += once.ids == translation.ids


def _without_bos(ids: list[int], bos: int | None) -> list[int]:
    """However many begin a context, the assistant sees one; whether it does is tested by itself."""
    return list(dropwhile(lambda token: token == bos, ids))


def check_draft(translator: Translator, text: str, rng: Random, tally: Tally) -> None:
    """Any bytes come back as they are; the true continuation as the target's own tokens, but for the last."""
    ids = translator.target.encode(text.encode()).ids
    cut = rng.randrange(len(ids) + 1)
    translation = Translation(translator)
    translation.read(ids[:cut])
    coming = plain(translator.target, ids[cut:])[: rng.randint(1, 60)]
    found = translation.to_target(coming)
    check_bytes(translator.target, found, coming)
    assert [end for _, end in found] == sorted({end for _, end in found})
    sure = [token for token, _ in found[:-1]]
    tally.drafted += len(sure)
    tally.right += sum(a == b for a, b in zip(sure, ids[cut:], strict=False))
    noise = rng.randbytes(rng.randint(1, 12))
    check_bytes(translator.target, translation.to_target(noise), noise)


def check_bytes(encoder: TextEncoder, found: list[tuple[int, int]], data: bytes) -> None:
    """The tokens are these bytes, up to one for which there is no token."""
    covered = plain(encoder, [token for token, _ in found])
    assert covered == data[: len(covered)]
    # A character may need a byte that has no token: all of it is missing then.
    assert len(covered) == len(data) or any(byte in missing(encoder) for byte in data[len(covered) :][:4])


def fuzz(translator: Translator, target: Vocabulary, seed: int, rounds: int) -> Tally:
    rng, tally = Random(seed), Tally()
    for _ in range(rounds):
        check_context(translator, random_context(rng, target), rng, tally)
        check_draft(translator, random_text(rng, rng.randint(1, 12)), rng, tally)
    return tally
