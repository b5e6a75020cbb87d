"""The loop on a tiny model: same law and log-probabilities, weights that arrive, and a run that resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes.own_cache import own_cache  # noqa: F401

import specport
from specport.core.sampling.params import SamplingParams
from specport.errors import InvalidInput, ModelError
from specport.pipeline import Pipeline

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.quantize.rl import record  # noqa: E402
from specport.quantize.rl.learner import Learner  # noqa: E402
from specport.quantize.rl.loop import Recipe, train  # noqa: E402
from specport.quantize.rl.rollouts import Writer  # noqa: E402
from specport.quantize.rl.tasks import Task  # noqa: E402
from support.laws import runtime_law  # noqa: E402
from support.tiny import tiny_mtp  # noqa: E402

RATE = 5e-3
RECIPE = Recipe(steps=4, samples=4, max_new_tokens=8, compare=2)
PROMPTS = ("hello world", "12 hello 12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose own module for multi-token prediction often drafts what it says."""
    found = tmp_path_factory.mktemp("tiny")
    tiny_mtp.save(found, "qwen", agrees=True)
    return found


@pytest.fixture(scope="module")
def shared(folder: Path) -> Pipeline:
    """A pipeline whose weights each test sets to what it begins with."""
    return loaded(folder)


def loaded(folder: Path) -> Pipeline:
    return specport.load(
        str(folder), device="torch-cpu", precision="fp32", draft="mtp", policy="fixed", num_draft_tokens=3
    )


def learner(folder: Path, rate: float = RATE) -> Learner:
    return Learner(folder, learning_rate=rate, mixed=False)


def vowels(text: str) -> float:
    return sum(c in "aeiou" for c in text) / max(1, len(text))


def two_tasks(step: int) -> Sequence[Task]:
    return [Task(prompt, vowels) for prompt in PROMPTS]


def begun(shared: Pipeline, folder: Path, rate: float = RATE) -> tuple[Pipeline, Learner]:
    trained = learner(folder, rate)
    shared.update_weights(trained.weights)
    return shared, trained


def test_rollouts_are_batched_samples_with_the_learners_logprobs(shared: Pipeline, folder: Path) -> None:
    pipeline, trained = begun(shared, folder)
    rollouts = Writer(pipeline, 12).write(PROMPTS, 4, seed=1)
    again = Writer(pipeline, 12).write(PROMPTS, 4, seed=1)
    assert rollouts.texts == again.texts and len({r.tokens for r in rollouts.texts}) > 4
    assert (
        [r.prompt for r in rollouts.texts[:4]] == [rollouts.texts[0].prompt] * 4 != rollouts.texts[4].prompt
    )
    assert 0 < rollouts.accepted <= rollouts.drafted and rollouts.seconds > 0
    logprobs, mask = trained.logprobs(rollouts.texts)
    for row, rollout in enumerate(rollouts.texts):
        assert mask[row].sum() == len(rollout.tokens) == len(rollout.logprobs) <= 12
        assert rollout.ended == (len(rollout.tokens) < 12) or rollout.tokens[-1] == 0
        assert logprobs[row, : len(rollout.tokens)].tolist() == pytest.approx(rollout.logprobs, abs=2e-4)
    lengths = [len(r.tokens) for r in rollouts.texts]
    plain = Writer(pipeline, 12).write_plain(PROMPTS, lengths, seed=1)
    assert [len(r.tokens) for r in plain.texts] == lengths and plain.drafted == 0
    with pytest.raises(InvalidInput, match="as many samples"):
        Writer(pipeline, 12).write_plain(PROMPTS, lengths[1:], seed=1)


def test_the_law_is_that_of_the_new_weights(
    shared: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_law, "NUM_TEXTS", 240)
    monkeypatch.setattr(runtime_law, "TOGETHER", 40)
    pipeline, trained = begun(shared, folder)
    for step in range(2):
        rollouts = Writer(pipeline, 8).write(PROMPTS, 4, seed=step)
        trained.update(rollouts.texts, [[vowels(r.text) for r in rollouts.texts[i : i + 4]] for i in (0, 4)])
        pipeline.update_weights(trained.weights)
    prompt = pipeline.tokenizer.encode("hello world 12 hello")
    metrics = runtime_law.check_sampled_texts(pipeline.engine, prompt, SamplingParams(temperature=1.0))
    assert sum(m.num_accepted_tokens for m in metrics) > 40


def test_training_raises_the_reward_and_the_engine_has_its_weights(
    shared: Pipeline, folder: Path, tmp_path: Path
) -> None:
    pipeline, trained = begun(shared, folder)
    told: list[tuple[str, float]] = []
    recipe = replace(RECIPE, steps=10, max_new_tokens=12)
    steps = train(
        pipeline,
        trained,
        two_tasks,
        recipe,
        tmp_path,
        progress=lambda what, share: told.append((what, share)),
    )
    rewards = [step.reward for step in steps]
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.1, rewards
    assert steps == record.read(tmp_path) and [s.step for s in steps] == [*range(10)]
    assert [s.plain_s is not None for s in steps[:4]] == [True, False, True, False]
    assert all(s.gap <= s.most_gap < 2e-3 for s in steps)
    assert told[-1][1] == 1.0 and "reward" in told[-1][0]
    trained.model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((folder / name).read_bytes())
    fresh = specport.load(str(tmp_path / "model"), device="torch-cpu", precision="fp32", draft="none")
    options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True}
    assert (
        pipeline.generate(PROMPTS[0], **options).token_ids == fresh.generate(PROMPTS[0], **options).token_ids
    )


def test_a_run_resumes(shared: Pipeline, folder: Path, tmp_path: Path) -> None:
    def interrupted(step: int) -> Sequence[Task]:
        if step == 2:
            raise KeyboardInterrupt
        return two_tasks(step)

    whole = train(*begun(shared, folder), two_tasks, RECIPE, tmp_path / "whole")
    out = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        train(*begun(shared, folder), interrupted, RECIPE, out)
    assert len(record.read(out)) == 2
    record.write(out, [*record.read(out), replace(whole[0], step=2)])  # of a step after the checkpoint
    resumed = train(*begun(shared, folder), two_tasks, RECIPE, out)
    figures = [(s.step, s.reward, s.tokens, s.drafted, s.accepted) for s in resumed]
    assert figures == [(s.step, s.reward, s.tokens, s.drafted, s.accepted) for s in whole]
    other = train(*begun(shared, folder, 2 * RATE), two_tasks, replace(RECIPE, steps=1), out)
    assert len(other) == 1  # another run does not go on with it
    (out / record.NAME).write_text("{}\n")
    with pytest.raises(ModelError, match="a step of a run"):
        record.read(out)


def test_a_run_that_is_interrupted_between_its_weights_and_its_record(
    shared: Pipeline, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, steps=3, compare=0)
    whole = train(*begun(shared, folder), two_tasks, recipe, tmp_path / "whole")

    def cut(pipeline: Pipeline, trained: Learner, out: Path) -> None:
        with pytest.raises(KeyboardInterrupt):
            train(pipeline, trained, two_tasks, recipe, out, save_every_s=0.0)

    # While the engine takes the weights of the third step, which the checkpoint has not.
    pipeline, trained = begun(shared, folder)
    replace_weights, left = pipeline.update_weights, [3]

    def update(weights: Any) -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        replace_weights(weights)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "update_weights", update)
        cut(pipeline, trained, tmp_path / "weights")
    # While the second step is written down, with the weights in the checkpoint.
    pipeline, trained = begun(shared, folder)
    write, calls = record.write, [2]

    def written(out: Path, steps: Sequence[record.Step]) -> None:
        calls[0] -= 1
        if not calls[0]:
            raise KeyboardInterrupt
        write(out, steps)

    with monkeypatch.context() as patch:
        patch.setattr(record, "write", written)
        cut(pipeline, trained, tmp_path / "record")
    for name in ("weights", "record"):
        assert len(record.read(tmp_path / name)) == 2
        resumed = train(*begun(shared, folder), two_tasks, recipe, tmp_path / name)
        assert [(s.reward, s.tokens) for s in resumed] == [(s.reward, s.tokens) for s in whole]


def test_samples_that_are_equal_teach_nothing(shared: Pipeline, folder: Path) -> None:
    pipeline, trained = begun(shared, folder)
    before = {name: tensor.clone() for name, tensor in trained.weights.items()}
    rollouts = Writer(pipeline, 6).write(PROMPTS, 2, seed=3).texts
    flat = trained.update(rollouts, [[0.5, 0.5], [0.0, 0.0]])
    assert flat.loss == 0.0 == flat.gradient and 0 < flat.gap < 1e-3
    assert all(torch.equal(before[name], tensor) for name, tensor in trained.weights.items())
    # A prompt that teaches nothing does not change what the other one teaches, but for its share of the mean.
    norm = trained.update(rollouts, [[0.5, 0.5], [0.0, 1.0]]).gradient
    other = learner(folder).update(rollouts[2:], [[0.0, 1.0]]).gradient
    assert norm == pytest.approx(other / 2, rel=1e-4)


def test_a_recipe_has_bounds() -> None:
    with pytest.raises(InvalidInput, match="samples is 1; it must be 2"):
        Recipe(samples=1)
