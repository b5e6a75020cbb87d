"""One reader for all outside files: what is whole is read, what is not is one error that names the file."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.faults import hostile

from specport.errors import InvalidInput, ModelError
from specport.outside import Format, Table, plain_values, read_bytes


@dataclass(frozen=True)
class Thing:
    number: int
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not all(0.0 <= share <= 1.0 for share in self.shares):
            raise ValueError("not shares")


THING = Format(Thing, "a thing", "make it again", version=1)
ANY = Format(Table, "an object")


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"format": 1, "number": 3, "shares": [1, 0.5], "later": []}\r\n')
    assert THING.read(path) == THING.find(path) == THING.read_if_there(path) == Thing(3, (1.0, 0.5))
    link = tmp_path / "link"
    if sys.platform != "win32":
        link.symlink_to(path)
        assert THING.read(link).number == 3


def test_a_missing_file_is_no_damage(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none" / "none"):
        assert THING.find(path) is None and THING.read_if_there(path) is None
    with pytest.raises(ModelError, match=r"cannot read .*none: there is no such file.*make it again"):
        THING.read(tmp_path / "none")


@pytest.mark.parametrize("text", hostile.JSON_TEXTS.values(), ids=hostile.JSON_TEXTS)
def test_no_text_breaks_it(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text)
    assert THING.find(path) is None
    for read in (THING.read, THING.read_if_there):
        with pytest.raises(ModelError, match=r"a\.json is not a thing that can be used") as found:
            read(path)
        assert len(str(found.value).splitlines()) == 1 and len(str(found.value)) < 500
    if not text.startswith(b'{"a\\u0000'):
        with pytest.raises(ModelError):
            ANY.read(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"number": 3}', "does not say its format"),
        ('{"format": true, "number": 3}', "does not say its format"),
        ('{"format": 0, "number": 3}', "format 0, not 1.*make it again"),
        ('{"format": 2, "number": 3}', "format 2; this specport reads 1.*update specport"),
        ('{"format": 1, "number": 3.5}', r"Expected `int`.*\$\.number"),
        ('{"format": 1, "number": true}', "Expected `int`"),
        ('{"format": 1}', "missing required field"),
        ('{"format": 1, "number": 1, "shares": [2]}', "not shares"),
        ('{"format": 1, "number": 1, "shares": [18446744073709551616]}', "more than 64 bits"),
    ],
)
def test_the_type_is_checked(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        THING.decode(text, "here")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    places = [tmp_path]
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe")
        places += [tmp_path / "pipe", Path("/dev/zero")]
    for place in places:
        with pytest.raises(ModelError, match="not a regular file"):
            THING.read(place)
    for name in ("\x00", "x" * 5000):
        assert THING.find(tmp_path / name) is None


def test_size_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_bytes(tmp_path / "a", 4)
    if Path("/proc/self/maps").is_file():  # says 0 bytes
        with pytest.raises(ValueError, match="larger than 4 bytes"):
            read_bytes(Path("/proc/self/maps"), 4)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["one\u2028two", "three\u0085four", "five"]
    path.write_bytes("\ufeff".encode() + "".join(f'{{"t": "{t}"}}\r\n\n' for t in texts).encode())
    assert [line["t"] for line in ANY.lines(path)] == texts
    path.write_bytes(b'{"t": 1}\n\n{"t": \n')
    with pytest.raises(ModelError, match=r"a\.jsonl, line 3 is not an object"):
        list(ANY.lines(path))


def test_the_error_is_of_the_declared_class(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        Format(Thing, "a thing", error=InvalidInput).read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["a = inf", "a = nan", f"a = {'9' * 5000}", f"a = {'[' * 5000}", "a = ", "a = 1e999", "a=0x" + "f" * 99],
)
def test_toml_is_bounded_too(text: str) -> None:
    with pytest.raises(ModelError, match="is not a table"):
        Format(Table, "a table", parse=plain_values.from_toml).decode(text, "here")


def test_no_file_from_outside_is_parsed_by_hand() -> None:
    """Whoever reads JSON or TOML from a file declares a `Format`; the others say why not."""
    by_hand = re.compile(r"json\.load\(|json\.loads\([^)]*read|tomllib\.|\.read_text\(")
    allowed = {
        "specport/outside/plain_values.py": "the reader itself",
        "specport/jobs/entry.py": "what this program wrote for its own process",
        "specport/conformance/tables/matrix.py": "what its own process wrote",
        "specport/conformance/session.py": "lines of text that are given to pytest",
        "specport/runtime/caches/memory.py": "files of the system",
        "specport/runtime/devices/profiles.py": "files of the system",
        "specport/drafters/retrieval/datastore.py": "any text, bounded",
        "quantize/text/passages.py": "modules of Python",
    }
    root = Path(__file__).parents[2]
    found = {
        path.relative_to(root).as_posix()
        for top in ("specport", "quantize", "backends")
        for path in (root / top).rglob("*.py")
        if by_hand.search(path.read_text(encoding="utf-8"))
    }
    assert found == {*allowed}
