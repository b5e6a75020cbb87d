"""`specport serve`: its options, and mistakes that are told before a model is loaded."""

from __future__ import annotations

import re
import socket
import sys
from pathlib import Path

import pytest
from support.toys import toy_pipeline

import specport
from specport.cli import main
from specport.cli.parsing import Parser
from specport.cli.serve.command import LIMITS, SAMPLING, add_parser
from specport.serve.settings import Limits, Sampling


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_pipeline.calls.clear()
    monkeypatch.setattr(specport, "load", toy_pipeline.load, raising=False)


def test_help_names_the_right_defaults() -> None:
    for table, owner in ((LIMITS, Limits()), (SAMPLING, Sampling())):
        for name, *_, text in table:
            assert re.search(r"\(default: (\S+)\)", text)[1] == str(getattr(owner, name)), name
    assert {name for name, *_ in SAMPLING} == vars(Sampling()).keys()


def test_the_server_is_for_this_machine_unless_told() -> None:
    parser = Parser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["serve"])
    assert (args.host, args.port, args.api_key_file) == ("127.0.0.1", 8000, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-running", "0"], "max_running is 0"),
        (["--request-seconds", "nan"], "--request-seconds: nan is no finite number"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--port", "70000"], "cannot use the address 127.0.0.1:70000"),
        (["--port", "-1"], "cannot use the address"),
        (["--port", "http"], "it must be a whole number"),
        (["--host", "no.such.host.invalid"], "cannot use the address no.such.host.invalid"),
        (["--api-key-file", "no/such/file"], "cannot read the file of API keys"),
        (["--api-key-file", "a\0b"], "cannot use the path"),
        (["--speech-draft", "suffix"], "a speech draft needs a speech model"),
        (["--metrics-prefix", "a-b"], "the prefix of metrics 'a-b'"),
    ],
)
def test_mistakes_are_one_line_and_load_no_model(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("specport: error: ") and said in err
    assert not toy_pipeline.calls


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--model", "missing"]) == 2
    assert "there is no model" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "--port" in capsys.readouterr().err and not toy_pipeline.calls


def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in [name for name in sys.modules if name.startswith(("specport.serve", "uvicorn."))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "pip install 'specport[serve]'" in capsys.readouterr().err


def test_an_empty_file_of_keys_opens_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "keys").write_text("\n")
    assert main(["serve", "--api-key-file", str(tmp_path / "keys")]) == 2
    assert "has no API key" in capsys.readouterr().err
