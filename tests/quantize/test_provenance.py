"""What a build says of how it was made."""

from __future__ import annotations

import sys

import pytest
from specport.quantize.provenance import command, provenance


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/opt/bin/specport", "quantize", "--out", "my draft"], "specport quantize --out 'my draft'"),
        (["specport.exe", "quantize"], "specport quantize"),
        (["/lib/specport/__main__.py", "quantize"], "specport quantize"),
        (["/home/me/build.py"], "python build.py"),
        (["examples/shipped_head.py", "--out", "x"], "python examples/shipped_head.py --out x"),
    ],
)
def test_the_command_is_one_that_can_be_given_again(
    argv: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert command() == told
    made = provenance(layers=3)
    assert made["command"] == told and made["layers"] == 3 and "specport" in made["versions"]
