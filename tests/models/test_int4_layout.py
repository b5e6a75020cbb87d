"""What an IR says of the groups of its INT4 weights, and the group of activations that fits them."""

from __future__ import annotations

from pathlib import Path

import pytest

from specport.models.int4_layout import Int4Layout, read_layout


def write(folder: Path, *shapes: str, kind: str = "u4") -> Path:
    lines = [f'<data element_type="{kind}" shape="{shape}" offset="0" size="1" />' for shape in shapes]
    path = folder / "openvino_model.xml"
    path.write_text("<net>\n" + "\n".join(lines) + "\n</net>", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("shapes", "layout", "group", "widest"),
    [
        (["64, 9, 64", "64, 9, 1"], Int4Layout(64, 0), 64, 64),  # the second is a zero point
        (["64, 9, 64", "64, 12, 128"], Int4Layout(64, 0), 64, 64),
        (["64, 12, 128"], Int4Layout(128, 0), 128, 128),
        (["64, 8, 32", "64, 12, 128"], Int4Layout(32, 0), 32, 32),
        (["64, 4, 96"], Int4Layout(96, 0), 32, 32),
        (["64, 2, 512"], Int4Layout(512, 0), 256, 256),
        (["576, 1536", "1536, 576", "64, 1"], Int4Layout(0, 576), 256, 576),
        (["64, 1, 128", "64, 1, 1"], Int4Layout(0, 128), 128, 128),  # a single group is a whole row
        (["64, 2, 128", "64, 64"], Int4Layout(128, 64), 64, 64),
        (["64, 2, 128", "64, 896"], Int4Layout(128, 896), 128, 128),
        (["64, 10, 100"], Int4Layout(100, 0), None, None),
        ([], Int4Layout(), None, None),
    ],
)
def test_the_group_fits_every_layer(
    shapes: list[str], layout: Int4Layout, group: int | None, widest: int | None, tmp_path: Path
) -> None:
    for kind in ("u4", "i4"):
        assert read_layout(write(tmp_path, *shapes, kind=kind)) == layout
        assert (layout.dynamic_group, layout.widest_dynamic_group) == (group, widest)


def test_other_weights_are_not_counted(tmp_path: Path) -> None:
    assert read_layout(write(tmp_path, "64, 9, 64", "64, 576", kind="u8")) == Int4Layout()


def test_a_file_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    assert read_layout(write(tmp_path, "64, 9, 64")).group == 64
    assert read_layout(write(tmp_path, "64, 12, 128", "64, 12, 1")).group == 128
