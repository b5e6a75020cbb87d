"""Shards that another place writes, in any order: the same files as those that are written here."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from specport.quantize.text import dialogues, passages, shards, turns, writer
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.text.turns import Turn
from support.toys.toy_model import ToyModel
from support.toys.toy_pipeline import ToyTokenizer

Written = list[Dialogue | None]
TOKENS = 200


class Elsewhere:
    """Write shards four at a time, the last one first. stop: raise once so many are written."""

    def __init__(self, stop: int | None = None) -> None:
        self.asked = self.written = 0
        self.closed = False
        self.stop = stop

    def write(self, asked: Iterator[Sequence[Turn] | None]) -> Generator[tuple[int, Written], None, None]:
        try:
            while True:
                batch = []
                while len(batch) < 4 and (shard := next(asked, None)) is not None:
                    batch.append((self.asked, shard))
                    self.asked += 1
                if not batch:
                    return
                for number, asked_here in reversed(batch):
                    if self.written == self.stop:
                        raise KeyboardInterrupt
                    self.written += 1
                    text_writer = writer.TextWriter(ToyModel(), ToyTokenizer())  # type: ignore[arg-type]
                    yield number, [*text_writer.write(asked_here)]
        finally:
            self.closed = True


def write(folder: Path, elsewhere: Elsewhere | None) -> list[Path]:
    return shards.write_shards(
        ToyModel,
        ToyTokenizer(),
        folder,
        TOKENS,
        0,
        (),
        lambda what, share: None,
        2,
        elsewhere=elsewhere,  # type: ignore[arg-type]
    )


def content(paths: Sequence[Path]) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in paths]


@pytest.fixture
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The shards that are written here, small ones."""
    monkeypatch.setattr(turns, "OPENINGS", {5: ("abc", "cab"), 2: ("de",)})
    monkeypatch.setattr(passages, "turn", lambda rng: "".join(rng.choice([*"abcde"], 3)))
    monkeypatch.setattr(turns, "SHARD", 4)
    monkeypatch.setattr(writer, "ANSWER_TOKENS", 9)
    return write(tmp_path_factory.mktemp("here"), None)


def test_they_are_those_that_are_written_here(here: list[Path], tmp_path: Path) -> None:
    elsewhere = Elsewhere()
    assert content(write(tmp_path, elsewhere)) == content(here) and len(here) > 4
    assert elsewhere.closed
    again = Elsewhere()
    assert content(write(tmp_path, again)) == content(here) and again.asked == 0


def test_an_interrupt_keeps_what_is_done_also_behind_a_gap(here: list[Path], tmp_path: Path) -> None:
    broken = Elsewhere(stop=2)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, broken)
    kept = [*tmp_path.glob("*.npz")]
    assert {path.name for path in kept} == {here[2].name, here[3].name} and broken.closed
    times = {path: path.stat().st_mtime_ns for path in kept}
    rest = Elsewhere()
    assert content(write(tmp_path, rest)) == content(here)
    assert rest.asked >= len(here) - 2 and all(path.stat().st_mtime_ns == times[path] for path in kept)
    assert all(len(d.tokens) > d.start for path in here for d in dialogues.read_shard(path))
    assert not np.array_equal(*(dialogues.read_shard(path)[0].tokens for path in here[:2]))
