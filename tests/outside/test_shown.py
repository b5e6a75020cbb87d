"""Texts from outside are shown as text: on a terminal, in Markdown, in HTML."""

from __future__ import annotations

import io
import sys

import pytest

from specport.cli import terminal
from specport.outside.shown import html_page, in_markdown, on_terminal, visible

HOSTILE = "\x1b]0;title\x07\x1b[2J\x1b[8m<script>x|`y`[z](http://a)\r\x9b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_controls_are_visible_on_terminals_only() -> None:
    shown = on_terminal(HOSTILE, Terminal())
    assert not any(ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0 for letter in shown)
    assert on_terminal(HOSTILE, io.StringIO()) == HOSTILE
    assert on_terminal(terminal.paint("a\x1b[8m", "32"), Terminal()) == "\x1b[32ma␛[8m\x1b[0m"
    # Nothing is hidden, nor stays red; elsewhere there are no colours.
    assert on_terminal("\x1b[30ma \x1b[31mb\nc", Terminal()) == "␛[30ma \x1b[31mb\nc\x1b[0m"
    assert visible("\x1b[31ma") == "␛[31ma"


def test_every_way_to_the_terminal_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    terminal.write(HOSTILE)
    terminal.say(HOSTILE)
    terminal.complain(HOSTILE)
    assert not {"\x1b", "\x07", "\x9b", "\r"} & {*out.getvalue(), *err.getvalue()}


def test_nothing_is_markup() -> None:
    line = in_markdown(HOSTILE + "\nnext")
    assert "\n" not in line and not {*"<>`[]|\x1b"} & {*line} and "://" not in line
    page = html_page("<p title='{{ x|visible }}'>{{ x|visible }}</p>", x=HOSTILE + "'&amp;")
    assert "<script" not in page and "&#39;&amp;amp;" in page and "\x1b" not in page
