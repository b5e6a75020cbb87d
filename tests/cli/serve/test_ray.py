"""`--ray`: mistakes that are told before a cluster starts, and machines that cannot use Ray."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from specport.cli import main
from specport.cli.serve import ray
from specport.errors import InvalidInput
from specport.jobs import ray_cluster


@pytest.fixture
def ray_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: object())
    monkeypatch.setattr(ray_cluster, "WINDOWS", False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replicas", "2"], "--replicas needs --ray"),
        (["--cores", "2"], "--cores needs --ray"),
        (["--update"], "--update needs --ray"),
        (["--ray-address", "auto"], "--ray-address needs --ray"),
        (["--ray", "--replicas", "0:2"], "'0:2' is not a range of replicas like 1:4"),
        (["--ray", "--replicas", "3:2"], "is not a range"),
        (["--ray", "--replicas", "many"], "is not a range"),
        (["--ray", "--cores", "0"], "cores is 0; it must be 1 or more"),
        (["--ray", "--target-running", "0"], "target_running is 0.0; it must be more than 0"),
        (["--ray", "--update"], "--update needs the address of the cluster"),
        (["--ray", "--port", "70000"], "cannot use the address"),
        (["--ray", "--speech-model", "base"], "have no speech model"),
        (["--ray", "--speech-draft", "suffix"], "have no speech model"),
        (["--ray", "--port", "0", "--model", "a\0b"], "cannot use the path"),
    ],
)
@pytest.mark.usefixtures("ray_is_there")
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and err.startswith("specport: error: ") and said in err


@pytest.mark.parametrize(
    "arguments", [["serve", "--ray"], ["quantize", "--ray", "--distil", "5", "--out", "no-such-folder"],
                  ["quantize", "head", "--ray", "auto", "--out", "no-such-folder"],
                  ["quantize", "layerskip", "--ray", "auto", "--out", "no-such-folder"]],
)  # fmt: skip
def test_a_machine_without_ray(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "find_spec", lambda name: None)
    monkeypatch.setattr(ray_cluster, "WINDOWS", False)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err == f"specport: error: Ray is not installed ({ray_cluster.INSTALL})\n"


@pytest.mark.usefixtures("ray_is_there")
def test_a_cluster_that_does_not_let_in(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoToken(Exception):
        """As Ray's own, which is no error of Python's."""

    def init(**options: object) -> None:
        raise NoToken("Token authentication is enabled but no token was found\nmore")

    exceptions = SimpleNamespace(RayError=NoToken)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, exceptions=exceptions))
    assert main(["serve", "--ray", "--ray-address", "there:6379"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "cannot use a Ray cluster at there:6379: Token" in err


def test_windows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ray_cluster, "WINDOWS", True)
    assert main(["serve", "--ray"]) == 2
    assert "Ray on Windows is in beta" in capsys.readouterr().err


def test_paths_are_whole_as_replicas_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path)
    names = dict.fromkeys(ray.options.LOAD_OPTIONS)
    given = {"draft": "small", "device": "xeon", "prefix_cache": "new", "exact": False, "num_draft_tokens": 3}
    found = ray._load_options(argparse.Namespace(**{**names, **given}))
    here = Path(os.path.realpath(tmp_path))
    whole = {"draft": str(here / "small"), "prefix_cache": str(here / "new")}
    assert found == {**given, **whole}
    assert ray._absolute("org/name") == "org/name" and ray._absolute(None) is None
    for draft, wanted in {
        "suffix|./small": f"suffix|{here / 'small'}", "universal(small)": f"universal({here / 'small'})",
        "suffix": "suffix", "auto": "auto", "none": "none", "org/name|ngram": "org/name|ngram",
    }.items():  # fmt: skip
        assert ray._with_whole_paths(draft) == wanted
    (tmp_path / "suffix").mkdir()  # of a drafter's name
    (tmp_path / "fixed").mkdir()  # of a policy's name
    given = {**names, "draft": "suffix", "policy": "fixed"}
    assert ray._load_options(argparse.Namespace(**given)) == {"draft": "suffix", "policy": "fixed"}


def test_names_that_no_file_can_have_are_one_line() -> None:
    names = dict.fromkeys(ray.options.LOAD_OPTIONS)
    for name in ("draft", "history"):
        with pytest.raises(InvalidInput, match="cannot use the path"):
            ray._load_options(argparse.Namespace(**{**names, name: "a\0b"}))


@pytest.mark.parametrize(
    ("nodes", "most", "cores"), [((8,), 2, 4), ((8, 8), 2, 8), ((8, 4), 4, 2), ((2,), 8, 1), ((), 1, 1)]
)
def test_all_replicas_fit_on_the_cluster(nodes: tuple[int, ...], most: int, cores: int) -> None:
    assert ray._fitting(ray_cluster.Cluster(False, "", nodes), most) == cores
