"""Every kind of file that the package declares is read by a case of the other files here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("openvino")
pytest.importorskip("optuna")
pytest.importorskip("torch")

from fuzz import test_builds, test_formats
from support.faults.fuzzing import Case
from support.faults.memory_child import json_formats

from specport.outside import Format


def test_each_declared_format_is_fuzzed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    converted, read = Format._converted, set()

    def noted(self: Format[Any], value: Any) -> Any:
        read.add(id(self))
        return converted(self, value)

    monkeypatch.setattr(Format, "_converted", noted)
    for number, make in enumerate((*test_formats.CASES.values(), *test_builds.CASES.values())):
        (folder := tmp_path / str(number)).mkdir()
        case: Case = make(folder)
        case.read_whole()
    assert [name for name, kind in json_formats() if id(kind) not in read] == []
