"""The user's choice of a prefix cache, and what decides whether two processes may share blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.generations import begin, run
from support.toys.toy_blocks import keeping
from support.toys.toy_model import ToyModel

from specport.core.engine import Engine
from specport.errors import InvalidInput
from specport.runtime.caches.prefixes import Prefixes
from specport.runtime.devices.registry import Loaded

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9]


def cached(prefixes: Prefixes, loaded: Loaded) -> int:
    """Return how many tokens of a prompt are known before it is read for the first time."""
    generation = begin(PROMPT, 2)
    cache = prefixes.of(loaded)
    run(Engine(loaded.model, prefixes=cache), generation)
    prefixes.flush()
    return generation.metrics.num_cached_tokens


def toy(key: str = "k", **options: object) -> Loaded:
    return Loaded(keeping(ToyModel(**options)), key=key)


def test_in_memory_is_the_default_and_false_means_none() -> None:
    assert Prefixes.parse(True, "4GB") == Prefixes(True, None)
    assert Prefixes.parse(False, "4GB").of(toy()) is None
    assert Prefixes().of(Loaded(ToyModel())) is None  # it keeps no blocks


def test_blocks_on_disk_are_for_the_same_model_with_the_same_numerics(tmp_path: Path) -> None:
    assert cached(Prefixes.parse(tmp_path, "1MB"), toy()) == 0
    assert cached(Prefixes.parse(str(tmp_path), "1MB"), toy()) == 12
    assert cached(Prefixes.parse(tmp_path, "1MB"), toy("other weights")) == 0
    assert cached(Prefixes.parse(tmp_path, "1MB"), toy(hidden_layers=(1,))) == 0
    inexact = toy()
    inexact.model.capabilities = replace(inexact.model.capabilities, exact=False)
    assert cached(Prefixes.parse(tmp_path, "1MB"), inexact) == 0


def test_a_model_without_a_key_stays_in_memory(tmp_path: Path) -> None:
    for _ in range(2):
        assert cached(Prefixes.parse(tmp_path, "1MB"), toy("")) == 0


@pytest.mark.parametrize("size", ["", "4", "30%", "-1GB", "0MB", "lots"])
def test_bad_sizes_are_refused(tmp_path: Path, size: str) -> None:
    with pytest.raises(InvalidInput, match="is not a size"):
        Prefixes.parse(tmp_path, size)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty name"):
        Prefixes.parse("", "4GB")
