"""Interactive conversation of `specport run --chat`. With piped input, each line is one turn."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from specport.cli import terminal
from specport.cli.run.render import Printer
from specport.errors import SpecportError

if TYPE_CHECKING:
    from specport.chat import Chat
    from specport.stream import Result

HELP = """\
/reset   clear the conversation
/quit    leave (also Ctrl-D)
/help    show this list
Ctrl-C stops an answer; a second Ctrl-C leaves."""
COMMAND = re.compile(r"/[a-z]+")


def converse(chat: Chat, printer: Printer, first: str | None = None) -> int:
    """Run the conversation until the user leaves and return the exit code.

    first: the user's first message; None = read it from stdin.
    """
    interactive = sys.stdin.isatty()
    if interactive:
        _enable_line_editing()
        printer.note("/help lists the commands; Ctrl-D leaves")
    interrupted = False  # whether the last input was Ctrl-C
    while True:
        try:
            line = first if first is not None else _read(interactive)
        except KeyboardInterrupt as stop:
            if interrupted or not interactive or isinstance(stop, terminal.Ended):
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
                terminal.complain(str(error))  # for instance a full context: /reset helps
                continue
            interrupted = result.finish_reason == "cancelled"
            if interrupted and (not interactive or terminal.ended() is not None):
                return 130


def _turn(chat: Chat, text: str, printer: Printer) -> Result:
    result = printer.answer(chat.send(text))
    printer.summary(result)
    return result


def _command(name: str, chat: Chat) -> None:
    if name == "/reset":
        chat.reset()
        terminal.say("(conversation cleared)")
    elif name == "/help":
        terminal.say(HELP)
    else:
        terminal.say(f"unknown command {name}\n{HELP}")


def _read(interactive: bool) -> str | None:
    """Return the next line without its line end, or None at the end of the input."""
    if not interactive:
        line = terminal.decoded(sys.stdin.readline)
        return line.rstrip("\r\n") if line else None
    prompt = "> "
    if not sys.stdout.isatty():  # input() would write its prompt into the answers
        terminal.tell(prompt)
        prompt = ""
    try:
        return input(prompt)
    except EOFError:
        terminal.tell("\n")
        return None


def _enable_line_editing() -> None:
    with suppress(ImportError):  # missing on Windows, whose console edits lines itself
        import readline  # noqa: F401  (input() uses it once it is imported)
