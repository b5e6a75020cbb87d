"""`specport run --chat` on a toy model: piped turns, and a real terminal where there is one."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from support.toys import toy_pipeline
from support.toys.toy_pipeline import greedy

import specport
from specport.cli import main

TOY = toy_pipeline.PROGRAM
CHAT = ["run", "--chat", "--max-new-tokens", "12"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(specport, "load", toy_pipeline.load, raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def talk(monkeypatch, lines: str, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    return main([*CHAT, *arguments])


def test_each_line_is_a_turn_that_knows_the_last(monkeypatch, capsys):
    assert talk(monkeypatch, "one\n\n  \ntwo") == 0
    first = greedy("one", 12)
    second = greedy("one" + first + "two", 12)
    out, err = capsys.readouterr()
    assert out == f"{first}\n{second}\n"
    assert len(re.findall(r"^12 tokens ", err, re.MULTILINE)) == 2


def test_reset_help_and_quit(monkeypatch, capsys):
    assert talk(monkeypatch, "one\n/reset\ntwo\n/help\n/nonsense\n/quit\nthree\n") == 0
    out, err = capsys.readouterr()
    assert out == f"{greedy('one', 12)}\n{greedy('two', 12)}\n"
    assert "conversation cleared" in err and "unknown command /nonsense" in err
    assert err.count("/quit    leave") == 2


def test_path_is_no_command(monkeypatch, capsys):
    assert talk(monkeypatch, "/etc/passwd is\n") == 0
    assert capsys.readouterr().out == greedy("/etc/passwd is", 12) + "\n"


def test_prompt_is_the_first_turn_and_system_stays(monkeypatch, capsys):
    assert talk(monkeypatch, "/reset\ntwo\n", "one", "--system", "sys") == 0
    assert capsys.readouterr().out == f"{greedy('sysone', 12)}\n{greedy('systwo', 12)}\n"


def test_full_context_ends_a_piped_chat(monkeypatch, capsys):
    assert talk(monkeypatch, "x" * 5000 + "\n", "--quiet") == 2
    assert capsys.readouterr().err.startswith("specport: error: the prompt has 5000 tokens")


class Terminal:
    """The chat on a pseudo-terminal."""

    def __init__(self, step_seconds: float = 0.0) -> None:
        import pty

        self._master, slave = pty.openpty()
        env = {**os.environ, "TOY_STEP_SECONDS": str(step_seconds), "TERM": "xterm", "NO_COLOR": "1"}
        command = [*TOY, "run", "--chat", "--max-new-tokens", "400"]
        self._process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        self.seen = ""
        self._behind = 0  # where the last text waited for ends

    def wait_for(self, text: str) -> None:
        """Read until `text` appears behind what earlier calls waited for."""
        deadline = time.monotonic() + 30
        while (found := self.seen.find(text, self._behind)) < 0:
            ready = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, f"waited for {text!r}, got {self.seen[self._behind :]!r}"
            self.seen += os.read(self._master, 4096).decode()
        self._behind = found + len(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def ctrl_c(self) -> None:
        self.signal(signal.SIGINT)

    def signal(self, number: int) -> None:
        time.sleep(0.2)  # Python's readline misses a signal between showing its prompt and waiting
        self._process.send_signal(number)

    def end(self) -> int:
        try:
            return self._process.wait(timeout=30)
        finally:
            self._process.kill()
            os.close(self._master)


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("answering", [False, True])
def test_a_signal_to_end_leaves_the_chat(answering):
    terminal = Terminal(0.02)
    terminal.wait_for("> ")
    if answering:
        terminal.type("hello\n")
        terminal.wait_for("hello")
    terminal.signal(signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_terminal_ctrl_d_leaves():
    terminal = Terminal()
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for("tokens/s")
    terminal.wait_for("> ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert greedy("hello", 400) in terminal.seen.replace("\r\n", "")


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_terminal_ctrl_c_stops_the_answer_and_the_second_leaves():
    terminal = Terminal(step_seconds=0.05)
    terminal.wait_for("> ")
    terminal.type("hello\n")
    terminal.wait_for(greedy("hello", 8))
    terminal.ctrl_c()
    terminal.wait_for("(stopped)")
    terminal.wait_for("> ")
    terminal.ctrl_c()
    assert terminal.end() == 130


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_terminal_one_ctrl_c_at_the_prompt_only_warns():
    terminal = Terminal()
    terminal.wait_for("> ")
    terminal.ctrl_c()
    terminal.wait_for("Ctrl-C again")
    terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0
