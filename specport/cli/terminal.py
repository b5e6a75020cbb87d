"""Terminal input and output: encodings, colours, progress bar, signals, closed pipes and streams.

Results go to stdout, messages about them to stderr. What is shown may come from untrusted files and models:
here, and only here, it is cleaned of control characters. This module knows nothing of models.
"""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from specport.errors import InvalidInput, SpecportError
from specport.outside.shown import on_terminal

if TYPE_CHECKING:
    from specport.progress import Progress

_NUMBERS = re.compile(r"[\d.,%]+")
_AGAIN_S = 30.0
BOLD, DIM, RED = "1", "2", "31"  # ANSI codes
# Standard streams: their modes, and how the null device is opened where they are closed. Results that cannot
# be written are an error, messages are not.
_STREAMS = {"stdin": ("r", os.O_RDONLY), "stdout": ("w", os.O_RDONLY), "stderr": ("w", os.O_WRONLY)}
# Signals that end the program: SIGTERM, SIGHUP (the terminal was closed), SIGBREAK (Windows).
_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
_ended: list[int] = []  # the signal that ended a block of `on_ctrl_c`


class Ended(KeyboardInterrupt):
    """A signal that ends the program came: what Ctrl-C keeps is kept."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def prepare_streams() -> None:
    """Set encodings and error handlers so that no character of a model's output raises an exception.

    A closed stream gets the null device: else the next file that is opened would take its place.
    """
    for name, (mode, flags) in _STREAMS.items():
        if getattr(sys, name) is None:
            number = os.open(os.devnull, flags)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8"))  # noqa: SIM115
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
            with open(os.devnull, "wb") as null:
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
    """Print a line on stderr. Raises BrokenPipeError when the reader has closed the pipe."""
    tell((paint(text, code) if coloured(sys.stderr) else text) + "\n")


def complain(text: str) -> None:
    """Print an error on one line of stderr."""
    label = paint("error:", f"{BOLD};{RED}") if coloured(sys.stderr) else "error:"
    with suppress(BrokenPipeError):
        tell(f"specport: {label} {' '.join(text.split())}\n")


def tell(text: str) -> None:
    """Write a text to stderr. On a full disk or a closed terminal it is lost, and the work goes on.

    Raises BrokenPipeError when the reader has closed the pipe.
    """
    try:
        sys.stderr.write(on_terminal(text, sys.stderr))
        sys.stderr.flush()
    except BrokenPipeError:
        raise
    except OSError:
        pass


def stopped() -> None:
    """Print that Ctrl-C or another signal ended the program, on a line of its own."""
    with suppress(BrokenPipeError):
        if sys.stderr.isatty():
            tell("\n")
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
        yield _lines()


def _lines() -> Progress:
    """Return a callback that prints a line for each stage.

    A stage that takes long is printed again every half a minute, with the share that is done of the whole.
    Changes of its numbers alone, as of a training's loss, make no new stage.
    """
    kind, at = None, 0.0

    def show(what: str, share: float) -> None:
        nonlocal kind, at
        new, now = _NUMBERS.sub("#", what), time.monotonic()
        if new != kind:
            say(f"specport: {what}")
        elif now - at >= _AGAIN_S:
            say(f"specport: {what}, {share:.0%} of all")
        else:
            return
        kind, at = new, now

    return show


@contextmanager
def ending() -> Iterator[None]:
    """Raise `Ended` in the block for signals that end the program, unless they are ignored (nohup)."""
    _ended.clear()
    with _handled(_ENDING, (signal.SIG_DFL,), _end):
        yield


def ended() -> int | None:
    """Return the signal, other than Ctrl-C, that ended a block of `on_ctrl_c`; None = none came."""
    return _ended[0] if _ended else None


def _end(number: int, frame: Any) -> None:
    raise Ended(number)


@contextmanager
def on_ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` on the first Ctrl-C, or signal that ends the program, inside the block.

    A second one raises KeyboardInterrupt as usual.
    """

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        if number != signal.SIGINT:
            _ended.append(number)
        act()

    usual = (signal.default_int_handler, _end)  # others: ignored (nohup), or handled by other code
    with _handled([signal.SIGINT, *_ENDING], usual, handle) as before:
        yield


@contextmanager
def _handled(numbers: Sequence[int], usual: Sequence[Any], handler: Any) -> Iterator[dict[int, Any]]:
    """Handle the signals in the block whose handlers are usual ones; yield these by signal."""
    before = {n: found for n in numbers if (found := signal.getsignal(n)) in usual}
    if threading.current_thread() is not threading.main_thread():  # it alone receives signals
        before = {}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number, found in before.items():
            signal.signal(number, found)
