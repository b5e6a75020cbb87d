"""A persistent history: SQLite in the user's folder, one file per tokenizer.

Several processes may use it at once. The file is opened for each text, so that the folder can be deleted at
any time, on Windows too. The file is untrusted: a file with other tables, or that SQLite cannot read, is
replaced by an empty one. Failures lose texts but never end a generation.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock

from specport.drafters.retrieval.history import MAX_TOKENS, History
from specport.drafters.retrieval.suffix_index import Ints
from specport.errors import InvalidInput
from specport.models.atomic import owner_only

_TABLE = "CREATE TABLE texts (id INTEGER PRIMARY KEY AUTOINCREMENT, tokens BLOB NOT NULL)"
_WAIT_S = 5.0  # seconds to wait for another process that is writing
_WIDTH = 4  # bytes per token
_log = logging.getLogger(__name__)


class _Damaged(Exception):
    """Report that a file is not a valid history."""


class HistoryFile:
    """Store the texts of one tokenizer in a folder; implements `drafters.retrieval.history.Store`.

    fingerprint: of the tokenizer, since ids of another tokenizer are meaningless.
    vocab_size:  upper bound of the ids, exclusive.
    max_tokens:  limit beyond which the oldest texts are deleted.
    """

    def __init__(self, folder: Path, fingerprint: str, vocab_size: int, max_tokens: int = MAX_TOKENS) -> None:
        self.path = folder / f"{fingerprint[:32]}.sqlite"
        self._vocab_size = vocab_size
        self._max_tokens = max_tokens
        self._seen = 0  # highest row id that was read

    def read(self) -> list[Ints]:
        """Return every text, oldest first. Raises _Damaged, sqlite3.Error and OSError."""
        with self._open() as db:
            return self._unseen(db)

    def add(self, tokens: Ints) -> list[Ints]:
        """Store a text; return it and the texts that others added.

        Where that fails, log a warning and return this text alone.
        """
        try:
            with self._open() as db:
                stored = db.execute("INSERT INTO texts (tokens) VALUES (?)", (_bytes(tokens),)).lastrowid or 0
                if stored <= self._seen:
                    self._seen = 0  # the file is new: the one that was read has been deleted
                self._drop_oldest(db)
                return self._unseen(db)
        except _Damaged as damage:
            _log.warning("the history %s is damaged (%s): starting anew", self.path, damage)
            self.restart()
        except (sqlite3.Error, OSError) as error:
            _log.warning("a text could not be kept in the history %s: %s", self.path, error)
        return [tokens]

    def restart(self) -> None:
        """Delete a damaged file; check it again first, since another process may have replaced it."""
        try:
            with FileLock(f"{self.path}.lock", timeout=_WAIT_S):
                try:
                    self.read()
                except _Damaged:
                    for end in ("-journal", ""):
                        Path(f"{self.path}{end}").unlink(missing_ok=True)
        except (sqlite3.Error, OSError) as error:  # filelock's Timeout is an OSError
            _log.warning("the damaged history %s could not be replaced: %s", self.path, error)
        self._seen = 0

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Open the file, creating it where it is missing, in a transaction that excludes other writers."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():  # SQLite would let others read the user's texts
            with suppress(FileExistsError):
                open(self.path, "xb", opener=owner_only).close()
        try:
            with closing(sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)) as db:
                # Code in the file's schema must not run. A power cut may lose the history, so no syncing.
                db.execute("PRAGMA trusted_schema = OFF")
                db.execute("PRAGMA synchronous = OFF")
                db.execute("BEGIN IMMEDIATE")
                schema = [
                    sql
                    for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
                ]
                if not schema:
                    db.execute(_TABLE)
                elif schema != [_TABLE]:
                    raise _Damaged("it has other tables")
                try:
                    yield db
                except BaseException:
                    db.execute("ROLLBACK")  # closing does not roll back while an exception holds a cursor
                    raise
                db.execute("COMMIT")
        except sqlite3.OperationalError:  # locked, or a full or read-only disk: the file is not damaged
            raise
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # names in it that are not UTF-8
            raise _Damaged(str(error)) from error

    def _unseen(self, db: sqlite3.Connection) -> list[Ints]:
        """Return the texts after the last one that was read, oldest first, at most `max_tokens` in all."""
        texts: list[Ints] = []
        room = self._max_tokens
        rows = db.execute(
            "SELECT id, tokens FROM texts WHERE id > ? AND length(tokens) <= ? ORDER BY id DESC",
            (self._seen, _WIDTH * self._max_tokens),
        )
        for number, blob in rows:
            if not isinstance(blob, bytes) or len(blob) % _WIDTH:
                raise _Damaged("a text is no list of tokens")
            text = np.frombuffer(blob, dtype="<i4").astype(np.int32)
            if len(text) and not (text.min() >= 0 and text.max() < self._vocab_size):
                raise _Damaged("a text has tokens outside the vocabulary")
            room -= len(text)
            if room < 0:
                break
            texts.append(text)
            self._seen = max(self._seen, number)
        return texts[::-1]

    def _drop_oldest(self, db: sqlite3.Connection) -> None:
        room = self._max_tokens * _WIDTH
        for number, size in db.execute("SELECT id, length(tokens) FROM texts ORDER BY id DESC"):
            room -= size
            if room < 0:
                db.execute("DELETE FROM texts WHERE id <= ?", (number,))
                return


def open_history(
    folder: Path, fingerprint: str, vocab_size: int, *, max_tokens: int = MAX_TOKENS, learn: bool = True
) -> tuple[History, list[str]]:
    """Return the history in a folder, which need not exist, and notes for the user.

    learn: False = the history is read once and not changed: for a benchmark, where the answers of one method
           must not help the next.

    Raises InvalidInput when the folder cannot be used.
    """
    if max_tokens < 1:
        raise InvalidInput(f"a history of {max_tokens} tokens holds nothing", "give 1 or more")
    store = HistoryFile(folder, fingerprint, vocab_size, max_tokens)
    notes: list[str] = []
    texts: list[Ints] = []
    try:
        texts = store.read()
    except _Damaged as damage:
        notes.append(f"the history {store.path} is damaged ({damage}): it starts anew")
        store.restart()
    except (sqlite3.Error, OSError) as error:
        raise InvalidInput(
            f"cannot use the history folder {folder}: {error}", "name a folder of your own"
        ) from error
    return History(texts, max_tokens=max_tokens, store=store if learn else None, learn=learn), notes


def _bytes(tokens: Ints) -> bytes:
    return tokens.astype("<i4").tobytes()
