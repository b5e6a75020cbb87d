"""Commands that are killed, and commands whose disk is full: nothing half is used, and they go on.

A small part of `tests/benchmarks/trust/kills.py` and `full_disk.py`, which do this to all long commands.
"""

from __future__ import annotations

import builtins
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from support.faults.kills import Command, digest, half_files, kill_often
from support.tiny import tiny_models

from specport import cli
from specport.drafters.retrieval import datastore
from specport.text.tokenizer import load_tokenizer

IR = ("openvino_model.xml", "openvino_model.bin")


def write_model(folder: Path) -> None:
    """Write a folder that passes for a converted model where only its tokenizer is needed."""
    tiny_models.save_tokenizer(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    for name in IR:
        (folder / name).write_text("<net></net>", encoding="utf-8")


def store(place: Path, out: str) -> list[str]:
    tokenizer = load_tokenizer(place / "target")
    datastore.open_datastore(place / "store", tokenizer, 1000)
    return sorted(digest(path) for path in (place / "store").iterdir() if path.suffix != ".json")


@pytest.fixture
def template(tmp_path: Path) -> Path:
    folder = tmp_path / "template"
    write_model(folder / "target")
    (folder / "src").mkdir()
    for number in range(100):
        text = f"hello world {number}\n" * 100
        (folder / "src" / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


BUILD = Command(
    "datastore", ("datastore", "build", "src", "--out", "store", "--model", "target"), store, made=("store",)
)


def test_a_killed_build_of_a_datastore(template: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    found = kill_often(BUILD, template, tmp_path / "work", 2)
    assert found.kills == 2 and not found.problems


def test_half_files_are_found(tmp_path: Path) -> None:
    (tmp_path / "whole.json").write_text("{}")
    (tmp_path / "a.json").write_text('{"a": ')
    (tmp_path / "model.xml").write_text("<net><layers>")
    (tmp_path / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / ".a.json.01234567.tmp").write_text("{")
    (tmp_path / "made.partial").mkdir()
    (tmp_path / "made.partial" / "b.json").write_text("[")
    names = {str(path).partition(" ")[0] for path in half_files(tmp_path)}
    assert names == {"a.json", "model.xml", "w.safetensors"}


def test_what_a_killed_build_left_long_ago_goes(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(template)
    for name, age in ((".store.01234567", 7200), (".store.89abcdef", 60)):
        (template / name).mkdir()
        (template / name / "tokens.bin").write_bytes(b"half")
        os.utime(template / name, (time.time() - age,) * 2)
    tokenizer = load_tokenizer(template / "target")
    datastore.build([template / "src" / "0.txt"], template / "store", tokenizer)
    assert [path.name for path in template.glob(".store.*")] == [".store.89abcdef"]


class Disk:
    """Let what is written below a folder fail once so many bytes are there, as a full disk does."""

    def __init__(self, folder: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.room = str(folder), room
        self._open, self._fsync = builtins.open, os.fsync
        monkeypatch.setattr(builtins, "open", self.open)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def open(self, file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        opened = self._open(file, mode, *more, **options)
        if not isinstance(file, int) and str(file).startswith(self.folder) and mode[0] in "wxa":
            write = opened.write

            def limited(data: Any) -> int:
                self.room -= len(data)
                if self.room < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
                return int(write(data))

            opened.write = limited
        return opened

    def fsync(self, number: int) -> None:
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._fsync(number)


@pytest.mark.parametrize("room", [0, 30, 300, 3_000])
def test_a_full_disk_is_said_and_the_old_datastore_stays(
    room: int, template: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(template)
    monkeypatch.setenv("SPECPORT_CACHE", str(template / "cache"))
    assert cli.main([*BUILD.arguments, "--quiet"]) == 0
    before = store(template, "")
    (template / "src" / "0.txt").write_text("another text", encoding="utf-8")
    capsys.readouterr()
    with monkeypatch.context() as patch:
        Disk(Path("store").absolute().parent, room, patch)
        Disk(Path("store"), room, patch)
        code = cli.main([*BUILD.arguments, "--quiet"])
    err = capsys.readouterr().err
    if code:  # 3,000 bytes may be enough for what is written through open
        assert code == 2 and "the disk is full" in err and err.count("\n") == 1 and "Traceback" not in err
        assert store(template, "") == before and not half_files(template)
    assert cli.main([*BUILD.arguments, "--quiet"]) == 0 and store(template, "") != before
    assert not [*template.glob(".store*"), *template.glob("store.*")]


def test_a_full_disk_in_the_middle_of_weights(tmp_path: Path) -> None:
    """safetensors and IR are written by other libraries: their error names the cause, too."""
    from specport.models.os_errors import cause

    said = cause(RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert "disk is full" in said.message and "free some space" in said.hint
