"""The command line as a whole: help, exit codes, errors on one line, output that nobody reads."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.toys import toy_pipeline

import specport
from specport.cli import COMMANDS, main, terminal

TOY = toy_pipeline.PROGRAM
FULL = os.path.exists("/dev/full")


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setattr(specport, "load", toy_pipeline.load, raising=False)


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(f"    {name} " in out for name in COMMANDS) and "examples:" in out


def test_without_a_command(capsys):
    assert main([]) == 2
    assert "usage: specport" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"specport {specport.__version__}\n"


def test_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "specport", "--version"], capture_output=True, check=True)
    assert done.stdout.split() == [b"specport", specport.__version__.encode()]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "--help"], ["serve", "--help"], ["models", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from specport.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'openvino', 'torch', 'transformers', 'tokenizers', 'rich', 'tqdm'}\n"
        "sys.exit(str(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["walk"], "there is no command 'walk' (see specport --help)"),
        (["tunes"], "there is no command 'tunes'; did you mean tune? (see specport --help)"),
        (["models", "pul"], "no command 'pul'; did you mean pull? (see specport models --help)"),
        (["run", "Hi", "there"], "specport run has no use for 'there' (put a text with blanks in quotes"),
        (["run", "Hi", "--top-k"], "--top-k needs a value (see specport run --help)"),
        (["run", "Hi", "--fast=yes"], "--fast takes no value (see specport run --help)"),
        (["run", "Hi", "--top-p", "x"], "--top-p is 'x'; it must be a number (see"),
        (["transcribe"], "FILE is missing (see specport transcribe --help)"),
        (["run", "Hi", "--model", "missing"], "there is no model 'missing' (name another)"),
        (
            ["run", "Hi", "--top-k", "x"],
            "--top-k is 'x'; it must be a whole number (see specport run --help)",
        ),
        (["run", "Hi", "--temp=1"], "has no option '--temp'; did you mean --temperature? (see specport run"),
        (
            ["run", "Hi", "--exact", "--fast"],
            "--fast and --exact exclude each other (see specport run --help)",
        ),
        (["run", "Hi", "--branches", "3,b"], "'3,b' is not a list of whole numbers like 3,2,1"),
        (["run", "Hi", "--max-new-tokens", "0"], "max_new_tokens is 0; it must be 1 or more"),
        (["run", "Hi", "--max-new-tokens", "-4"], "max_new_tokens is -4"),
        (["run", "Hi", "--temperature", "-1"], "temperature is -1.0; it must be between 0 and 100"),
        (["run", "Hi", "--temperature", "nan"], "--temperature: nan is no finite number"),
        (["quantize", "head", "--out", "x", "--learning-rate", "inf"], "--learning-rate: inf is no finite"),
        (
            ["quantize", "head", "--out", "x", "--seed", "9" * 20],
            "--seed: 99999999999999999999 is no number of",
        ),
        (["quantize", "head", "--out", "x", "--loss", "ce"], "unknown loss 'ce' of a head (choose kl or tv)"),
        *(
            (["quantize", action, "--out", "x", "--seed", "-1"], "seed is -1; it must be from 0 to")
            for action in ("head", "mtp", "layerskip", "diffusion", "pipo", "verifier")
        ),
        (["quantize", "--out", "x", "--seed", "-1"], "seed is -1; it must be from 0 to"),
        (
            ["quantize", "diffusion", "--out", "x", "--epochs", "0"],
            "epochs is 0.0; it must be greater than 0",
        ),
        (["run", "Hi", "--stop", ""], "a stop string is empty"),
        (["run", " \n"], "the prompt is empty"),
        (["run", "Hi", "--prompt-file", "x"], "two prompts were given"),
        (["run", "--prompt-file", "no/such/file"], "cannot read the prompt file"),
        (["run", "--chat", "--json"], "--json cannot be combined with --chat"),
        (["run", "--chat", "--raw"], "--raw cannot be combined with --chat"),
        (["run", "x" * 5000], "the prompt has 5000 tokens"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, arguments, said):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    last = err.splitlines()[-1]
    assert out == "" and last.startswith("specport: error: ") and said in last
    assert "Traceback" not in err


def test_mistakes_are_found_before_the_model_is_loaded():
    toy_pipeline.calls.clear()
    assert main(["run", "Hi", "--temperature", "-1"]) == 2
    assert main(["run", ""]) == 2
    assert not toy_pipeline.calls


def test_bugs_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a bug"):
        main(["run", "Hi", "--model", "broken"])


def test_ctrl_c_while_loading(monkeypatch, capsys):
    def load(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(specport, "load", load)
    assert main(["run", "Hi"]) == 130
    assert capsys.readouterr().err == "specport: stopped\n"


def test_output_of_any_language_on_any_platform():
    done = subprocess.run(
        [*TOY, "run", "--prompt-file", "\N{SNOWMAN}"], capture_output=True, check=False,
        env={**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "cannot read the prompt file \N{SNOWMAN}" in done.stderr.decode("utf-8")


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.parametrize("arguments", [["run", "Hi", "--max-new-tokens", "4000"], ["run", "Hi", "--json"]])
def test_reader_that_goes_away(arguments):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*TOY, *arguments, "--quiet"], stdout=write_end, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(os.name == "nt", reason="a POSIX shell closes the streams")
@pytest.mark.parametrize(
    ("closed", "code", "said"),
    [
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
        (">&-", 2, "specport: error: cannot write to standard output: Bad file descriptor"),
        ("<&- >&- 2>&-", 2, ""),
        pytest.param("2>/dev/full", 0, "", marks=pytest.mark.skipif(not FULL, reason="needs a full disk")),
    ],
)
def test_streams_that_are_closed_or_full(closed, code, said):
    command = shlex.join([*TOY, "run", "Hi", "--max-new-tokens", "4", *(["--quiet"] if said else [])])
    done = subprocess.run(
        ["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, bool(done.stdout)) == (code, code == 0)
    assert [line for line in done.stderr.splitlines() if "error" in line.lower()] == ([said] if said else [])


def test_no_prompt_comes_from_a_closed_stdin():
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join([*TOY, 'run'])} <&-"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "the prompt is empty" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
def test_other_signals_keep_what_ctrl_c_keeps(number):
    env = {**os.environ, "TOY_STEP_SECONDS": "0.02"}
    command = [*TOY, "run", "Hi", "--json", "--max-new-tokens", "4000"]
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr and process.stdout
        process.stderr.readline()  # it is loaded
        time.sleep(1.0)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert json.loads(out)["finish_reason"] == "cancelled"


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_signal_while_loading(monkeypatch, capsys):
    def load(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread receives signals")
    monkeypatch.setattr(specport, "load", load)
    assert main(["run", "Hi"]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err == "specport: stopped\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.skipif(not FULL, reason="needs a full disk")
def test_output_that_cannot_be_written():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*TOY, "run", "Hi", "--quiet"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("specport: error: cannot write to standard output: No space left")
    assert len(done.stderr.splitlines()) == 1


def test_a_training_prints_no_line_a_step_into_a_file(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress(quiet=False) as progress:
        for step in range(200):
            now[0] += 0.5
            progress(f"training (loss {3 - step / 100:.3f}, agreement {step / 2:.1f}%)", step / 200)
        progress("writing the draft", 1.0)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and lines[0] == "specport: training (loss 3.000, agreement 0.0%)"
    assert lines[1] == "specport: training (loss 2.400, agreement 30.0%), 30% of all"
    assert lines[-1] == "specport: writing the draft"


def test_a_long_stage_gives_signs_of_life_in_a_file(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress(quiet=False) as progress:
        for share in (0.1, 0.11, 0.12, 0.125, 0.13):
            progress("the target writes", share)
            now[0] += 16.0
    assert capsys.readouterr().err.splitlines() == [
        "specport: the target writes", "specport: the target writes, 12% of all",
        "specport: the target writes, 13% of all",
    ]  # fmt: skip
