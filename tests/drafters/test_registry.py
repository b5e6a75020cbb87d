"""The table of drafters: what feeds help and README, and the kinds that other packages bring."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support.toys.toy_model import ToyModel

from specport.core.planning.row_plan import Source
from specport.core.planning.step_costs import StepCosts
from specport.drafters.build import build_sources
from specport.drafters.context import BuildContext
from specport.drafters.registry import BUILT_IN, DrafterKind, help_text, markdown_table, registry
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.spec import PartSpec, parse
from specport.errors import InvalidInput, ModelError

ROOT = Path(__file__).parents[2]


def medusa(context: BuildContext) -> Source:
    drafter = NgramDrafter()
    drafter.name = f"medusa of {context.layer}"
    return Source(drafter)


MEDUSA = DrafterKind("another", "layer", "what heads say", "heads", "always", medusa)


class Point:
    """An entry point that gives what `load` returns."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name, self.load = name, load


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(**loads: Callable[[], Any]) -> None:
        points = [Point(name, load) for name, load in loads.items()]
        monkeypatch.setattr(metadata, "entry_points", lambda group: points)

    return install


def broken() -> DrafterKind:
    raise ImportError("no module named heads")


def test_a_package_brings_a_kind_of_drafter(plugins: Callable[..., None]) -> None:
    plugins(medusa=lambda: MEDUSA)
    spec = parse("ngram|medusa:3")
    assert spec.parts[1] == PartSpec("medusa", layer=3) and str(spec) == "ngram|medusa:3"
    costs = StepCosts.prior({1: 1.0})
    sources = build_sources(spec, ToyModel(), None, {}, planned=True, costs=costs)  # type: ignore[arg-type]
    assert [source.drafter.name for source in sources] == ["ngram", "medusa of 3"]
    with pytest.raises(InvalidInput, match=r"early-exit:E, mtp, medusa:E"):
        parse("")


def test_a_broken_package_is_named_and_left_out(plugins: Callable[..., None]) -> None:
    plugins(heads=broken, medusa=lambda: MEDUSA, odd=lambda: "a string")
    found = registry()
    assert "medusa" in found.kinds and not {"heads", "odd"} & {*found.kinds}
    assert found.broken == {
        "heads": "ImportError: no module named heads",
        "odd": "TypeError: a str is no DrafterKind",
    }
    for expression in ("heads", "ngram|heads(x)", "heads:3"):
        with pytest.raises(InvalidInput, match="drafter heads cannot be loaded: ImportError"):
            parse(expression)
    assert parse("heads-of-mine").models == ["heads-of-mine"]


def exiting(context: BuildContext) -> Source:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("build", "said"), [(exiting, "SystemExit: 3"), (lambda context: None, "a NoneType is no source")]
)
def test_a_package_that_fails_to_build_is_named(plugins: Callable[..., None], build: Any, said: str) -> None:
    plugins(medusa=lambda: replace(MEDUSA, build=build), odd=lambda: exiting(None))  # type: ignore[arg-type]
    assert registry().broken == {"odd": "SystemExit: 3"}
    costs = StepCosts.prior({1: 1.0})
    with pytest.raises(ModelError, match=f"drafter medusa cannot be built: .*{said}"):
        build_sources(parse("medusa:3"), ToyModel(), None, {}, planned=True, costs=costs)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ngram", "model", "auto", "none", "a|b", "a(b", "a:b", " "])
def test_built_in_names_cannot_be_taken(plugins: Callable[..., None], name: str) -> None:
    plugins(**{name: lambda: MEDUSA})
    found = registry()
    assert found.kinds == BUILT_IN and [*found.broken] == [name]


def test_the_readme_has_the_table() -> None:
    assert markdown_table() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_kind_is_in_the_help() -> None:
    for kind in BUILT_IN.values():
        assert kind.usage in help_text() and f"`{kind.usage}`" in markdown_table().replace("'", "")


def test_the_table_loads_nothing_heavy() -> None:
    code = "import sys, specport.drafters.registry as r; r.help_text(); print('numpy' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "False"
