"""Windows decoded with every drafter: the ids of plain decoding, and its law where tokens are drawn."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny import tiny_whisper

from specport.core.ports import Block, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.sampler import Sampler
from specport.errors import InvalidInput, ModelError
from specport.models.kinds.whisper import FACTS, find_encoder_key, find_head_tokens, noted
from specport.runtime.loading import Loader
from specport.speech.ports import Window
from specport.speech.whisper.heard import Heard
from specport.speech.whisper.load import load
from specport.speech.whisper.model import WhisperModel
from specport.speech.whisper.rules import processors

COUNT = 24


def windows(model: WhisperModel, temperature: float = 0.0) -> list[Window]:
    """Three windows: plain, with timestamps, and with timestamps behind earlier text."""
    tokens = model.tokens
    head = (tokens.sot, tokens.languages["en"], tokens.transcribe)
    before = (tokens.sot_prev, *tokens.encode("earlier words"))
    prompts = [((*head, tokens.no_timestamps), False), (head, True), ((*before, *head), True)]
    return [
        Window(tiny_whisper.features(seed), prompt, stamps, temperature, seed, COUNT)
        for seed, (prompt, stamps) in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def plain(models, device):
    model = load(str(models.target), draft="none", device=device, precision="fp32")
    yield model
    model.close()


@pytest.fixture(
    scope="module",
    params=["ngram", "suffix", "same", "other", "english", "suffix|same", "parallel"],
)
def drafting(request, models, device):
    if device != "xeon" and request.param not in ("suffix|same", "parallel"):
        pytest.skip("drafters know no runtime; one that has a model shows that torch's windows are used")
    names = {
        "same": str(models.same_encoder),
        "other": str(models.other_encoder),
        "english": f"universal({models.english})",
        "suffix|same": f"suffix|{models.same_encoder}",
        "parallel": str(models.parallel),
    }
    model = load(
        str(models.target), draft=names.get(request.param, request.param), device=device,
        precision="fp32", draft_precision="fp32", policy="fixed", num_draft_tokens=3,
    )  # fmt: skip
    yield model
    model.close()


def test_a_draft_with_a_cut_head(
    plain: WhisperModel, models, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids are the same, and the columns of the head mean what they should: nearly all is accepted."""
    tokens = plain.tokens
    given = [replace(window, max_new_tokens=COUNT) for window in windows(plain)]
    expected = _alone(plain, given)
    said = {token for ids in expected for token in ids}
    kept = sorted({*said, *range(tokens.eot, tokens.vocab)})
    shutil.copytree(models.target, cut := tmp_path / "cut")
    (cut / FACTS).write_text(json.dumps(noted(find_encoder_key(cut), kept)))
    model = load(
        str(models.target), draft=str(cut), device=device, precision="fp32", draft_precision="fp32",
        policy="fixed", num_draft_tokens=3,
    )  # fmt: skip
    found = [model.decode([window])[0] for window in given]
    model.close()
    assert [each.ids for each in found] == expected
    assert sum(each.accepted for each in found) > 0.9 * sum(each.drafted for each in found) > 0
    loader = Loader.on(device, speech=True)
    files = loader.files(str(cut), "fp32")
    head = find_head_tokens(files.folder, tokens.vocab)
    assert head == tuple(kept) and len(kept) < tokens.vocab
    loaded = loader.draft_with(files, head)
    assert (loaded.model.vocab_size, loaded.head_tokens) == (len(kept), head)
    with pytest.raises(ModelError, match="does not have"):
        find_head_tokens(files.folder, len(kept))


def _alone(model: WhisperModel, given: list[Window]) -> list[tuple[int, ...]]:
    return [model.decode([window])[0].ids for window in given]


def test_what_was_heard_can_be_forgotten(plain: WhisperModel, models, device: str) -> None:
    model = load(
        str(models.target), draft="suffix", device=device, precision="fp32", policy="fixed",
        num_draft_tokens=3,
    )  # fmt: skip
    window = windows(plain)[0]
    first, again = (model.decode([window])[0] for _ in range(2))
    model.forget()
    fresh = model.decode([window])[0]
    model.close()
    assert again.encoder_seconds == 0 < fresh.encoder_seconds  # it was kept
    assert again.rounds < first.rounds == fresh.rounds  # the text was drafted from


def test_greedy_ids_are_those_of_plain_decoding(plain: WhisperModel, drafting: WhisperModel) -> None:
    given = windows(plain)
    expected = _alone(plain, given)
    assert any(i >= plain.tokens.timestamp_begin for i in expected[1]) and len({*expected}) == 3
    found = drafting.decode([*given, *given])  # together, and with what was said before
    assert [each.ids for each in found] == expected * 2
    assert sum(each.drafted for each in found) > 0
    for each, same in zip(found, [*plain.decode(given)] * 2, strict=True):
        assert each.sum_logprob == pytest.approx(same.sum_logprob, abs=1e-4)
        assert each.no_speech_prob == pytest.approx(same.no_speech_prob, abs=1e-6)


def test_log_probabilities_are_those_after_the_rules(plain: WhisperModel) -> None:
    window = windows(plain)[1]
    found = plain.decode([window])[0]
    model, prompt = plain.engine.model, window.prompt
    handle = model.open(0, Heard(window.features))
    ids = [*found.ids, plain.tokens.eot] if len(found.ids) < COUNT else [*found.ids]
    output = model.step([Row(handle, Block.chain([*prompt, *ids[:-1]]))])
    logits = np.asarray(output.logits)[len(prompt) - 1 :].copy()
    model.close(handle)
    sampler = Sampler(SamplingParams(temperature=1.0), processors(plain.tokens, len(prompt), timestamps=True))
    total = 0.0
    for i, token in enumerate(ids):
        total += float(np.log(sampler.distribution(logits[i], [*prompt, *ids[:i]])[token]))
    assert found.sum_logprob == pytest.approx(total, abs=1e-3)
    assert 0 < found.no_speech_prob < 1
    assert found.rounds >= len(found.ids) - 1  # the prompt's step gives the first


def test_drawn_ids_are_those_of_plain_decoding(plain: WhisperModel, drafting: WhisperModel) -> None:
    given = [replace(window, seed=seed) for window in windows(plain, 0.1) for seed in range(4)]
    expected = _alone(plain, given)
    found = drafting.decode(given)
    assert [each.ids for each in found] == expected and len({*expected}) > 3
    assert sum(each.drafted for each in found) > 0


def test_drawn_ids_that_were_drafted_are_accepted(plain: WhisperModel, models, device: str) -> None:
    """The target drafts for itself, and is nearly sure of each token."""
    model = load(
        str(models.target), draft=str(models.target), device=device, precision="fp32",
        draft_precision="fp32", policy="fixed", num_draft_tokens=3,
    )  # fmt: skip
    given = [replace(window, seed=seed) for window in windows(plain, 0.01) for seed in range(2)]
    found = model.decode(given)
    model.close()
    assert [each.ids for each in found] == _alone(plain, given)
    assert sum(each.accepted for each in found) > 0


def test_drawn_texts_keep_the_law(plain: WhisperModel, models, device: str) -> None:
    """First two tokens of many windows, drafted by a model, against the exact law (chi-square)."""
    if device != "xeon":
        pytest.skip("the law is the core's; one runtime shows that the rules are used on both sides")
    window = replace(windows(plain, 0.7)[1], max_new_tokens=3)
    law = _law(plain, window)
    assert len(law) > 5
    drafted = load(
        str(models.target), draft=str(models.same_encoder), device=device, precision="fp32",
        draft_precision="fp32", policy="fixed", num_draft_tokens=2, batch=16,
    )  # fmt: skip
    count = 480
    found = drafted.decode([replace(window, seed=seed) for seed in range(count)])
    assert sum(each.drafted for each in found) > 0
    drafted.close()
    seen: dict[tuple[int, ...], int] = {}
    for each in found:
        seen[each.ids[:2]] = seen.get(each.ids[:2], 0) + 1
    assert {*seen} <= {*law}  # nothing that the rules forbid
    from scipy.stats import chisquare

    often = [text for text, chance in law.items() if chance * count >= 5]
    observed = [seen.get(text, 0) for text in often]
    expected = [law[text] * count for text in often]
    observed, expected = [*observed, count - sum(observed)], [*expected, count - sum(expected)]
    assert chisquare(observed, np.array(expected) / sum(expected) * count).pvalue > 1e-4


def _law(model: WhisperModel, window: Window) -> dict[tuple[int, ...], float]:
    """Return the probability of each beginning of two ids; one id where that is the end."""
    target, prompt = model.engine.model, [*window.prompt]
    sampler = Sampler(
        SamplingParams(temperature=window.temperature), processors(model.tokens, len(prompt), timestamps=True)
    )
    handle = target.open(0, Heard(window.features))
    logits = np.asarray(target.step([Row(handle, Block.chain(prompt), logits="last")]).logits)[0].copy()
    target.commit(handle, range(len(prompt)))
    first = sampler.distribution(logits.astype(np.float64), prompt)
    law: dict[tuple[int, ...], float] = {}
    for token in np.flatnonzero(first).tolist():
        row = np.asarray(target.step([Row(handle, Block.chain([token]))]).logits)[0].astype(np.float64)
        second = sampler.distribution(row, [*prompt, token])
        for other in np.flatnonzero(second).tolist():
            text = (token,) if other == model.tokens.eot else (token, other)
            law[text] = law.get(text, 0.0) + float(first[token] * second[other])
    target.close(handle)
    return law


def test_a_seed_gives_the_same_ids(drafting: WhisperModel, device: str) -> None:
    if device != "xeon":
        pytest.skip("random numbers are the host's")
    given = windows(drafting, 0.8)
    assert [each.ids for each in drafting.decode(given)] == _alone(drafting, given)


def test_language_and_alignment(plain: WhisperModel) -> None:
    window = windows(plain)[0]
    chances = plain.language(window.features)
    assert {*chances} == {"en", "de"} and sum(chances.values()) == pytest.approx(1.0)
    ids = plain.decode([window])[0].ids
    weights = plain.align(window.features, window.prompt, [*ids, plain.tokens.eot])
    assert weights.shape == (2, len(ids) + 1, tiny_whisper.FRAMES)
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-4)


def test_bad_windows_are_refused(plain: WhisperModel) -> None:
    good = windows(plain)[0]
    for wrong in (
        replace(good, prompt=()),
        replace(good, prompt=(10**6,)),
        replace(good, prompt=(1,) * tiny_whisper.CONTEXT),
        replace(good, max_new_tokens=0),
        replace(good, features=good.features[:, :-1]),
    ):
        with pytest.raises(InvalidInput):
            plain.decode([wrong])
    assert plain.decode([good])[0].ids  # nothing is left behind
