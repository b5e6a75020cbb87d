"""The log of a user's traffic with one target: where it is, whether it is on, and its bounds.

The log of a target is a folder in the cache, named by the fingerprint of the target's weights, with one file
of dialogues for each text and `settings.json`. Only this user may read it, where the system has permissions.
The names of the files sort by time; the oldest are deleted when the log is full.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.models.os_errors import cause
from specport.outside import Format
from specport.traffic.dialogues import Dialogue, save_shard

MAX_BYTES = 64 * 10**6
MAX_FILES = 4096
SETTINGS = "settings.json"
_KEPT_SHARE = 0.9  # of the bounds that is kept when the oldest texts are deleted, so that this is rare
_LOOK_EVERY = 64  # texts after which the folder is listed anew, since other processes write to it too


@dataclass(frozen=True)
class Settings:
    """Hold what the user chose, and what adapting needs to know of the target.

    on:        whether texts are recorded.
    max_bytes: of the log's texts.
    draft:     folder of the draft that is to learn from them.
    target:    name of the target, for people. model, precision: what the user named as the target, and its
               weight format; "" = not known yet.
    last:      what the last `specport adapt` of the draft found; empty = there was none.
    """

    on: bool
    draft: str
    target: str
    max_bytes: int = MAX_BYTES
    model: str = ""
    precision: str = ""
    last: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise ValueError(f"{self.max_bytes} bytes hold no text")


_SETTINGS = Format(Settings, "the settings of a log")


class TrafficLog:
    """The log of the target with this fingerprint; it need not exist."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.folder = root() / fingerprint[:24]
        self._size, self._count, self._until_look = 0, 0, 0  # as far as this process knows

    @property
    def work(self) -> Path:
        """Return the folder in which adapting keeps what is half done."""
        return self.folder / "adapting"

    def settings(self) -> Settings | None:
        """Return the settings; None where there are none or they are damaged."""
        return _SETTINGS.find(self.folder / SETTINGS)

    def save(self, settings: Settings) -> None:
        """Write the settings. Raises ModelError."""
        try:
            self.prepare()
            write_json(self.folder / SETTINGS, asdict(settings))
        except OSError as error:
            message, hint = cause(error)
            raise ModelError(f"cannot write {self.folder / SETTINGS}: {message}", hint) from error

    def note(self, **changes: Any) -> None:
        """Change some settings, where there are any. Raises ModelError."""
        settings = self.settings()
        if settings is not None and replace(settings, **changes) != settings:
            self.save(replace(settings, **changes))

    @property
    def on(self) -> bool:
        """Return whether texts are to be recorded."""
        settings = self.settings()
        return settings is not None and settings.on

    def add(self, dialogues: Sequence[Dialogue]) -> bool:
        """Store the dialogues of a text; delete the oldest texts where the log is full.

        Returns False, and stores nothing, where the log has been switched off. Raises ModelError.
        """
        settings = self.settings()
        if settings is None or not settings.on:
            return False
        self.prepare()
        path = self.folder / f"{time.time_ns():020}-{secrets.token_hex(4)}.npz"
        save_shard(path, dialogues, lasting=False)
        self._size += path.stat().st_size
        self._count += 1
        self._until_look -= 1
        if self._until_look < 0 or self._size > settings.max_bytes or self._count > MAX_FILES:
            self._bound(settings.max_bytes)
        return True

    def files(self) -> list[Path]:
        """Return the files of the texts, oldest first."""
        return sorted(self.folder.glob("*.npz"))

    def size(self) -> int:
        """Return the bytes of the texts."""
        return sum(_size(path) for path in self.files())

    def clear(self) -> tuple[int, int]:
        """Delete all texts and what was half adapted from them; return their number and bytes.

        Raises ModelError.
        """
        files = self.files()
        size = sum(map(_size, files))
        try:
            for path in (*files, *self.folder.glob(".*.tmp")):
                path.unlink(missing_ok=True)
            if self.work.exists():
                shutil.rmtree(self.work)
        except OSError as error:
            message, hint = cause(error)
            raise ModelError(f"cannot clear {self.folder}: {message}", hint) from error
        self._until_look = 0
        return len(files), size

    def prepare(self) -> None:
        """Create the folder, for this user alone."""
        for folder in (root(), self.folder):
            folder.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":
                with suppress(OSError):
                    folder.chmod(0o700)

    def _bound(self, max_bytes: int) -> None:
        """Count the texts; where they are too many, delete the oldest, and what killed processes left."""
        found = [(path, _size(path)) for path in self.files()]
        self._size, self._count = sum(size for _, size in found), len(found)
        self._until_look = _LOOK_EVERY
        if self._size <= max_bytes and self._count <= MAX_FILES:
            return
        for path, size in found:
            if self._size <= max_bytes * _KEPT_SHARE and self._count <= MAX_FILES * _KEPT_SHARE:
                break
            with suppress(OSError):  # another process deletes it, or has it open
                path.unlink()
            self._size, self._count = self._size - size, self._count - 1
        for path in self.folder.glob(".*.tmp"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - 3600:
                    path.unlink()


def root() -> Path:
    """Return the folder of all logs."""
    return cache_root() / "traffic"


def all_logs() -> list[TrafficLog]:
    """Return the logs that have settings, by fingerprint."""
    return [TrafficLog(path.parent.name) for path in sorted(root().glob(f"*/{SETTINGS}"))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # deleted meanwhile
        return 0
