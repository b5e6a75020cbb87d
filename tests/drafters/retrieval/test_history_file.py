"""The history on disk: bounded, shared by processes, and replaced where it is damaged."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from specport.drafters.retrieval.history_file import HistoryFile, open_history
from specport.drafters.retrieval.suffix_index import Ending
from specport.errors import InvalidInput

VOCAB = 1000


def store(folder: Path, max_tokens: int = 100) -> HistoryFile:
    return HistoryFile(folder, "f" * 64, VOCAB, max_tokens)


def text(first: int, size: int = 10) -> np.ndarray:
    return np.arange(first, first + size, dtype=np.int32)


def read(folder: Path) -> list[list[int]]:
    return [tokens.tolist() for tokens in store(folder).read()]


def test_texts_are_kept_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "history"
    assert [t.tolist() for t in store(folder).add(text(1))] == [text(1).tolist()]
    assert [t.tolist() for t in store(folder).add(text(50))] == [text(1).tolist(), text(50).tolist()]
    assert read(folder) == [text(1).tolist(), text(50).tolist()]
    assert [path.suffix for path in folder.iterdir()] == [".sqlite"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_only_its_owner_reads_it(tmp_path: Path) -> None:
    found = store(tmp_path / "new")
    found.add(text(0))
    assert found.path.stat().st_mode & 0o077 == 0
    found.path.chmod(0o640)  # its owner shares it
    found.add(text(10))
    assert found.path.stat().st_mode & 0o077 == 0o040


def test_the_oldest_go(tmp_path: Path) -> None:
    for first in range(60):
        store(tmp_path).add(text(first))
    assert [tokens[0] for tokens in read(tmp_path)] == [*range(50, 60)]
    with closing(sqlite3.connect(store(tmp_path).path)) as db:
        assert db.execute("SELECT count(*) FROM texts").fetchone() == (10,)


def test_each_tokenizer_has_its_own(tmp_path: Path) -> None:
    open_history(tmp_path, "a" * 64, VOCAB)[0].add(text(1).tolist())
    history, notes = open_history(tmp_path, "b" * 64, VOCAB)
    assert len(history.index) == 0 and not notes
    assert len(open_history(tmp_path, "a" * 64, VOCAB)[0].index) == 11


def test_what_another_process_adds_is_seen(tmp_path: Path) -> None:
    mine, _ = open_history(tmp_path, "f" * 64, VOCAB)
    theirs, _ = open_history(tmp_path, "f" * 64, VOCAB)
    theirs.add(text(500).tolist())
    mine.add(text(1).tolist())
    (row,) = mine.index.find(Ending.of([500, 501]), 2).follow.tolist()
    assert row == [502, 503]
    assert len(mine.index) == 22


def test_a_history_that_is_only_read_stays_as_it_is(tmp_path: Path) -> None:
    open_history(tmp_path, "f" * 64, VOCAB)[0].add(text(1).tolist())
    history, _ = open_history(tmp_path, "f" * 64, VOCAB, learn=False)
    history.add(text(500).tolist())
    assert len(history.index) == 11 and read(tmp_path) == [text(1).tolist()]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from specport.drafters.retrieval.history_file import HistoryFile
store = HistoryFile(Path(sys.argv[1]), "f" * 64, 1000, 10_000)
for i in range(40):
    assert len(store.add(np.full(5, int(sys.argv[2]) + i, dtype=np.int32)))
"""


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, first], stderr=subprocess.PIPE) for first in ("100", "200")]
    for writer in writers:
        assert writer.communicate(timeout=60)[1] == b"" and writer.returncode == 0
    firsts = sorted(tokens[0] for tokens in store(tmp_path, 10_000).read())
    assert firsts == [*range(100, 140), *range(200, 240)]


def rubbish(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\\0" + b"x" * 5000)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096] + b"\\xff" * 4096)


def other_table(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE VIEW texts AS SELECT 1 AS id, x'00' AS tokens")


def trigger(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TRIGGER t AFTER INSERT ON texts BEGIN DELETE FROM texts; END")


def wide_tokens(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO texts (tokens) VALUES (?)", (text(VOCAB).astype("<i4").tobytes(),))


def no_tokens(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO texts (tokens) VALUES ('abcd')")


@pytest.mark.parametrize("harm", [rubbish, torn, other_table, trigger, wide_tokens, no_tokens])
def test_a_damaged_file_is_replaced_and_the_user_told(tmp_path: Path, harm) -> None:
    store(tmp_path).add(text(1))
    harm(store(tmp_path).path)
    history, notes = open_history(tmp_path, "f" * 64, VOCAB)
    assert len(notes) == 1 and "damaged" in notes[0] and "starts anew" in notes[0]
    assert len(history.index) == 0
    history.add(text(30).tolist())
    assert read(tmp_path) == [text(30).tolist()]
    assert not open_history(tmp_path, "f" * 64, VOCAB)[1]


def test_damage_while_running_costs_the_old_texts_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history, _ = open_history(tmp_path, "f" * 64, VOCAB)
    history.add(text(1).tolist())
    rubbish(store(tmp_path).path)
    with caplog.at_level(logging.WARNING):
        history.add(text(30).tolist())
    assert "starting anew" in caplog.text
    assert len(history.index) == 22  # in memory both are there
    history.add(text(60).tolist())
    assert read(tmp_path) == [text(60).tolist()]


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history, _ = open_history(tmp_path / "h", "f" * 64, VOCAB)
    for first in (1, 20, 40):
        history.add(text(first).tolist())
    shutil.rmtree(tmp_path / "h")
    other, _ = open_history(tmp_path / "h", "f" * 64, VOCAB)
    other.add(text(100).tolist())
    history.add(text(60).tolist())
    assert read(tmp_path / "h") == [text(100).tolist(), text(60).tolist()]
    assert len(history.index) == 5 * 11 and not caplog.text


def test_a_locked_file_loses_the_text_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("specport.drafters.retrieval.history_file._WAIT_S", 0.05)
    history, _ = open_history(tmp_path, "f" * 64, VOCAB)
    history.add(text(1).tolist())
    with closing(sqlite3.connect(store(tmp_path).path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        history.add(text(30).tolist())
    assert "locked" in caplog.text and len(history.index) == 22
    assert read(tmp_path) == [text(1).tolist()]


def test_a_folder_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidInput, match="history folder"):
        open_history(tmp_path / "file", "f" * 64, VOCAB)
    with pytest.raises(InvalidInput, match="holds nothing"):
        open_history(tmp_path, "f" * 64, VOCAB, max_tokens=0)
