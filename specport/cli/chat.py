"""The interactive conversation of `specport run --chat`; with piped input, each line is a turn."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from specport.cli import terminal
from specport.cli.render import Printer
from specport.errors import SpecportError

if TYPE_CHECKING:
    from specport.api import Chat
    from specport.stream import Result

HELP = """\
/reset   forget the conversation
/quit    leave (so does Ctrl-D)
/help    this list
Ctrl-C stops an answer; pressed again it leaves."""
COMMAND = re.compile(r"/[a-z]+")


def converse(chat: Chat, printer: Printer, first: str | None = None) -> int:
    """Talk until the user leaves; returns the exit code. `first` is the user's first message."""
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
        printer.note("/help lists the commands; Ctrl-D leaves")
    interrupted = False  # Ctrl-C was the last thing the user did
    while True:
        try:
            line = first if first is not None else _read(interactive)
        except KeyboardInterrupt:
            if interrupted or not interactive:
                raise
            interrupted = True
            terminal.say("\n(Ctrl-C again or Ctrl-D leaves)")
            continue
        first, interrupted = None, False
        if line is None or line.strip() == "/quit":
            return 0
        if COMMAND.fullmatch(line.strip()):
            _command(line.strip(), chat)
        elif line.strip():
            try:
                result = _turn(chat, line, printer)
            except SpecportError as error:
                if not interactive:
                    raise
                terminal.complain(str(error))  # such as a full context: /reset helps
                continue
            interrupted = result.finish_reason == "cancelled"
            if interrupted and not interactive:
                return 130


def _turn(chat: Chat, text: str, printer: Printer) -> Result:
    result = printer.answer(chat.send(text))
    printer.summary(result)
    return result


def _command(name: str, chat: Chat) -> None:
    if name == "/reset":
        chat.reset()
        terminal.say("(the conversation is forgotten)")
    elif name == "/help":
        terminal.say(HELP)
    else:
        terminal.say(f"there is no command {name}\n{HELP}")


def _read(interactive: bool) -> str | None:
    """The next line without its end, None when there are no more."""
    if not interactive:
        line = terminal.decoded(sys.stdin.readline)
        return line.rstrip("\r\n") if line else None
    prompt = "> "
    if not sys.stdout.isatty():  # input() would write the prompt among the answers
        sys.stderr.write(prompt)
        sys.stderr.flush()
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        sys.stderr.write("\n")
        return None


def _enable_line_editing() -> None:
    with suppress(ImportError):  # Windows has line editing in its console
        import readline  # noqa: F401  (input() uses it once it is imported)
