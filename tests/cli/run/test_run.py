"""`specport run` on a toy model: prompts, streams, marks, the summary line, JSON, Ctrl-C."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields

import pytest
from support.toys import toy_pipeline
from support.toys.toy_pipeline import greedy

import specport
from specport.api import load
from specport.cli import main, options
from specport.cli.parsing import Parser
from specport.cli.run.render import Printer, summary
from specport.core.metrics import Metrics
from specport.core.policies.length_rules import POLICIES
from specport.core.verify.rules import RULES
from specport.diffusion.options import DiffusionOptions
from specport.models.precision import PRECISIONS
from specport.options import GenerationOptions
from specport.stream import Chunk, Result

TOY = toy_pipeline.PROGRAM


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    toy_pipeline.calls.clear()
    monkeypatch.setattr(specport, "load", toy_pipeline.load, raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def give_stdin(monkeypatch, data: bytes):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="latin-1"))


def test_answer_on_stdout_and_the_rest_on_stderr(capsys):
    assert main(["run", "Hello", "--max-new-tokens", "40"]) == 0
    out, err = capsys.readouterr()
    assert out == greedy("Hello", 40) + "\n"
    assert err.splitlines()[:3] == [
        "specport: loading",
        "toy on paper, draft ngram, exact",
        "note: it is a toy",
    ]
    assert err.splitlines()[3].startswith("40 tokens (cut at the length limit) | TTFT ")
    assert len(err.splitlines()) == 4 and "\x1b" not in out + err


def test_quiet(capsys):
    assert main(["run", "Hello", "--quiet", "--show-drafts"]) == 0
    assert capsys.readouterr().err == ""


def test_prompt_from_stdin(monkeypatch, capsys):
    for arguments in ([], ["-"]):
        give_stdin(monkeypatch, b"\xef\xbb\xbfHello\r\n")  # as PowerShell sends it
        assert main(["run", *arguments, "--max-new-tokens", "8"]) == 0
        assert capsys.readouterr().out == greedy("Hello", 8) + "\n"


def test_prompt_from_a_file(tmp_path, capsys):
    (tmp_path / "prompt.txt").write_bytes("Grüße\n".encode())
    ask = ["run", "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "8"]
    assert main(ask) == 0
    assert capsys.readouterr().out == greedy("Grüße", 8) + "\n"
    assert main([*ask, "--raw"]) == 0
    assert capsys.readouterr().out == greedy("Grüße\n", 8) + "\n"


def test_prompts_that_are_no_text(monkeypatch, tmp_path, capsys):
    give_stdin(monkeypatch, b"\xff\xfe\x00")
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "specport: error: standard input is not UTF-8 text\n"
    (tmp_path / "prompt").write_bytes(b"\xff\xfe\x00")
    assert main(["run", "--prompt-file", str(tmp_path / "prompt")]) == 2
    assert "is not UTF-8 text" in capsys.readouterr().err


def test_no_prompt(monkeypatch, capsys):
    give_stdin(monkeypatch, b"")
    assert main(["run"]) == 2
    assert "the prompt is empty" in capsys.readouterr().err
    give_stdin(monkeypatch, b"")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["run"]) == 2
    assert "no prompt was given" in capsys.readouterr().err


def test_only_given_options_reach_load():
    assert main(["run", "Hi"]) == 0
    everything = (
        "run Hi --model m --precision int4 --device xeon --threads 2 --max-context 64 --fast "
        "--trust-remote-code --draft none --draft-precision int8 --policy fixed --num-draft-tokens 3 "
        "--branches 3,2 --acceptance block --history h --datastore d"
    )
    assert main(everything.split()) == 0
    bare, full = toy_pipeline.calls
    assert bare == {"model": None}
    assert full == {
        "model": "m", "precision": "int4", "device": "xeon", "threads": 2, "max_context": 64, "exact": False,
        "trust_remote_code": True, "draft": "none", "draft_precision": "int8", "policy": "fixed",
        "num_draft_tokens": 3, "branches": (3, 2), "acceptance": "block", "history": "h", "datastore": "d",
    }  # fmt: skip


def test_json(capsys):
    assert main(["run", "Hello", "--max-new-tokens", "40", "--json", "--show-drafts", "--seed", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["text"] == greedy("Hello", 40) == "".join(text for text, _ in report["spans"])
    assert len(report["token_ids"]) == 40 and len(report["prompt_token_ids"]) == 5
    assert report["finish_reason"] == "length"
    assert report["metrics"]["num_output_tokens"] == 40
    assert 0 < report["metrics"]["acceptance_rate"] <= 1
    assert report["settings"]["generation"]["max_new_tokens"] == 40
    assert report["settings"]["generation"]["seed"] == 3
    assert report["settings"]["device"] == "paper" and report["settings"]["draft"] == "ngram"
    assert report["versions"]["specport"] == specport.__version__
    assert report["notes"] == ["it is a toy"]


def test_drafts_in_plain_output(capsys):
    assert main(["run", "Hello", "--max-new-tokens", "60", "--show-drafts"]) == 0
    out, err = capsys.readouterr()
    assert "drafts: the model itself, [ngram:ngram draft]" in err
    assert "[ngram:" in out
    assert re.sub(r"\[ngram:(.*?)\]", r"\1", out) == greedy("Hello", 60) + "\n"


def test_drafts_in_colour(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(["run", "Hello", "--max-new-tokens", "60", "--show-drafts"]) == 0
    out, err = capsys.readouterr()
    assert "\x1b[32mngram draft\x1b[0m" in err and "\x1b[2m" in err
    assert re.sub(r"\x1b\[32m(.*?)\x1b\[0m", r"\1", out) == greedy("Hello", 60) + "\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(["run", "Hello", "--max-new-tokens", "60", "--show-drafts"]) == 0
    assert "\x1b" not in "".join(capsys.readouterr())


class Scripted:
    """A stream that gives what it was told."""

    def __init__(self, *chunks: tuple[tuple[str, str], ...], **metrics):
        self._chunks = iter([Chunk("".join(text for text, _ in spans), spans) for spans in chunks])
        self.result = Result("", [], "stop", Metrics(**metrics), [])

    def __iter__(self):
        return self._chunks

    def cancel(self):
        pass

    def close(self):
        pass


def test_control_characters_do_not_reach_a_terminal(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    hostile = "a\x1b]0;title\x07b\tc\r\nd\x9be"
    Printer().answer(Scripted(((hostile, ""),)))
    assert out.getvalue() == hostile + "\n"  # a pipe gets the text as it is
    out.truncate(0), out.seek(0)
    out.isatty = lambda: True
    Printer().answer(Scripted(((hostile, ""),)))
    assert out.getvalue() == "a␛]0;title␇b\tc\nd\ufffde\n"


def test_pieces_of_one_source_are_marked_as_one(capsys):
    spans = (("a ", "ngram"), ("b", "ngram"), ("c", ""), ("d\n", "model"))
    Printer(show_drafts=True).answer(Scripted(spans, (("e\n", ""),)))
    assert capsys.readouterr().out == "[ngram:a b]c[model:d\n]e\n"


@pytest.mark.parametrize(
    ("metrics", "reason", "line"),
    [
        (
            {
                "num_output_tokens": 41, "num_steps": 20, "num_drafts": 10, "num_draft_tokens": 40,
                "num_accepted_tokens": 21, "ttft_s": 0.1, "decode_s": 2.0, "draft_s": 0.1, "verify_s": 1.8,
            },
            "stop",
            "41 tokens | TTFT 100 ms | TPOT 50 ms | 19.5 tokens/s | mean acceptance length 3.10 | "
            "acceptance rate 52% | draft 5%, verify 90%, loop 5% of the time",
        ),
        (
            {"num_output_tokens": 3, "num_steps": 2, "ttft_s": 1.234, "decode_s": 2.468, "verify_s": 2.468},
            "length",
            "3 tokens (cut at the length limit) | TTFT 1.23 s | TPOT 1.23 s | 0.8 tokens/s | "
            "nothing drafted | draft 0%, verify 100%, loop 0% of the time",
        ),
        ({"num_output_tokens": 1, "ttft_s": 0.0123}, "stop", "1 token | TTFT 12.3 ms | nothing drafted"),
        ({}, "cancelled", "0 tokens (stopped) | nothing drafted"),
    ],
)  # fmt: skip
def test_summary(metrics, reason, line):
    assert summary(Result("", [], reason, Metrics(**metrics), [])) == line


def stop_after_first_output(arguments: list[str]) -> tuple[int, str, str]:
    """Send Ctrl-C to a slow toy once it has begun to write."""
    process = subprocess.Popen(
        [*TOY, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "TOY_STEP_SECONDS": "0.05"},
    )  # fmt: skip
    assert process.stdout
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    return process.returncode, first + out, err


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_keeps_what_is_there():
    code, out, err = stop_after_first_output(["run", "Hello", "--max-new-tokens", "4000"])
    assert code == 130
    text = out.removesuffix("\n")
    assert 0 < len(text) < 4000 and text == greedy("Hello", len(text))
    assert re.search(r"^\d+ tokens? \(stopped\) \| TTFT ", err.splitlines()[-1])
    assert "Traceback" not in err


@pytest.mark.parametrize("spec", ["policy", "precision", "acceptance"])
def test_help_names_what_there_is(spec):
    owner = {"policy": POLICIES, "precision": PRECISIONS, "acceptance": RULES}[spec]
    assert _actions()[spec].metavar == "{" + ",".join(owner) + "}"


def test_help_names_the_right_defaults():
    known = {field.name: field.default for field in fields(GenerationOptions)}
    # A grammar has options of its own, and a single prompt has no tools.
    others = {"grammar", "tools", "tool_choice", "parallel_tool_calls"}
    assert set(options.GENERATION_OPTIONS) == known.keys() - others
    for name, action in _actions().items():
        found = re.search(r"\(default: (\S+)\)", action.help or "")
        if found and name in known:
            assert found[1] == str(known[name]), name


def test_options_are_those_of_load():
    accepted = {*inspect.signature(load).parameters} - {"model", "progress", "diffusion"}
    assert set(options.LOAD_OPTIONS) == accepted


def test_options_of_diffusion_models():
    assert set(options.DIFFUSION_OPTIONS) == {field.name for field in fields(DiffusionOptions)}
    assert main(["run", "Hi", "--denoising-steps", "2", "--reveal-order", "position"]) == 0
    assert toy_pipeline.calls[0]["diffusion"] == DiffusionOptions(steps=2, order="position")
    assert main(["run", "Hi", "--verify-layout", "leaky"]) == 2
    assert len(toy_pipeline.calls) == 1  # refused before anything is loaded


def _actions() -> dict[str, argparse.Action]:
    parser = Parser()
    options.add_model_options(parser)
    options.add_generation_options(parser)
    return {action.dest: action for action in parser._actions}


def test_log_probabilities_come_with_json_only(capsys):
    assert main(["run", "--json", "--logprobs", "2", "--max-new-tokens", "5", "Hello"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["token_id"] for entry in report["logprobs"]] == report["token_ids"]
    assert "".join(entry["token"] for entry in report["logprobs"]) == report["text"]
    for entry in report["logprobs"]:
        assert entry["logprob"] < 0 and bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0] == {k: v for k, v in entry.items() if k != "top_logprobs"}
    for wrong in (["--logprobs", "2"], ["--json", "--logprobs", "21"], ["--json", "--logprobs", "x"]):
        assert main(["run", *wrong, "Hello"]) == 2
        assert "logprobs" in capsys.readouterr().err


def test_an_answer_held_to_a_grammar(capsys, tmp_path):
    assert main(["run", "Hello", "--quiet", "--regex", "[a-c]{4}( [d-f]{2}){2}"]) == 0
    assert re.fullmatch("[a-c]{4}( [d-f]{2}){2}", capsys.readouterr().out.strip())
    (tmp_path / "toy.lark").write_text('start: "ab" ("c" | "d") "e"', encoding="utf-8")
    assert main(["run", "Hello", "--json", "--grammar", str(tmp_path / "toy.lark")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["text"] in ("abce", "abde") and report["finish_reason"] == "stop"
    assert report["settings"]["generation"]["grammar"]["kind"] == "lark"
    assert main(["run", "Hello", "--json", "--regex", "[a-c]{40}", "--max-new-tokens", "9"]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json-schema", '{"type": "objekt"}'], "the JSON schema cannot be used: Invalid type: objekt"),
        (["--json-schema", "missing.json"], "cannot read the JSON schema"),
        (["--json-schema", '{"type": '], "the JSON schema is not JSON"),
        (["--regex", "a("], "the regular expression cannot be used: unclosed group"),
        (["--grammar", "missing.lark"], "cannot read the grammar"),
        (["--json-object", "--regex", "a"], "exclude each other"),
    ],
)
def test_grammars_that_cannot_be_used(capsys, arguments, message):
    assert main(["run", "Hello", *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out and message in err and len(err.splitlines()) == 1
    assert not toy_pipeline.calls  # nothing was loaded
