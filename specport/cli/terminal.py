"""Terminal input and output: encodings, colours, progress bar, Ctrl-C, closed pipes.

Results go to stdout, messages about them to stderr. What is shown may come from untrusted files and models:
here, and only here, it is cleaned of control characters. This module knows nothing of models.
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
from specport.outside.shown import on_terminal

if TYPE_CHECKING:
    from specport.progress import Progress

BOLD, DIM, RED = "1", "2", "31"  # ANSI codes


def prepare_streams() -> None:
    """Set encodings and error handlers so that no character of a model's output raises an exception."""
    if os.name == "nt":
        os.system("")  # an empty command enables ANSI escape codes in the console
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():  # print ? for characters that it cannot show
                stream.reconfigure(errors="replace")
            else:  # write UTF-8 to files and pipes on every platform
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper) and not sys.stdin.isatty():
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")  # sig: Windows tools write a BOM


def release_streams() -> None:
    """Flush both streams. Drop what can no longer be written, so that Python does not complain at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), stream.fileno())


def coloured(stream: TextIO) -> bool:
    """Return whether `stream` shows ANSI colours (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def paint(text: str, code: str) -> str:
    """Return `text` in the colour or weight of an ANSI code, followed by a reset."""
    return f"\x1b[{code}m{text}\x1b[0m"


def write(text: str) -> None:
    """Write to stdout and flush. Raises BrokenPipeError when the reader has closed the pipe."""
    try:
        sys.stdout.write(on_terminal(text, sys.stdout))
        sys.stdout.flush()
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EINVAL):  # Windows reports a closed pipe as EINVAL
            raise BrokenPipeError from error
        raise SpecportError(f"cannot write to standard output: {error.strerror}") from error


def decoded(read: Callable[[], str]) -> str:
    """Return what `read` gets from stdin. Raises InvalidInput when it is not text."""
    try:
        return read()
    except UnicodeDecodeError as error:
        raise InvalidInput("standard input is not UTF-8 text") from error


def say(text: str, code: str = DIM) -> None:
    """Print a line on stderr."""
    text = on_terminal(text, sys.stderr)
    sys.stderr.write((paint(text, code) if coloured(sys.stderr) else text) + "\n")
    sys.stderr.flush()


def complain(text: str) -> None:
    """Print an error on one line of stderr."""
    label = paint("error:", f"{BOLD};{RED}") if coloured(sys.stderr) else "error:"
    sys.stderr.write(f"specport: {label} {on_terminal(' '.join(text.split()), sys.stderr)}\n")


def stopped() -> None:
    """Print that Ctrl-C ended the program, on a line of its own."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    say("specport: stopped")


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Yield a progress callback: a bar on a terminal, else a line per stage on stderr; silent if `quiet`."""
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
    """Call `act` on the first Ctrl-C inside the block. A second one raises KeyboardInterrupt as usual."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored (nohup), or handled by other code
        yield
        return

    def handle(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, before)
        act()

    try:
        signal.signal(signal.SIGINT, handle)
    except ValueError:  # not the main thread, which alone receives Ctrl-C
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
