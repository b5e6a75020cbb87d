"""The terminal: encodings, colours, the progress bar, Ctrl-C, and readers that go away.

Only what was asked for goes to stdout; everything said about it goes to stderr. Knows nothing of models.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from specport.errors import InvalidInput, SpecportError

if TYPE_CHECKING:
    from specport.progress import Progress

BOLD, DIM, RED = "1", "2", "31"  # ANSI codes


def prepare_streams() -> None:
    """Make printing safe: no character that a model writes may end the program with a traceback."""
    if os.name == "nt":
        os.system("")  # switches the console to ANSI escape codes; there is no shorter way
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():  # it shows what it can
                stream.reconfigure(errors="replace")
            else:  # files and pipes are UTF-8 on every platform
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # Windows tools write a BOM


def release_streams() -> None:
    """Flush; what cannot be written any more is dropped, so that Python does not complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), stream.fileno())


def coloured(stream: TextIO) -> bool:
    """Whether `stream` shows ANSI colours (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str) -> str:
    """`text` in the colour or weight of an ANSI code, and back to normal."""
    return f"\x1b[{code}m{text}\x1b[0m"


def write(text: str) -> None:
    """Write to stdout at once. Raises BrokenPipeError when the reader went away."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EINVAL):  # Windows says EINVAL of a closed pipe
            raise BrokenPipeError from error
        raise SpecportError(f"cannot write to standard output: {error.strerror}") from error


def decoded(read: Callable[[], str]) -> str:
    """What `read` gets from stdin. Raises InvalidInput when it is not text."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise InvalidInput("standard input is not UTF-8 text") from error


def say(text: str, code: str = DIM) -> None:
    """A line on stderr."""
    sys.stderr.write((paint(text, code) if coloured(sys.stderr) else text) + "\n")
    sys.stderr.flush()


def complain(text: str) -> None:
    """An error, on one line."""
    label = paint("error:", f"{BOLD};{RED}") if coloured(sys.stderr) else "error:"
    sys.stderr.write(f"specport: {label} {' '.join(text.split())}\n")


def stopped() -> None:
    """Say that Ctrl-C ended the program, on a line of its own."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    say("specport: stopped")


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A progress callback: a bar on a terminal, else a line on stderr for each stage, or nothing."""
    from specport.progress import progress_bar, silent

    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with progress_bar() as bar:
            yield bar
    else:
        stages: list[str] = []

        def show(what: str, share: float) -> None:
            if [what] != stages[-1:]:
                stages.append(what)
                say(f"specport: {what}")

        yield show


@contextmanager
def on_ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C calls `act`; a second one raises KeyboardInterrupt as usual."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored (nohup), or somebody else's
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        act()

    try:
        signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread, where Ctrl-C never arrives
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
