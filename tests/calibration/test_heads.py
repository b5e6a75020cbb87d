"""Choice of the size of a draft's head, on drafts of given agreement and speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.toys.cut_toy import CutToy
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toys.toy_model import ToyModel
from support.toys.toy_pipeline import ToyTokenizer

import specport
from specport.calibration import heads, target_text
from specport.calibration.calibrate import calibrate
from specport.calibration.target_text import Text
from specport.core.planning.step_costs import StepCosts
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded, LoadOptions
from specport.runtime.stored import measurements
from specport.text import builtin_prompts

FLAT = StepCosts((1, 64), (0,), ((0.1, 0.1),), measured=True)


def test_a_head_keeps_the_first_ids_and_the_special_ones() -> None:
    assert heads.kept_ids(3, 10, {9, 1, 12}) == (0, 1, 2, 9)
    assert heads.kept_ids(20, 4, {3}) == (0, 1, 2, 3)
    # What was seen most often comes before the first ids; a rare one does not make the head any larger.
    assert heads.kept_ids(3, 10, {9}, {7: 5, 4: 2, 8: 1, 5: 1}) == (4, 5, 7, 9)
    assert heads.kept_ids(4, 10, (), {7: 5}) == (0, 1, 2, 7)
    assert heads.sizes(151_936) == [65_536, 32_768, 16_384, 8_192]
    assert heads.sizes(49_152) == [32_768, 16_384, 8_192]
    assert heads.sizes(11) == []


def test_the_target_writes_what_it_would() -> None:
    target, tokenizer = ToyModel(max_context=400), ToyTokenizer()
    written = target_text.write(target, tokenizer, builtin_prompts.PROMPTS, 9, lambda what, share: None)  # type: ignore[arg-type]
    assert len(written) == len(builtin_prompts.PROMPTS) and target.num_open == 0
    for prompt, text in zip(builtin_prompts.PROMPTS, written, strict=True):
        assert text.prompt == tuple(tokenizer.encode(prompt))
        assert list(text.answer) == target.greedy(text.prompt, 9)
    short = ToyModel(max_context=90)
    fitting = target_text.write(short, tokenizer, builtin_prompts.PROMPTS, 9, lambda what, share: None)  # type: ignore[arg-type]
    assert len(fitting) == sum(len(prompt) + 9 <= 90 for prompt in builtin_prompts.PROMPTS) < len(written)


@pytest.mark.parametrize("context", [256, 30])
def test_agreement_is_counted_as_cut_drafts_would_propose(context: int) -> None:
    target, draft = ToyModel(), ToyModel(noise=0.4, max_context=context)
    written = [Text(prompt, tuple(target.greedy(prompt, 24))) for prompt in ((1, 2), (5, 6, 7), (3, 3))]
    keeps = [None, (0, 1, 2, 3, 5, 8, 10), (4,)]
    hits, count = [0] * len(keeps), 0
    for text in written:
        for i, answer in enumerate(text.answer):
            a, b = [*text.prompt, *text.answer[:i]][-2:]
            for j, keep in enumerate(keeps):
                columns = range(11) if keep is None else keep
                hits[j] += max(columns, key=lambda c: draft.table[a, b, c]) == answer
            count += 1
    found = heads.agreements(draft, written, keeps)
    assert found == [hit / count for hit in hits]
    assert found[0] > found[1] > found[2] and draft.num_open == 0


def test_a_head_that_takes_up_the_text_proposes_what_stood_there() -> None:
    target = ToyModel()
    (text,) = written = [Text((1, 2), tuple(target.greedy((1, 2), 60)))]
    seen, hits = {4, *text.prompt}, 0
    for i, answer in enumerate(text.answer):
        a, b = [*text.prompt, *text.answer[:i]][-2:]
        hits += max(seen, key=lambda c: target.table[a, b, c]) == answer
        seen.add(answer)
    (found,) = heads.agreements(target, written, [(4,)], with_context=True)
    (bare,) = heads.agreements(target, written, [(4,)])
    assert found == hits / 60 > 0.5 > bare


def test_steps_are_timed_in_turns() -> None:
    whole, cut = CutToy(seconds=0.3), CutToy(range(5), seconds=0.12)
    assert heads.step_seconds(whole, lambda: whole.now) == pytest.approx(0.3)
    assert heads.step_ratio(whole, cut, lambda: whole.now + cut.now) == pytest.approx(0.4)
    assert whole.num_open == cut.num_open == 0


def test_the_rate_is_that_of_the_best_draft_length() -> None:
    # With steps that cost the same at any width and a free draft, all 8 tokens are drafted.
    assert heads.expected_speed(1.0, 0.0, FLAT) == pytest.approx(9 / 0.1)
    # One token at half the time of a step: (1 + 0.6) / 0.15 is more than plain and than two tokens.
    assert heads.expected_speed(0.6, 0.05, FLAT) == pytest.approx(1.6 / 0.15)
    # A draft that never pays is not used.
    assert heads.expected_speed(0.1, 1.0, FLAT) == pytest.approx(1 / 0.1)


def test_a_cut_head_must_win_clearly() -> None:
    whole = heads.Head(None, 100, 0.1, 0.8, 10.0)
    near = heads.Head((1,), 1, 0.1, 0.8, 10.1)
    better = heads.Head((1, 2), 2, 0.1, 0.8, 10.5)
    assert heads.best([whole, near]) is whole
    assert heads.best([whole, near, better]) is better


@pytest.mark.parametrize("tokens", [(0, 1, 2, 7, 9, 10), (5,)])
def test_a_head_is_kept_and_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokens: tuple[int, ...]
) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))
    path = measurements.save_pair("target", "draft", measurements.Pair(tokens))
    assert path is not None and measurements.save_pair("", "draft", measurements.Pair(tokens)) is None
    assert measurements.find_pair("target", "draft") == measurements.Pair(tokens)
    assert (
        measurements.find_pair("other", "draft") == measurements.find_pair("", "draft") == measurements.Pair()
    )
    good = path.read_text()
    for ranges in ("[[3, 1]]", "[[0, 1e12]]", "[[0]]", "[[-4, 2]]", "7"):
        path.write_text(f'{{"format": 1, "head": {ranges}, "classifier": null}}')
        assert measurements.find_pair("target", "draft") == measurements.Pair()
    for damage in ("{", "[]", "", good.replace("1", "2", 1)):
        path.write_text(damage)
        assert measurements.find_pair("target", "draft") == measurements.Pair()
    measurements.save_pair("target", "draft", measurements.Pair())
    assert measurements.find_pair("target", "draft") == measurements.Pair()


class CuttingBackend(ToyBackend):
    """Cuts heads. A step of a whole draft takes 20 ms, of a cut one hardly any time."""

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        self.loaded.append(f"{files.name}:{len(options.head_tokens or ())}")
        if options.role == "target":
            return Loaded(CutToy(max_context=2300, step_seconds=0.02), key="target")
        keep = options.head_tokens
        toy = CutToy(keep, max_context=2300, step_seconds=0.02 if keep is None else 0.0)
        return Loaded(toy, key=f"draft{len(keep or ())}", head_tokens=keep)


@pytest.fixture
def cutting(monkeypatch: pytest.MonkeyPatch, toy_backend: ToyBackend) -> CuttingBackend:  # noqa: F811
    backend = CuttingBackend()
    monkeypatch.setattr("specport.runtime.loading.backend_for", lambda profile: backend)
    monkeypatch.setattr(heads, "SIZES", (8, 3))
    monkeypatch.setattr(builtin_prompts, "PROMPTS", ("abc", "cab"))
    import specport.calibration.calibrate as module

    measure = module.measure
    monkeypatch.setattr(
        module, "measure", lambda model, **rest: measure(model, widths=(1, 2), contexts=(16,), budget_s=0)
    )
    return backend


def test_calibration_cuts_the_head_and_the_next_load_takes_it(cutting: CuttingBackend) -> None:
    target, draft = calibrate("big", draft="small")
    assert not target.heads and draft.head is not None
    assert [head.size for head in draft.heads] == [11, 8, 3]
    assert draft.heads[0].agreement == 1.0  # the draft is the target's own table
    assert draft.head.size == 8, draft.heads  # 3 agrees too seldom, 11 costs too much
    assert cutting.loaded == ["big:0", "small:0", "small:8", "small:3", "small:8"]

    cutting.loaded.clear()
    pipeline = specport.load("big", draft="small", policy="fixed", num_draft_tokens=7)
    assert cutting.loaded == ["big:0", "small:8"]
    result = pipeline.generate("abc", max_new_tokens=24)
    assert result.token_ids == ToyModel().greedy(ToyTokenizer().encode("abc"), 24)
    assert 0 < result.metrics.num_accepted_tokens < result.metrics.num_draft_tokens


def test_a_backend_that_cannot_cut_keeps_the_whole_head(
    cutting: CuttingBackend, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("specport.runtime.loading.backend_for", lambda profile: ToyBackend())
    assert specport.cli.main(["calibrate", "--model", "big", "--draft", "small", "--json", "--quiet"]) == 0
    _, draft = json.loads(capsys.readouterr().out)
    (whole,) = draft["heads"]
    assert whole["size"] == 11 and whole["used"] and whole["tokens_per_second"] > 0
