"""Sampling parameters against transformers' own processors, and the draw against its distribution."""

from __future__ import annotations

from itertools import product

import array_api_strict
import numpy as np
import pytest

from specport.core.sampling.output_processors import output_processors
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import Prefix
from specport.core.sampling.sampler import BLOCK, Sampler
from specport.errors import InvalidInput

PREFIX = (3, 17, 3, 900)
COMBINATIONS = [
    SamplingParams(t, k, p, m, r)
    for t, k, p, m, r in product((0.3, 1.0, 1.7), (0, 1, 40), (1.0, 0.9, 0.2), (0.0, 0.1), (1.0, 1.3, 0.7))
]


class Fixed(Sampler):
    """A sampler whose every uniform is `u`."""

    def __init__(self, u: float) -> None:
        super().__init__(SamplingParams(temperature=1.0))
        self.u = u

    def uniform(self) -> float:
        return self.u


def logits_of(vocab: int = 1000, dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(1).normal(size=vocab) * 3).astype(dtype)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e300),
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", 10**400),
        ("top_p", None),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("logit_bias", {1: 10**400}),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("nan")),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_bad_parameters_are_refused_by_name(name, value) -> None:
    with pytest.raises(InvalidInput, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("xp", [np, array_api_strict])
def test_probabilities_are_numbers_at_every_bound(xp, dtype) -> None:
    if xp is array_api_strict and dtype is np.float16:
        pytest.skip("the strict namespace has no half precision")
    raw = np.full(600, -60000.0, dtype)  # as wide as half precision
    raw[3], raw[17], raw[500:] = 60000.0, 59000.0, -np.inf  # forbidden tokens
    for temperature, penalty, top_p, min_p, top_k, extreme in product(
        (1e-5, 100.0), (0.01, 1.0, 100.0), (1e-300, 1.0), (0.0, 1.0), (0, 10**9), (-2.0, 2.0)
    ):
        params = SamplingParams(
            temperature, top_k, top_p, min_p, penalty, 0, extreme, extreme, ((3, 50 * extreme),), 5
        )
        sampler = Sampler(params, output_processors(params, 2, [17]))
        probs = np.asarray(sampler.distribution(xp.asarray(raw), PREFIX))
        assert np.isfinite(probs).all() and probs.sum() == pytest.approx(1.0, rel=1e-3)
        assert not probs[500:].any() and 0 <= sampler.draw(xp.asarray(probs)) < 500


def test_greedy_properties() -> None:
    assert Sampler(SamplingParams()).plain_greedy
    assert SamplingParams(repetition_penalty=1.1).greedy
    assert not Sampler(SamplingParams(repetition_penalty=1.1)).plain_greedy
    assert not SamplingParams(temperature=0.1).greedy


@pytest.mark.stack
def test_distribution_equals_transformers() -> None:
    torch = pytest.importorskip("torch")
    generation = pytest.importorskip("transformers.generation")
    logits = logits_of()
    for params in COMBINATIONS:
        processors = generation.LogitsProcessorList(
            [
                generation.RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
                generation.TemperatureLogitsWarper(params.temperature),
                *([generation.TopKLogitsWarper(params.top_k)] if params.top_k else []),
                *([generation.TopPLogitsWarper(params.top_p)] if params.top_p < 1 else []),
                *([generation.MinPLogitsWarper(params.min_p)] if params.min_p else []),
            ]
        )
        scores = processors(torch.tensor([PREFIX]), torch.from_numpy(logits[None].copy()))
        expected = torch.softmax(scores, dim=-1)[0].numpy()
        for array in (logits, torch.from_numpy(logits)):
            probs = np.asarray(Sampler(params).distribution(array, PREFIX))
            np.testing.assert_array_equal(probs > 0, expected > 0, err_msg=str(params))
            np.testing.assert_allclose(probs, expected, rtol=2e-5, err_msg=str(params))
            assert probs.sum(dtype=np.float64) == pytest.approx(1, abs=1e-5)


def test_array_api_strict_equals_numpy() -> None:
    logits = logits_of(dtype=np.float64)
    for params in COMBINATIONS:
        expected = Sampler(params).distribution(logits, PREFIX)
        strict = Sampler(params).distribution(array_api_strict.asarray(logits), PREFIX)
        np.testing.assert_allclose(np.asarray(strict), expected, rtol=1e-12)
        seeded = SamplingParams(params.temperature, params.top_k, seed=4)
        choices = {Sampler(seeded).choose(a, PREFIX) for a in (logits, array_api_strict.asarray(logits))}
        assert len(choices) == 1


def test_the_logits_stay_as_they_were() -> None:
    logits = logits_of()
    for params in COMBINATIONS:
        Sampler(params).distribution(logits, PREFIX)
    np.testing.assert_array_equal(logits, logits_of())


def test_half_precision_is_widened() -> None:
    probs = Sampler(SamplingParams(temperature=1.0, top_p=0.9)).distribution(logits_of(dtype=np.float16), ())
    assert probs.dtype == np.float32


def test_nucleus_keeps_ties_and_the_token_that_crosses() -> None:
    logits = np.log(np.asarray([0.4, 0.25, 0.25, 0.1]))
    kept = [np.count_nonzero(Sampler(SamplingParams(1.0, top_p=p)).distribution(logits, ())) for p in
            (1e-9, 0.39, 0.41, 0.64, 0.91, 1.0)]  # fmt: skip
    assert kept == [1, 1, 3, 3, 4, 4]


@pytest.mark.parametrize("spread", [0.0, 1e-4, 1.0, 30.0])
@pytest.mark.parametrize("top_p", [0.5, 0.999])
def test_nucleus_reaches_top_p_and_no_further(spread, top_p) -> None:
    logits = np.random.default_rng(0).normal(size=20_000) * spread
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    kept = Sampler(SamplingParams(1.0, top_p=top_p)).distribution(logits, ()) > 0
    assert p[kept].sum() >= top_p - 1e-12
    assert p[kept].sum() - p[kept].min() < top_p or len(set(p[kept])) == 1  # flat: all are tied


def test_greedy_distribution_is_one_hot() -> None:
    logits = logits_of()
    for array in (logits, array_api_strict.asarray(logits)):
        probs = np.asarray(Sampler(SamplingParams()).distribution(array, PREFIX))
        assert probs.sum() == probs[logits.argmax()] == 1.0
        assert Sampler(SamplingParams()).choose(array, PREFIX) == logits.argmax()


def test_greedy_choice_after_a_penalty() -> None:
    logits = np.asarray([2.0, 3.0, -1.0])
    assert Sampler(SamplingParams(repetition_penalty=2.0)).choose(logits, (1,)) == 0
    assert Sampler(SamplingParams(repetition_penalty=2.0)).choose(-logits, (2,)) == 2


class Untouchable(list):  # type: ignore[type-arg]
    """A context that must not be looked at."""

    def __len__(self) -> int:
        raise AssertionError("the prefix was read")

    __iter__ = __getitem__ = __len__  # type: ignore[assignment]


def test_without_a_penalty_the_prefix_is_not_read() -> None:
    params = SamplingParams(1.0, 5, 0.9, 0.1)
    Sampler(params).choose(logits_of(), Prefix(Untouchable()))
    Sampler(SamplingParams()).choose(logits_of(), Prefix(Untouchable()))


def test_penalty_reads_each_committed_token_once() -> None:
    read = 0

    class Context(list):  # type: ignore[type-arg]
        def __getitem__(self, index):
            nonlocal read
            part = super().__getitem__(index)
            read += len(part)
            return part

    context = Context(range(100))
    sampler = Sampler(SamplingParams(1.0, repetition_penalty=1.5))
    logits = logits_of()

    def penalised(prefix) -> set[int]:
        return set(np.flatnonzero(sampler.process(logits, prefix) != logits).tolist())

    assert penalised(Prefix(context, (200, 201))) == {*range(100), 200, 201}
    assert penalised(Prefix(context, (300,))) == {*range(100), 300}  # no trace of the other path
    context += [400]
    assert penalised(context) == {*range(100), 400}
    assert read == 101
    assert penalised([7]) == {7}  # another sequence: counted afresh


def test_penalty_with_two_vocabularies() -> None:
    sampler = Sampler(SamplingParams(1.0, repetition_penalty=1.5))
    context = [1, 5, 9]
    for vocab, expected in ((6, {1, 5}), (10, {1, 5, 9}), (6, {1, 5}), (2, {1})):
        logits = np.ones(vocab)
        assert set(np.flatnonzero(sampler.process(logits, context) != 1).tolist()) == expected


def test_prefix_is_a_sequence() -> None:
    prefix = Prefix([1, 2], (3, 4))
    assert [*prefix] == [1, 2, 3, 4] and len(prefix) == 4
    assert (prefix[1], prefix[2], prefix[-1], prefix[-4]) == (2, 3, 4, 1)
    assert prefix[1:3] == [2, 3]
    for outside in (4, -5):
        with pytest.raises(IndexError):
            prefix[outside]


def test_draw_inverts_the_cumulative_sum() -> None:
    weights = np.random.default_rng(2).random(3 * BLOCK + 5) * 7
    weights[10:700] = 0
    edges = np.cumsum(weights) / weights.sum()
    for u in np.linspace(0, 0.9999, 777):
        expected = int(np.searchsorted(edges, u, side="right"))
        assert Fixed(u).draw(weights) == Fixed(u).draw(array_api_strict.asarray(weights)) == expected


@pytest.mark.parametrize("vocab", [1, BLOCK - 1, BLOCK, 2 * BLOCK + 1, 151_936])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draw_never_returns_a_token_of_weight_0(vocab, dtype) -> None:
    rng = np.random.default_rng(vocab)
    for share in (1e-4, 0.3):
        probs = rng.random(vocab).astype(dtype) * (rng.random(vocab) < share)
        probs[vocab // 2] = 1e-3
        probs /= probs.sum()
        edges = np.cumsum(probs, dtype=np.float64)
        for u in (0.0, 1 - 2**-53, np.nextafter(1, 0), *edges[:: max(1, vocab // 50)], *rng.random(50)):
            assert probs[Fixed(min(u, 1 - 2**-53)).draw(probs)] > 0


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0]])
def test_draw_refuses_what_is_no_distribution(bad) -> None:
    with pytest.raises(ValueError, match="cannot draw"):
        Fixed(0.5).draw(np.asarray(bad))


def test_seed_fixes_the_stream() -> None:
    one, two = (Sampler(SamplingParams(1.0, seed=3)) for _ in range(2))
    assert [one.uniform() for _ in range(5)] == [two.uniform() for _ in range(5)]
    assert Sampler(SamplingParams(1.0)).uniform() != Sampler(SamplingParams(1.0)).uniform()


def test_accepts_is_certain_at_1_and_impossible_at_0() -> None:
    assert Fixed(1 - 2**-53).accepts(1.0)
    assert not Fixed(0.0).accepts(0.0)
