"""The house stands on its floors: which module of the installed package may import which.

A module imports its own room and rooms of lower floors. This is checked from the source of all modules, by
`support/imports.py`; each rule is also shown to find what it forbids, in small packages that break it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from support import imports
from support.imports import Package

# From ground to roof. A floor holds rooms, a room the modules below these names; of several names that fit,
# the longest counts. "" is the package's own `__init__`. Rooms of one floor do not know of each other.
FLOORS: imports.Floors = (
    {"ground": ("errors", "progress", "outside")},
    {"core": ("core",), "models": ("models",), "profile files": ("hw_profiles",)},
    {"text": ("text",), "jobs": ("jobs",), "traffic": ("traffic",)},
    # Loading converts models, so that this part of `quantize` lies below all that loads one.
    {"drafters": ("drafters",), "conversion": ("quantize.convert", "quantize.text.prompts")},
    {"runtime": ("runtime",)},
    {"backends": ("backends",), "calibration": ("calibration",), "diffusion": ("diffusion",)},
    {
        # It uses OpenVINO's graph surgery (backends.openvino.graph), one way: no backend knows of it.
        "quantize": ("quantize", "quantize.convert.to_huggingface"),
        "face": ("", "api", "pipeline", "chat", "request", "stream", "options", "explain"),
        "speech": ("speech",),
    },
    {
        "agents": ("agents",),
        "bench": ("bench",),
        "conformance": ("conformance",),
        "serve": ("serve",),
        "rl": ("quantize.rl",),
        "pair decoding": ("pipo",),
    },
    # It measures word errors as the bench does, with the engine of speech.
    {"tune": ("tune",), "speech drafts": ("quantize.speech",)},
    {"cli": ("cli", "__main__")},
)

# Packages that are no vendor's runtime: they may be imported anywhere but in `core`.
COMMON = {
    "array_api_compat": "the array API",
    "av": "reads audio files, runs no model",
    "fastapi": "routes of the server",
    "filelock": "locks of the cache",
    "h11": "connections of the server",
    "huggingface_hub": "downloads files, runs no model",
    "httpx": "what huggingface_hub connects with; its errors are caught",
    "jinja2": "chat templates",
    "jiwer": "word error rates of benchmarks",
    "llm": "the command that the plugin of the room agents extends; imported there only",
    "llguidance": "grammars to token masks, runs no model; one module of the room text imports it",
    "matplotlib": "reports",
    "msgspec": "types of files that come from outside",
    "numpy": "arrays on the host",
    "platformdirs": "the cache's folder",
    "prometheus_client": "metrics of the server",
    "psutil": "memory and processor",
    "pydantic": "requests to the server",
    "pytest": "the conformance suite",
    "ray": "machines for replicas of the server and for writers of text; runs no model",
    "smolagents": "the agents that the model of the room agents serves; imported there only",
    "sounddevice": "the microphone",
    "starlette": "requests and replies of the server",
    "tokenizers": "text to ids, runs no model",
    "tomli": "tomllib before Python 3.11",
    "tqdm": "progress bars",
    "uvicorn": "the server's process",
}
CORE = ("array_api_compat", "numpy")
VENDOR_ROOMS = ("backends", "quantize", "bench.peers")

# (module, string) that names a module without importing it, and why.
NO_IMPORTS = {
    ("specport.runtime.devices.registry", "specport.backends"): "the name of the entry-point group",
}


@pytest.fixture(scope="module")
def house() -> Package:
    found = Package.installed("specport")
    return replace(found, imports=[i for i in found.imports if (i.importer, i.imported) not in NO_IMPORTS])


def test_all_of_the_installed_package_is_read(house: Package) -> None:
    backends = {point.module for point in entry_points(group="specport.backends")}
    assert {*backends, "specport.hw_profiles", "specport.quantize.build", "specport.core.engine"} <= {
        *house.modules
    }
    assert not any(name.startswith(("specport.specport", "specport.tests")) for name in house.modules)
    found = {(i.importer, i.imported) for i in house.imports}
    assert ("specport.cli", "specport.cli.bench") in found  # by a string
    assert ("specport.backends.torch.load", "torch") in found


def test_what_is_imported_is_there(house: Package) -> None:
    assert imports.missing(house) == []


def test_no_circles(house: Package) -> None:
    assert " -> ".join(imports.circle(house)) == ""


def test_floors(house: Package) -> None:
    assert imports.homeless(house, FLOORS) == []
    assert imports.upward(house, FLOORS) == []


def test_vendors_stay_in_their_rooms(house: Package) -> None:
    assert imports.strangers(house, COMMON, VENDOR_ROOMS) == []
    assert imports.outside(house, "core", CORE) == []


def test_one_module_knows_the_grammar_library(house: Package) -> None:
    found = {i.importer for i in house.imports if i.imported.split(".")[0] == "llguidance"}
    assert found == {"specport.text.grammar.matcher"}


def test_one_room_knows_clients(house: Package) -> None:
    found = {i.importer for i in house.imports if i.imported.split(".")[0] in ("llm", "smolagents")}
    assert found
    assert not [name for name in found if not name.startswith("specport.agents.")]


def test_no_backend_imports_another(house: Package) -> None:
    assert imports.across(house, "backends") == []


def test_exceptions_are_needed() -> None:
    used = {(i.importer, i.imported) for i in Package.installed("specport").imports}
    assert {*NO_IMPORTS} <= used
    assert {*COMMON} - {"tomli"} <= {imported.split(".")[0] for _, imported in used}


def _package(folder: Path, **files: str) -> Package:
    """Write a package "toy"; a file's name has __ for the dots of its module's."""
    for name, text in {"__init__": "", **files}.items():
        path = folder / "toy" / f"{name if name == '__init__' else name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Package.at(folder / "toy")


IMPORTS = {
    "at the top": "from toy.b import f",
    "of the module": "from toy import b",
    "plain": "import toy.b as other",
    "relative": "from .b import f",
    "relative, of the module": "from . import b",
    "late": "def g():\n    from toy.b import f",
    "for type checkers": "if TYPE_CHECKING:\n    from toy.b import f",
    "job": "JOB = 'toy.b:f'",
    "module run as a program": "run([python, '-m', 'toy.b'])",
    "code in a string": "run([python, '-c', 'import sys; from toy.b import f; f()'])",
    "code of several lines": "CODE = '''\n    import sys\n    from toy.b import f\n'''",
}


@pytest.mark.parametrize("text", IMPORTS.values(), ids=IMPORTS)
def test_every_kind_of_import_is_seen(tmp_path: Path, text: str) -> None:
    toy = _package(tmp_path, a=text, b="from toy.a import g")
    floors: imports.Floors = ({"low": ("", "a")}, {"high": ("b",)})
    seen = next(i for i in toy.inner if i.importer == "toy.a")
    assert seen.imported == "toy.b" and ("b" in text.splitlines()[seen.line - 1] or text.startswith("CODE"))
    assert sorted({*imports.circle(toy)}) == ["toy.a", "toy.b"]
    assert imports.upward(toy, floors) == [f"{seen}: high is not below low"]


@pytest.mark.parametrize("text", ['"""How to import toy.b here."""', "x = 'toy.b is one of two'", "import b"])
def test_what_is_no_import_is_not_seen(tmp_path: Path, text: str) -> None:
    assert _package(tmp_path, a=text, b="").inner == []


def test_a_circle_is_told_in_order(tmp_path: Path) -> None:
    toy = _package(
        tmp_path, a="import toy.b", b="import toy.sub.c", sub__c="from ..a import f", d="import toy.a"
    )
    circle = imports.circle(toy)
    order = ["toy.a", "toy.b", "toy.sub.c", "toy.a", "toy.b", "toy.sub.c"]
    assert len(circle) == 4 and any(order[i : i + 4] == circle for i in range(3))
    assert imports.circle(_package(tmp_path / "straight", a="import toy.b", b="")) == []


def test_a_floor_knows_only_those_below(tmp_path: Path) -> None:
    toy = _package(
        tmp_path,
        cellar="import toy.beside",
        beside="",
        roof__a="import toy.cellar, toy.roof.b",
        roof__b="import toy.roof.special",
        roof__special="import toy.cellar",
        shed="",
    )
    floors: imports.Floors = (
        {"cellar": ("cellar",), "next door": ("beside", "roof.special")},
        {"roof": ("", "roof")},
    )
    assert imports.homeless(toy, floors) == ["toy.shed"]
    assert imports.upward(toy, floors) == [
        "toy.cellar (line 1) imports toy.beside: next door is not below cellar",
        "toy.roof.special (line 1) imports toy.cellar: cellar is not below next door",
    ]


def test_a_vendor_in_another_room_is_found(tmp_path: Path) -> None:
    toy = _package(
        tmp_path,
        backends__x="import torch, numpy",
        bench__peers__y="import openvino",
        bench__peerless="def f():\n    from openvino.runtime import Core",
        core__z="import json, numpy, tokenizers",
    )
    assert imports.strangers(toy, COMMON, VENDOR_ROOMS) == [
        "toy.bench.peerless (line 2) imports openvino.runtime"
    ]
    assert imports.outside(toy, "core", CORE) == ["toy.core.z (line 1) imports tokenizers"]


def test_a_backend_that_imports_another_is_found(tmp_path: Path) -> None:
    toy = _package(
        tmp_path,
        backends__x__load="from toy.backends.x import cache\nfrom ..y.load import load",
        backends__x__cache="import toy.errors",
        backends__y__load="",
        errors="",
    )
    assert imports.across(toy, "backends") == ["toy.backends.x.load (line 2) imports toy.backends.y.load"]


def test_a_module_that_is_not_there_is_found(tmp_path: Path) -> None:
    toy = _package(tmp_path, a="import toy.gone", b="load(f'toy.{name}')", c="JOB = 'toy.gone:f'")
    assert imports.missing(toy) == [
        "toy.a (line 1) imports toy.gone",
        "toy.b (line 1) imports toy.<computed>",
        "toy.c (line 1) imports toy.gone",
    ]
