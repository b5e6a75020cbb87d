"""`specport models`: the list, paths and removal, on a cache of small files."""

from __future__ import annotations

import json

import pytest

from specport.cli import main
from specport.models import cache, source
from specport.runtime import conversion


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path))


def add(name: str) -> cache.Entry:
    def build(folder):
        (folder / "weights").write_bytes(bytes(2_000_000))
        return {"name": name, "source": "org/model", "precision": "int8"}

    return cache.entry(name, build)


def test_empty_cache_names_the_next_command(capsys):
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "specport models pull" in err
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_list(capsys):
    add("small-int8")
    (add("torn-int8").folder / "weights").write_bytes(b"")
    assert main(["models"]) == 0
    header, small, torn = capsys.readouterr().out.splitlines()
    assert header.split() == ["NAME", "PRECISION", "SIZE", "SOURCE"]
    assert small.split() == ["small-int8", "int8", "2", "MB", "org/model"]
    assert "damaged: weights has 0 bytes" in torn
    assert main(["models", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["source"], first["damage"]) == ("small-int8", "org/model", None)
    assert second["damage"]


def test_path_and_rm(capsys):
    entry = add("small-int8")
    assert main(["models", "path", "small-int8"]) == 0
    assert capsys.readouterr().out == f"{entry.folder}\n"
    assert main(["models", "rm", "small-int8"]) == 0
    assert "freed 2 MB" in capsys.readouterr().err
    assert not entry.folder.exists()


@pytest.mark.parametrize("action", ["rm", "path"])
def test_unknown_name(capsys, action):
    assert main(["models", action, "no-such"]) == 2
    assert "no model 'no-such' in the cache (see `specport models`)" in capsys.readouterr().err


def test_path_of_a_damaged_model(capsys):
    (add("torn-int8").folder / "weights").unlink()
    assert main(["models", "path", "torn-int8"]) == 2
    assert (
        "torn-int8 is damaged: weights is missing (specport models rm torn-int8)" in capsys.readouterr().err
    )


def test_pull(monkeypatch, capsys, tmp_path):
    asked = []

    def resolve(spec, *, progress, **settings):
        asked.append((spec, settings))
        for share in (0.1, 0.2):
            progress("converting", share)
        return source.ModelFiles(tmp_path, "small", "int4", "org/small", "")

    monkeypatch.setattr(conversion, "resolve", resolve)
    assert main(["models", "pull"]) == 0
    assert main(["models", "pull", "org/small", "--precision", "int4"]) == 0
    any_kind = {"speech": None}
    assert asked == [(None, any_kind), ("org/small", {"precision": "int4", **any_kind})]
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}\n" * 2
    assert err == "specport: converting\nsmall (int4) is ready\n" * 2


def test_pull_of_nothing(capsys):
    assert main(["models", "pull", "no/such/model"]) == 2
    assert "specport: error: there is no file or folder 'no/such/model'" in capsys.readouterr().err
