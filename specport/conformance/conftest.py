"""Fixtures of the suite: the models on the device, sequences, and tokens to feed them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specport.conformance.pair import Pair, load
from specport.conformance.steps import Array, Probe
from specport.core.ports import CacheHandle, Model


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    if not config.getoption("--specport-device"):
        raise pytest.UsageError("give the device to test: --specport-device NAME (see: specport devices)")


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config = request.config
    model, draft = config.getoption("--specport-model"), config.getoption("--specport-draft")
    return load(_device(config), model, draft, tmp_path_factory.mktemp("model"))


def _device(config: pytest.Config) -> str:
    """The option, with a path made whole: the suite may run in another folder than it was started in."""
    device = str(config.getoption("--specport-device"))
    return (
        str((config.invocation_params.dir / Path(device)).resolve()) if device.endswith(".toml") else device
    )


@pytest.fixture(scope="session")
def model(pair: Pair) -> Model:
    return pair.target.model


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """Skips a test whose capability the loaded model does not have."""
    for mark in request.node.iter_markers("needs"):
        loaded: Model = request.getfixturevalue("model")
        if not getattr(loaded.capabilities, mark.args[0]):
            pytest.skip(f"the device has no capability {mark.args[0]!r}")


@pytest.fixture(scope="session")
def ids(model: Model) -> list[int]:
    """Random tokens, as many as the context holds."""
    return [int(i) for i in np.random.default_rng(7).integers(3, model.vocab_size, model.max_context)]


@pytest.fixture(scope="session")
def whole(model: Model, ids: list[int]) -> Array:
    """[200, vocab] logits of the first tokens in one step: what every other way must give."""
    probe = Probe(model)
    handle = model.open()
    logits = probe.feed(handle, [ids[:200]])
    model.close(handle)
    return logits


@pytest.fixture(scope="session")
def probe(model: Model) -> Probe:
    return Probe(model)


@pytest.fixture
def handle(model: Model) -> Iterator[CacheHandle]:
    handle = model.open()
    yield handle
    model.close(handle)
