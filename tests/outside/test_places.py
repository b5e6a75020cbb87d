"""Names of files as users and folders as systems have them: an answer, never an exception of the system."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.tiny import tiny_models

from specport.cli import main
from specport.errors import InvalidInput, ModelError
from specport.models import cache
from specport.outside.places import expanded
from specport.runtime.loading import Loader

NAMES = ("~nosuchuser/x", "x" * 300, "x" * 5000, "a\0b", "\ud800" * 3)


@pytest.mark.parametrize("name", NAMES, ids=["user", "long", "path", "null", "surrogates"])
def test_what_is_no_path_is_one_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if sys.platform == "win32" and name.startswith("~"):
        pytest.skip("Windows has a home folder for every name")
    with pytest.raises(InvalidInput) as caught:
        expanded(name)
    assert len(str(caught.value)) < 300
    for option in ("--model", "--prompt-file"):
        assert main(["run", option, name, *(["Hi"] if option != "--prompt-file" else [])]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) >= 1


def test_homes_are_looked_up_in_one_place() -> None:
    root = Path(__file__).parents[2]
    sources = (path for top in ("specport", "quantize", "backends") for path in (root / top).rglob("*.py"))
    found = [path.name for path in sources if ".expanduser(" in path.read_text(encoding="utf-8")]
    assert found == ["places.py"]


def test_what_is_missing_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert expanded(tmp_path / "none") == tmp_path / "none"
    assert expanded(tmp_path / "file" / "below") == tmp_path / "file" / "below"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert expanded("~/file") == tmp_path / "file"


def test_a_user_without_a_home_is_told_to_name_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPECPORT_CACHE", raising=False)
    monkeypatch.setattr(cache.platformdirs, "user_cache_path", lambda *names: Path("~/.cache/specport"))
    with pytest.raises(ModelError, match="SPECPORT_CACHE"):
        cache.cache_root()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not delete a folder that is in use")
def test_a_deleted_working_folder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_models.save_tokenizer(tmp_path / "model")  # nothing is downloaded
    monkeypatch.setattr(Loader, "files", lambda *given: SimpleNamespace(folder=tmp_path / "model"))
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    assert main(["datastore", "build", ".", "--out", "store"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
