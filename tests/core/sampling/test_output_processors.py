"""Penalties by count, biases and a minimum length: by their definitions, alone and with drafts."""

from __future__ import annotations

from collections.abc import Sequence

import array_api_strict
import numpy as np
import pytest
from support.generations import PROMPT, begin, drafted, run
from support.laws.sampling_law import check_law
from support.toys.toy_drafter import ToyDrafter
from support.toys.toy_model import ToyModel

from specport.core.policies.length_rules import Fixed
from specport.core.sampling.output_processors import LogitBias, MinNewTokens, OutputPenalties
from specport.core.sampling.params import SamplingParams
from specport.core.sampling.processors import Prefix
from specport.core.verify.rules import rule_for
from specport.errors import InvalidInput

FREQUENCY, PRESENCE, BIAS, LEAST, END = 1.5, 0.75, {2: -1.5, 4: 2.0}, 6, 3
PARAMS = {
    "frequency_penalty": FREQUENCY, "presence_penalty": PRESENCE, "logit_bias": BIAS, "min_new_tokens": LEAST,
}  # fmt: skip


class ByDefinition:
    """All four as OpenAI's and transformers' documents define them, without any shortcut."""

    is_identity = False

    def __init__(self, num_prompt_tokens: int, least: int = LEAST) -> None:
        self._start, self._least = num_prompt_tokens, least

    def __call__(self, logits: np.ndarray, prefix: Sequence[int]) -> np.ndarray:
        output = [*prefix][self._start :]
        out = np.array(logits, dtype=np.float64)
        for token in range(len(out)):
            count = output.count(token)
            out[token] += BIAS.get(token, 0.0) - FREQUENCY * count - PRESENCE * (count > 0)
        if len(output) < self._least:
            out[END] = -np.inf
        return out


def greedy(target: ToyModel, prompt: Sequence[int], n: int) -> list[int]:
    """Plain decoding, written without any of the code under test."""
    process, text = ByDefinition(len(prompt)), [*prompt]
    while len(text) < len(prompt) + n and (len(text) == len(prompt) or text[-1] != END):
        text.append(int(process(target.table[text[-2], text[-1]], text).argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("xp", [np, array_api_strict], ids=["numpy", "strict"])
def test_each_is_as_defined(xp) -> None:
    logits = xp.asarray(np.linspace(-2, 2, 5), dtype=xp.float32)
    prefix = Prefix([4, 4, 0, 1, 0], (0, 2))  # the first two are the prompt

    def check(found, wanted: Sequence[float]) -> None:
        assert np.allclose(np.asarray(found), wanted)

    check(OutputPenalties(0.5, 0.25, 2)(logits, prefix), [-3.75, -1.75, -0.75, 1, 2])
    check(LogitBias([(1, -3.0), (9, 1.0)])(logits, prefix), [-2, -4, 0, 1, 2])
    check(MinNewTokens(6, 2, {3, 9})(logits, prefix), [-2, -1, 0, -np.inf, 2])
    check(MinNewTokens(5, 2, {3, 9})(logits, prefix), [-2, -1, 0, 1, 2])
    check(logits, np.linspace(-2, 2, 5))


def test_counts_follow_a_text_that_grows_and_branches() -> None:
    penalties, text, logits = OutputPenalties(1.0, 0.0, 1), [0], np.zeros(3, dtype=np.float32)
    for token, path, wanted in ((1, (), [0, -1, 0]), (1, (2,), [0, -2, -1]), (0, (0, 0), [-3, -2, 0])):
        text.append(token)
        assert penalties(logits, Prefix(text, path)).tolist() == wanted
    assert penalties(logits, Prefix([0, 2])).tolist() == [0, 0, -1]  # another text
    assert penalties(logits, [0, 1, 1]).tolist() == [0, -2, 0]


def test_what_changes_nothing_is_left_out() -> None:
    assert begin().sampler.plain_greedy and begin(eos_ids=frozenset({1})).sampler.plain_greedy
    without_ends = begin(params=SamplingParams(min_new_tokens=5))
    assert without_ends.sampler.plain_greedy
    for name, value in PARAMS.items():
        changed = begin(params=SamplingParams(**{name: value}), eos_ids=frozenset({END}))
        assert changed.sampler.processes, name


@pytest.mark.parametrize("branches", [(), (3, 2)])
def test_a_greedy_text_with_drafts_is_that_of_the_definition(branches: tuple[int, ...]) -> None:
    target = ToyModel()
    engine = drafted(target, ToyDrafter(ToyModel(noise=0.4)), rule=lambda: Fixed(4, branches))
    prompts = [PROMPT, [1, 2], [7, 7]]
    params = SamplingParams(**PARAMS)
    generations = [begin(p, 40, params=params, eos_ids=frozenset({END})) for p in prompts]
    wanted = [greedy(target, p, 40) for p in prompts]
    assert run(engine, *generations) == wanted
    assert all(len(text) >= LEAST for text in wanted) and any(len(text) < 40 for text in wanted)
    assert wanted[0] != target.greedy(PROMPT, 40, frozenset({END}))
    assert sum(g.metrics.num_accepted_tokens for g in generations) > 0


@pytest.mark.parametrize(("branches", "name"), [((), "rejection"), ((), "block"), ((2, 2), "rejection")])
def test_sampled_texts_keep_the_law(branches: tuple[int, ...], name: str) -> None:
    vocab, samples = 5, 1500
    target = ToyModel(vocab, sharpness=1.0)
    drafter = ToyDrafter(ToyModel(vocab, sharpness=1.0, noise=0.7), drawn=True)
    engine = drafted(target, drafter, rule=lambda: Fixed(3, branches))
    prompt, counts = [1, 2, 1, 3, 2], np.zeros((vocab,) * 3)
    for seed in range(samples):
        params = SamplingParams(temperature=2.0, seed=seed, **PARAMS)
        generation = begin(prompt, 3, params=params, rule=rule_for(params, name), eos_ids=frozenset({END}))
        counts[tuple(run(engine, generation)[0])] += 1
    check_law(counts, target, prompt, SamplingParams(temperature=2.0), [ByDefinition(len(prompt))])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 2.5), ("presence_penalty", float("nan")), ("min_new_tokens", -1),
        ("min_new_tokens", 1.5), ("logit_bias", {-1: 1.0}), ("logit_bias", {1: 101}), ("logit_bias", 3),
        ("logit_bias", {"a": 1}), ("logit_bias", {1: "x"}), ("logit_bias", {1: float("nan")}),
    ],
)  # fmt: skip
def test_values_outside_their_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidInput, match=name):
        SamplingParams(**{name: value})


def test_a_bias_is_kept_as_pairs() -> None:
    params = SamplingParams(logit_bias={7: 1, 2: -3})
    assert params.logit_bias == ((2, -3.0), (7, 1.0))
    assert SamplingParams(logit_bias=params.logit_bias) == params and hash(params)
