"""Text that the target writes for a draft to learn from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from specport.quantize.text import passages, teacher
from specport.quantize.text.prompts import CHOOSING, HELD_OUT, parts
from support.toy_model import ToyModel
from support.toy_pipeline import ToyTokenizer

from specport.errors import ModelError


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "OPENINGS", {5: ("abc", "cab"), 2: ("de",)})
    monkeypatch.setattr(passages, "turn", lambda rng: "".join(rng.choice([*"abcde"], 3)))
    monkeypatch.setattr(teacher, "SHARD", 4)
    monkeypatch.setattr(teacher, "TOP_K", 3)
    monkeypatch.setattr(teacher, "ANSWER_TOKENS", 9)


def write(folder: Path, count: int, prompts: tuple[str, ...] = (), seed: int = 0) -> list[Path]:
    target, tokenizer = ToyModel(), ToyTokenizer()
    paths = teacher.write_shards(lambda: target, tokenizer, folder, count, seed, prompts, lambda *_: None)  # type: ignore[arg-type]
    assert target.num_open == 0
    return paths


def same(first: Path, second: Path) -> bool:
    a, b = teacher.read_shard(first), teacher.read_shard(second)
    return len(a) == len(b) and all(np.array_equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def test_answers_are_greedy_and_the_top_of_the_distribution_is_kept(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 9)
    target = ToyModel()
    shard = teacher.read_shard(path)
    assert len(shard) == 4 and len({tuple(d.tokens[: d.start].tolist()) for d in shard}) > 1
    for dialogue in shard:
        prompt, answer = (
            dialogue.tokens[: dialogue.start].tolist(),
            dialogue.tokens[dialogue.start :].tolist(),
        )
        assert answer == target.greedy(prompt, 9)[: len(answer)]
        assert dialogue.top_ids.shape == dialogue.top_probs.shape == (len(answer), 3)
        for i, token in enumerate(answer):
            a, b = [*prompt, *answer[:i]][-2:]
            logits = target.table[a, b].astype(np.float64)
            exact = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            order = np.argsort(-exact)[:3]
            assert dialogue.top_ids[i].tolist() == order.tolist() and order[0] == token
            assert np.allclose(dialogue.top_probs[i], exact[order], atol=1e-3)


def test_a_seed_gives_the_same_text_wherever_it_was_interrupted(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", 100)
    assert len(whole) > 2
    part = write(tmp_path / "part", 30)
    kept = part[0].stat().st_mtime_ns
    gone_on = write(tmp_path / "part", 100)
    assert part[0].stat().st_mtime_ns == kept and len(gone_on) == len(whole)
    assert all(same(a, b) for a, b in zip(whole, gone_on, strict=True))
    assert not same(whole[0], whole[1])
    target = ToyModel()
    few = teacher.write_shards(
        lambda: target,
        ToyTokenizer(),
        tmp_path / "few",
        9,
        0,
        (),
        lambda *_: None,
        least=2,  # type: ignore[arg-type]
    )
    assert len(few) == 2 and same(few[1], whole[1])
    assert not same(whole[0], write(tmp_path / "other", 9, seed=1)[0])


def test_every_other_shard_asks_about_a_passage(tmp_path: Path) -> None:
    paths = write(tmp_path, 100)
    assert [path.stem for path in paths[:3]] == ["opened-00000", "passage-00000", "opened-00001"]
    passage = [d.tokens[: d.start] for d in teacher.read_shard(paths[1])]
    assert {len(turn) for turn in passage} == {3}  # asked as it stands
    assert any(len(d.tokens[: d.start]) > 3 for d in teacher.read_shard(paths[0]))


def test_the_users_own_turns_are_answered_once_each_in_turns_with_the_targets(tmp_path: Path) -> None:
    own = ("abcd", "dcba", "aabb", "bbaa", "cdcd", "abcd")
    paths = write(tmp_path, 120, own)
    kinds = ["own-00000", "opened-00000", "own-00001", "passage-00000", "opened-00001"]
    assert [path.stem for path in paths[:5]] == kinds
    asked = [tuple(d.tokens[: d.start].tolist()) for path in paths[:3:2] for d in teacher.read_shard(path)]
    encoded = [tuple(ToyTokenizer().encode(text)) for text in own[:5]]
    assert sorted(asked) == sorted(encoded) and asked != encoded
    assert same(paths[1], write(tmp_path / "without", 9)[0])  # the target's own turns are the same ones


def test_prompts_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    paths = write(tmp_path, 60, ("a" * 5000, "b" * 5000))
    assert teacher.read_shard(paths[0]) == [] and teacher.read_shard(paths[1])


def test_each_of_the_users_prompts_has_one_use() -> None:
    assert parts(()) == (CHOOSING, HELD_OUT, ())
    assert parts(("a", "b", "c", "d", "b")) == (("a", "c"), ("b", "d"), ("a", "c"))
    many = tuple(str(i) for i in range(100))
    choosing, held_out, to_learn = parts(many)
    assert len(choosing) == len(held_out) == 13 and held_out[-1] == "97"
    assert not set(held_out) & ({*choosing} | {*to_learn}) and {*held_out, *to_learn} == {*many}


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 9)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"opened-00000\.npz is damaged"):
        teacher.read_shard(path)


def test_the_top_is_found_without_sorting_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.1, 1.0, 8.0):
        logits = (scale * rng.normal(size=6000)).astype(np.float32)
        ids, probs = teacher._top(logits)
        wanted = np.argsort(-logits, kind="stable")[:3]
        exact = np.exp(logits.astype(np.float64) - logits.max())
        assert np.allclose(logits[ids], logits[wanted]) and np.allclose(probs, exact[ids] / exact.sum())
