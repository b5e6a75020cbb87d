"""The command line end to end on the default model, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

pytestmark = pytest.mark.real_model
RUN = [sys.executable, "-m", "specport", "run", "--device", "xeon"]
# Much of the answer repeats the question, so that the n-gram drafter has something to do.
PROMPT = "Repeat this sentence three times: The quick brown fox jumps over the lazy dog."


def run(arguments: Sequence[str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUN, *arguments], input=stdin, capture_output=True, encoding="utf-8", timeout=600, check=False
    )


def report(*arguments: str) -> dict:
    done = run([*arguments, "--json"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_streams_an_answer():
    done = run([PROMPT, "--max-new-tokens", "64"])
    assert done.returncode == 0, done.stderr
    assert "fox" in done.stdout
    assert re.search(r"TTFT .* TPOT .* tokens/s .* of the time$", done.stderr.splitlines()[-1])


def test_drafting_does_not_change_the_text():
    drafted = report(PROMPT, "--max-new-tokens", "64", "--draft", "ngram")
    plain = report(PROMPT, "--max-new-tokens", "64", "--draft", "none")
    assert drafted["token_ids"] == plain["token_ids"] and drafted["text"] == plain["text"]
    assert drafted["metrics"]["num_accepted_tokens"] > 0
    assert plain["metrics"]["num_draft_tokens"] == 0
    assert drafted["settings"]["exact"] and drafted["versions"]["openvino"]


def test_a_seed_repeats_sampled_text():
    ask = ["Tell me a story", "--max-new-tokens", "32", "--temperature", "0.9", "--top-p", "0.95", "--seed"]
    assert report(*ask, "7")["token_ids"] == report(*ask, "7")["token_ids"] != report(*ask, "8")["token_ids"]


def test_marks_drafts():
    done = run([PROMPT, "--max-new-tokens", "64", "--show-drafts", "--draft", "ngram"])
    assert "[ngram:" in done.stdout and "ngram draft" in done.stderr


def test_chat_remembers():
    done = run(["--chat", "--max-new-tokens", "24"], "My name is Ada.\nWhat is my name?\n/quit\n")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("TTFT") == 2
    assert "Ada" in done.stdout


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c():
    # A shell may have started the tests in the background, with Ctrl-C ignored.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from specport.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *RUN[3:], "Count to one thousand", "--max-new-tokens", "2000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert first and process.returncode == 130
    assert "(stopped)" in err and "Traceback" not in err


def test_prompt_longer_than_the_context():
    done = run(["-"], "word " * 20000)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()[-1:]) == 1 and "the model's context holds" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_mistakes():
    for arguments in (
        ["Hi", "--device", "abacus"],
        ["Hi", "--model", "no/such/model/here"],
        ["Hi", "--draft", "no/such/model/here"],
    ):
        done = run(arguments)
        assert done.returncode == 2 and done.stdout == "", arguments
        assert done.stderr.splitlines()[-1].startswith("specport: error: "), done.stderr
