"""The writer of target text, and its shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specport.quantize.text import dialogues, passages, shards, turns, writer
from specport.quantize.text.prompts import CHOOSING, HELD_OUT, divide
from support.toys.toy_model import ToyModel
from support.toys.toy_pipeline import ToyTokenizer

from specport.core.ports import Row, StepOutput
from specport.errors import ModelError
from specport.progress import Progress


class CountingModel(ToyModel):
    """A toy that counts its steps and their rows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.rows: list[int] = []

    def step(self, rows: Sequence[Row]) -> StepOutput:
        self.rows.append(len(rows))
        return super().step(rows)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "OPENINGS", {5: ("abc", "cab"), 2: ("de",)})
    monkeypatch.setattr(passages, "turn", lambda rng: "".join(rng.choice([*"abcde"], 3)))
    monkeypatch.setattr(turns, "SHARD", 4)
    monkeypatch.setattr(dialogues, "TOP_K", 3)
    monkeypatch.setattr(writer, "TOP_K", 3)
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 9)


def ignored(what: str, share: float) -> None:
    pass


def write(
    folder: Path,
    count: int | None,
    prompts: tuple[str, ...] = (),
    seed: int = 0,
    target: ToyModel | None = None,
    progress: Progress = ignored,
    least: int = 1,
    at_once: int = writer.AT_ONCE,
) -> list[Path]:
    model, tokenizer = target or ToyModel(), ToyTokenizer()
    paths = shards.write_shards(
        lambda: model, tokenizer, folder, count, seed, prompts, progress, least, at_once  # type: ignore[arg-type]
    )  # fmt: skip
    assert model.num_open == 0
    return paths


def same(first: Path, second: Path) -> bool:
    a, b = dialogues.read_shard(first), dialogues.read_shard(second)
    return len(a) == len(b) and all(np.array_equal(x.tokens, y.tokens) for x, y in zip(a, b, strict=True))


def test_answers_are_greedy_and_the_top_of_the_distribution_is_kept(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 9)
    target = ToyModel()
    shard = dialogues.read_shard(path)
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
    few = write(tmp_path / "few", 9, least=2)
    assert len(few) == 2 and same(few[1], whole[1])
    assert not same(whole[0], write(tmp_path / "other", 9, seed=1)[0])


def test_every_other_shard_asks_about_a_passage(tmp_path: Path) -> None:
    paths = write(tmp_path, 100)
    assert [path.stem for path in paths[:3]] == ["opened-00000", "passage-00000", "opened-00001"]
    passage = [d.tokens[: d.start] for d in dialogues.read_shard(paths[1])]
    assert {len(turn) for turn in passage} == {3}  # asked as it stands
    assert any(len(d.tokens[: d.start]) > 3 for d in dialogues.read_shard(paths[0]))


def test_the_users_own_turns_are_answered_once_each_in_turns_with_the_targets(tmp_path: Path) -> None:
    own = ("abcd", "dcba", "aabb", "bbaa", "cdcd", "abcd")
    paths = write(tmp_path, 120, own)
    kinds = ["own-00000", "opened-00000", "own-00001", "passage-00000", "opened-00001"]
    assert [path.stem for path in paths[:5]] == kinds
    asked = [tuple(d.tokens[: d.start].tolist()) for path in paths[:3:2] for d in dialogues.read_shard(path)]
    encoded = [tuple(ToyTokenizer().encode(text)) for text in own[:5]]
    assert sorted(asked) == sorted(encoded) and asked != encoded
    assert same(paths[1], write(tmp_path / "without", 9)[0])  # the target's own turns are the same ones


def test_prompts_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    paths = write(tmp_path, 60, ("a" * 5000, "b" * 5000))
    assert dialogues.read_shard(paths[0]) == [] and dialogues.read_shard(paths[1])


def test_each_of_the_users_prompts_has_one_use() -> None:
    assert divide(()) == (CHOOSING, HELD_OUT, ())
    assert divide(("a",)) == (("a",), HELD_OUT, ("a",))
    assert divide(("a", "b", "c", "d", "b")) == (("a", "c"), ("b", "d"), ("a", "c"))
    many = tuple(str(i) for i in range(100))
    choosing, held_out, to_learn = divide(many)
    assert len(choosing) == len(held_out) == 13 and held_out[-1] == "97"
    assert not set(held_out) & ({*choosing} | {*to_learn}) and {*held_out, *to_learn} == {*many}


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, 9)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"opened-00000\.npz is damaged"):
        dialogues.read_shard(path)


def test_the_top_is_found_without_sorting_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.1, 1.0, 8.0):
        logits = (scale * rng.normal(size=6000)).astype(np.float32)
        ids, probs = dialogues.likeliest(logits)
        wanted = np.argsort(-logits, kind="stable")[:3]
        exact = np.exp(logits.astype(np.float64) - logits.max())
        assert np.allclose(logits[ids], logits[wanted]) and np.allclose(probs, exact[ids] / exact.sum())


def test_a_target_that_pads_gets_a_draft_token_for_the_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 60)  # long enough for successors to come again
    padded = CountingModel()
    padded.capabilities = replace(padded.capabilities, min_width=2)
    plain = CountingModel()
    with_drafts, without = write(tmp_path / "a", 200, target=padded), write(tmp_path / "b", 200, target=plain)
    assert all(same(a, b) for a, b in zip(with_drafts, without, strict=True))
    assert sum(padded.rows) < sum(plain.rows)
    tops = [[d.top_ids for d in dialogues.read_shard(path[0])] for path in (with_drafts, without)]
    assert all(np.array_equal(a, b) for a, b in zip(*tops, strict=True))


def test_a_text_that_ends_makes_room_for_the_next(tmp_path: Path) -> None:
    target = CountingModel()
    write(tmp_path, 400, target=target)
    rows = target.rows
    # Until the last texts run out, a step has as many rows as fit.
    assert max(rows) <= writer.AT_ONCE and np.median(rows) > 0.5 * max(rows)


def test_only_the_users_prompts_are_answered_where_no_number_is_given(tmp_path: Path) -> None:
    paths = write(tmp_path, None, ("abcd", "dcba", "aabb", "bbaa", "cdcd"))
    assert [path.stem for path in paths] == ["own-00000", "own-00001"]
    assert sum(len(dialogues.read_shard(path)) for path in paths) == 5
    assert write(tmp_path, None, ("abcd", "dcba", "aabb", "bbaa", "cdcd")) == paths


def test_a_missing_shard_between_others_is_written_again_alone(tmp_path: Path) -> None:
    whole = write(tmp_path, 100)
    before = dialogues.read_shard(whole[1])
    kept = {path: path.stat().st_mtime_ns for path in whole}
    whole[1].unlink()
    target = CountingModel()
    assert write(tmp_path, 100, target=target) == whole and max(target.rows) <= turns.SHARD
    assert [p for p in whole if p.stat().st_mtime_ns == kept[p]] == [p for p in whole if p != whole[1]]
    after = dialogues.read_shard(whole[1])
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(before, after, strict=True))


def test_the_target_is_not_loaded_where_nothing_is_missing(tmp_path: Path) -> None:
    whole = write(tmp_path, 100)

    def load() -> ToyModel:
        raise AssertionError("loaded")

    assert shards.write_shards(load, ToyTokenizer(), tmp_path, 100, 0, (), ignored) == whole  # type: ignore[arg-type]
    assert shards.write_shards(load, ToyTokenizer(), tmp_path, 1, 0, (), ignored) == whole[:1]  # type: ignore[arg-type]


def test_progress_rises_with_each_step_and_an_interrupt_frees_all_and_keeps_whole_shards(
    tmp_path: Path,
) -> None:
    shown: list[float] = []
    whole = write(tmp_path / "whole", 200, progress=lambda what, share: shown.append(share))
    assert shown == sorted(shown) and shown[0] > 0 and max(np.diff(shown)) < 0.5 and shown[-1] == 1.0

    def stop(what: str, share: float) -> None:
        if any((tmp_path / "part").glob("*.npz")):
            raise KeyboardInterrupt

    target = ToyModel()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "part", 200, target=target, progress=stop, at_once=4)
    assert target.num_open == 0
    written = sorted((tmp_path / "part").iterdir())
    assert written and len(written) < len(whole)
    gone_on = write(tmp_path / "part", 200)
    assert all(same(a, b) for a, b in zip(whole, gone_on, strict=True))
