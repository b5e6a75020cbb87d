"""A kind of file that comes from outside, as one declaration: its type, its bounds and what to say.

Whoever reads such a file declares a `Format` once and reads through it. All checks are here: a file is of the
declared type, or there is one `SpecportError` that names the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from specport.errors import ModelError, SpecportError
from specport.outside import plain_values
from specport.outside.regular_file import read_bytes, read_lines

T = TypeVar("T")
Table = dict[str, Any]

# What a type's own checks may raise for a value that they did not foresee.
_UNFIT = (msgspec.MsgspecError, ValueError, KeyError, ArithmeticError, RecursionError)

_LONGEST_LINE = 64 << 20  # bytes
_MISSING = (FileNotFoundError, NotADirectoryError)


def _special(kind: type, value: Any) -> Any:
    """Return a value of a type that JSON does not have."""
    if kind is not Path or not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{value!r:.100} is no {kind.__name__.lower()}")
    return Path(value)


class _Newer(ValueError):
    """A file of a later version of its format."""


@dataclass(frozen=True)
class Format(Generic[T]):
    """Declare a kind of file.

    kind:    type of its content: a dataclass, a `msgspec.Struct`, or `Table` where any object does. Entries
             that the type does not have are ignored. A file is refused for what `__post_init__` refuses.
    what:    what it is, with its article, as in "a plan".
    hint:    the next step where it cannot be used.
    error:   class of the error.
    version: number that its entry "format" must have; None = it has none.
    most_bytes: bound of its size.
    parse:   bytes to plain values: `plain_values.from_json` or `from_toml`.
    """

    kind: type[T]
    what: str
    hint: str = ""
    error: type[SpecportError] = ModelError
    version: int | None = None
    most_bytes: int = 64 << 20
    parse: Callable[[bytes], Any] = plain_values.from_json

    def read(self, path: Path) -> T:
        """Return the content of a file. Raises `error`, also where it is missing."""
        try:
            return self._read(path)
        except _MISSING:
            raise self.error(f"cannot read {path}: there is no such file", self.hint) from None

    def read_if_there(self, path: Path) -> T | None:
        """Return the content of a file; None where it is missing. Raises `error` where it cannot be used."""
        try:
            return self._read(path)
        except _MISSING:
            return None

    def find(self, path: Path) -> T | None:
        """Return the content of a file; None where it is missing or cannot be used."""
        try:
            return self.read(path)
        except SpecportError:
            return None

    def decode(self, data: bytes | str, where: str) -> T:
        """Return the content of a text. where: its place, for the message. Raises `error`."""
        try:
            return self._content(data.encode() if isinstance(data, str) else data)
        except _UNFIT as error:
            raise self._refused(where, error) from error

    def of(self, value: Any, where: str) -> T:
        """Return a plain value that was parsed elsewhere as this type. Raises `error`."""
        try:
            plain_values.check(value)
            return self._converted(value)
        except _UNFIT as error:
            raise self._refused(where, error) from error

    def lines(self, path: Path) -> Iterator[T]:
        """Yield the content of each line of a file that is not blank. Raises `error` with the line's number.

        Lines end at line feeds only: JSON may hold all other characters that Python splits lines at.
        """
        for number, line in self.raw_lines(path):
            yield self.decode(line, f"{path}, line {number}")

    def raw_lines(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a file that are not blank, with their numbers. Raises `error`."""
        lines = read_lines(path, self.most_bytes, min(self.most_bytes, _LONGEST_LINE))
        for number in itertools.count(1):
            try:
                line = next(lines, None)
            except _MISSING:
                raise self.error(f"cannot read {path}: there is no such file", self.hint) from None
            except (OSError, ValueError) as error:
                raise self._refused(str(path), error) from error
            if line is None:
                return
            line = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).removesuffix(b"\n")
            if line.strip():
                yield number, line

    def _read(self, path: Path) -> T:
        try:
            data = read_bytes(path, self.most_bytes)
        except _MISSING:
            raise
        except (OSError, ValueError) as error:
            raise self._refused(str(path), error) from error
        return self.decode(data, str(path))

    def _content(self, data: bytes) -> T:
        return self._converted(self.parse(data))

    def _converted(self, value: Any) -> T:
        if self.version is not None:
            found = value.get("format") if isinstance(value, dict) else None
            if type(found) is not int:
                raise ValueError("it does not say its format")
            if found > self.version:
                raise _Newer(f"it is of format {found}; this specport reads {self.version}")
            if found != self.version:
                raise ValueError(f"it is of format {found}, not {self.version}")
        return msgspec.convert(value, self.kind, dec_hook=_special)

    def _refused(self, where: str, error: Exception) -> SpecportError:
        if isinstance(error, SpecportError):
            return error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        hint = "update specport" if isinstance(error, _Newer) else self.hint
        return self.error(f"{where} is not {self.what} that can be used: {reason}", hint)
