"""Fingerprints of weights."""

from __future__ import annotations

from pathlib import Path

from specport.models.identity import fingerprint


def test_weights_have_a_fingerprint(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("one")
    before = fingerprint(tmp_path, [], ["a", "b"])
    assert fingerprint(tmp_path, [], ["b", "a"]) == before
    (tmp_path / "b").write_text("two")
    assert fingerprint(tmp_path, [], ["a", "b"]) != before
