"""The classifier that stops a draft: its training, its threshold, its storage and its use."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.built_policies import Built, built  # noqa: F401  (a fixture)
from support.toys.toy_backend import ToyBackend, toy_backend  # noqa: F401  (a fixture)
from support.toys.toy_model import ToyModel
from support.toys.toy_pipeline import ToyTokenizer

import specport
from specport.calibration import stopping
from specport.calibration.calibrate import calibrate
from specport.calibration.stopping import Trace
from specport.calibration.target_text import Text
from specport.cli import main
from specport.core.estimates.confidence import NO_SPREAD, Spread, spread_of
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import CLASSIFIER, Classified, make_length_rule
from specport.core.policies.stop_classifier import DEPTH, NUM_FEATURES, TOP_K, Classifier, features, fit
from specport.core.ports import Drafted, Plan
from specport.errors import InvalidInput
from specport.runtime.stored import measurements

FLAT = StepCosts((1, 64), (0,), ((1.0, 1.0),), measured=True)


def test_spread_is_that_of_the_distribution() -> None:
    p = np.array([0.1, 0.0, 0.6, 0.3], dtype=np.float32)
    spread = spread_of(5 * p, 3)
    assert spread.top == pytest.approx((0.6, 0.3, 0.1), rel=1e-6)
    assert spread.entropy == pytest.approx(-sum(x * np.log(x) for x in (0.1, 0.6, 0.3)), rel=1e-5)
    assert spread_of(p, 9).top == pytest.approx((0.6, 0.3, 0.1, 0.0), abs=1e-7)
    assert spread_of(np.array([0.0, 2.0]), 2) == Spread((1.0, 0.0), 0.0)
    assert spread_of(p, 0) is NO_SPREAD
    assert p.tolist() == pytest.approx([0.1, 0.0, 0.6, 0.3])  # left as it was


def sure(chance: float) -> Spread:
    return Spread((chance, 1.0 - chance), 1.0 - chance)


def test_it_learns_what_no_threshold_on_the_probability_can() -> None:
    # Accepted where exactly one of "likely" and "early" holds: the hidden layer is needed.
    rng = np.random.default_rng(1)
    rows, labels = [], []
    for _ in range(600):
        chance, position = float(rng.uniform()), int(rng.integers(1, DEPTH + 1))
        rows.append(features(Drafted((0.5,) * position, (chance, 1 - chance), 0.3)))
        labels.append((chance > 0.5) != (position <= DEPTH // 2))
    assert len(rows[0]) == NUM_FEATURES
    classifier = fit(rows, labels)
    right = (classifier.probabilities(np.asarray(rows)) > 0.5) == np.asarray(labels)
    assert right.mean() > 0.95
    again = fit(rows, labels)
    assert np.array_equal(classifier.inner, again.inner) and classifier.outer_bias == again.outer_bias
    with pytest.raises(ValueError, match="nothing"):
        fit([], [])


def traces(num: int, rng: np.random.Generator) -> list[Trace]:
    """Return guesses that are right with the probability that the draft gives."""
    found = []
    for _ in range(num):
        chances = rng.choice([0.95, 0.2], size=60)
        found.append(Trace(tuple(map(sure, chances)), tuple(bool(x) for x in rng.uniform(size=60) < chances)))
    return found


def test_the_threshold_is_where_most_tokens_a_second_are_made() -> None:
    many = traces(6, np.random.default_rng(2))
    trained = stopping.train(many, FLAT, 0.1)
    assert trained is not None
    assert (
        trained.tokens_per_second > 1.02 * trained.fixed_tokens_per_second
    )  # it sees what is unsure; a number does not
    assert 0.2 < trained.classifier.threshold < 0.95
    # Where a draft step costs as much as the target's, few tokens pay; where it is free, all do.
    dear, free = stopping.train(many, FLAT, 2.0), stopping.train(many, FLAT, 0.0)
    assert dear is not None and free is not None
    assert dear.num_fixed == 1 and free.num_fixed == DEPTH
    assert free.classifier.threshold < trained.classifier.threshold <= dear.classifier.threshold


def test_too_little_to_learn_from() -> None:
    one = traces(1, np.random.default_rng(3))
    assert stopping.train(one, FLAT, 0.1) is None
    good = Trace((sure(0.9),) * 60, (True,) * 60)
    assert stopping.train([good, good], FLAT, 0.1) is None
    assert stopping.train([Trace(good.spreads[:9], good.accepted[:9])] * 2, FLAT, 0.1) is None


def test_playing_a_text() -> None:
    accepted = [True, True, False, True, True, True]

    def number(n: int) -> tuple[int, float]:
        return stopping.simulate(accepted, lambda place, position: position >= n, FLAT, 0.1)

    # 2 drafts + bonus; then 2 and the end of the text.
    assert number(2) == (6, pytest.approx(2 * 1.2))
    # 2 of 3 + correction; then 3.
    assert number(3) == (6, pytest.approx(2 * 1.3))
    # 1 + bonus; a miss; 1 + bonus; 1.
    assert number(1) == (6, pytest.approx(4 * 1.1))


@pytest.mark.parametrize("keep", [None, (0, 1, 2, 3, 4, 5, 6, 7, 10)])
def test_traces_are_what_the_draft_would_propose(keep: tuple[int, ...] | None) -> None:
    from support.toys.cut_toy import CutToy

    target, draft = ToyModel(), CutToy(keep, noise=0.4)
    text = Text((1, 2), tuple(target.greedy((1, 2), 40)))
    (found,) = stopping.trace(draft, keep, [text], TOP_K)
    history = [*text.prompt, *text.answer]
    columns = list(range(11)) if keep is None else list(keep)
    for i, token in enumerate(text.answer):
        logits = draft.table[history[i], history[i + 1]][columns]
        assert found.accepted[i] == (columns[int(logits.argmax())] == token)
        p = np.exp(logits - logits.max())
        assert found.spreads[i].top == pytest.approx(sorted(p / p.sum(), reverse=True)[:TOP_K], rel=1e-5)
    assert 0 < sum(found.accepted) < 40


@pytest.fixture
def classifier() -> Classifier:
    trained = stopping.train(traces(4, np.random.default_rng(2)), FLAT, 0.1)
    assert trained is not None
    return trained.classifier


def test_the_rule_asks_for_what_it_needs(classifier: Classifier) -> None:
    assert classifier.top_k == TOP_K
    assert classifier.goes_on(Drafted((0.95,), *sure(0.95)))
    assert not classifier.goes_on(Drafted((0.2,), *sure(0.2)))
    assert replace(classifier, threshold=0.01).goes_on(Drafted((0.2,), *sure(0.2)))
    assert make_length_rule(CLASSIFIER, 4, classifier=classifier).plan() == Plan(4, stop=classifier)
    assert Classified().plan() == Plan(DEPTH)


def test_a_classifier_is_kept_and_found(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))
    path = measurements.save_pair("target", "draft", measurements.Pair((1, 2), classifier))
    found = measurements.find_pair("target", "draft")
    assert path is not None and found.head_tokens == (1, 2) and found.classifier is not None
    rows = np.random.default_rng(0).uniform(size=(20, NUM_FEATURES))
    assert np.array_equal(found.classifier.probabilities(rows), classifier.probabilities(rows))
    assert found.classifier.threshold == classifier.threshold
    table = json.loads(path.read_text())
    for name, wrong in (("mean", [1.0]), ("outer", [float("nan")] * 16), ("inner", "x"), ("threshold", None)):
        path.write_text(json.dumps({**table, "classifier": {**table["classifier"], name: wrong}}))
        assert measurements.find_pair("target", "draft") == measurements.Pair()


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch, toy_backend: ToyBackend) -> ToyBackend:  # noqa: F811
    import specport.calibration.calibrate as module

    measure = module.measure
    monkeypatch.setattr(
        module, "measure", lambda model, **rest: measure(model, widths=(1, 2), contexts=(16,), budget_s=0)
    )
    calibrate("big", draft="small")
    return toy_backend


@pytest.mark.usefixtures("calibrated")
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "seed": 3}])
def test_calibrate_trains_it_and_load_uses_it(
    options: dict[str, Any],
    built: list[Built],  # noqa: F811
) -> None:
    pipeline = specport.load("big", draft="small", policy=CLASSIFIER)
    (policy,) = built
    assert policy.make_rule is not None
    stop = policy.make_rule().plan().stop
    assert isinstance(stop, Classifier) and 0 < stop.threshold < 1
    first = pipeline.generate("abc", max_new_tokens=30, **options)
    assert first.metrics.num_accepted_tokens
    if not options:
        assert first.token_ids == ToyModel().greedy(ToyTokenizer().encode("abc"), 30)
    else:
        assert pipeline.generate("abc", max_new_tokens=30, **options).token_ids == first.token_ids


@pytest.mark.usefixtures("toy_backend")
def test_without_a_classifier_the_error_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no classifier") as error:
        specport.load("big", draft="small", policy=CLASSIFIER)
    assert "specport calibrate" in str(error.value.hint)
    with pytest.raises(InvalidInput, match="needs a draft model"):
        specport.load("big", draft="ngram", policy=CLASSIFIER)
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": 1, "category": "a", "turns": ["abc"]}\n')
    out = ["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--model", "big", "--quiet"]
    assert main(["bench", *out, "--method", "ngram@classifier"]) == 2
    assert main(["bench", *out, "--draft", "small", "--method", "draft@classifier"]) == 2


@pytest.mark.usefixtures("calibrated")
def test_bench_compares_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": 1, "category": "a", "turns": ["abc"]}\n')
    arguments = ["--prompts", str(prompts), "--out", str(tmp_path / "out"), "--model", "big", "--quiet"]
    assert main(["bench", *arguments, "--draft", "small", "--method", "draft@classifier=6"]) == 0
    assert "draft@classifier=6" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["about"]["methods"]["draft@classifier=6"]["policy"] == CLASSIFIER
