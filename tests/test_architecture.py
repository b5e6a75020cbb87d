"""docs/architecture.md and its pictures are true to the code."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
AGAIN = "run python docs/draw_architecture.py"


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """The program that draws the pictures, loaded from its file."""
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_picture_of_the_floors_is_up_to_date(drawing: ModuleType) -> None:
    table = drawing.floors()
    drawn = drawing.draw_floors(table, drawing.room_imports(table), drawing.roles())
    assert drawn == drawing.FLOORS_SVG.read_text(encoding="utf-8"), AGAIN


def test_the_picture_of_a_round_is_up_to_date(drawing: ModuleType) -> None:
    assert drawing.draw_round() == drawing.ROUND_SVG.read_text(encoding="utf-8"), AGAIN


def test_a_stage_names_code_that_exists(drawing: ModuleType) -> None:
    gone = drawing.Stage("gone", "", ("specport/core/engine.py:no_such_function",))
    with pytest.raises(LookupError, match="no_such_function"):
        drawing.draw_round([gone])


def test_arrows_that_a_longer_way_implies_are_left_out(drawing: ModuleType) -> None:
    used = {"roof": {"attic", "cellar"}, "attic": {"cellar"}, "cellar": set()}
    assert drawing.essential(used) == {"roof": ["attic"], "attic": ["cellar"], "cellar": []}


def test_the_page_has_the_rooms_of_the_table(drawing: ModuleType) -> None:
    rooms = {room: level for level, floor in enumerate(drawing.floors()) for room in floor}
    assert {room: level for room, (level, _) in drawing.roles().items()} == rooms


def test_a_walk_visits_no_file_twice(drawing: ModuleType) -> None:
    walks = re.findall(
        r"^## Walk (.*?)$(.*?)(?=^## )", drawing.PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(walks) == 4
    for title, walk in walks:
        files = re.findall(r"`([\w/]+\.py)`", walk)
        assert len(files) >= 10 and len({*files}) == len(files), title
