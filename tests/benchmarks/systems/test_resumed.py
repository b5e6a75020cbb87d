"""Results of two models never stand in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.resumed import claim

from specport.errors import InvalidInput

FACTS = {"target": "0a1b", "skipped": (1, 2)}


def test_the_same_run_goes_on(tmp_path: Path) -> None:
    claim(tmp_path / "out", FACTS)
    (tmp_path / "out" / "rows.jsonl").touch()
    claim(tmp_path / "out", FACTS)


@pytest.mark.parametrize("other", [{**FACTS, "target": "2c3d"}, {**FACTS, "draft": "ngram"}, {}])
def test_another_run_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    claim(tmp_path, FACTS)
    with pytest.raises(InvalidInput, match="of another run"):
        claim(tmp_path, other)


def test_results_of_an_unknown_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(InvalidInput, match="does not say"):
        claim(tmp_path, FACTS)
