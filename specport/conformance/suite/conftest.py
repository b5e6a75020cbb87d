"""Fixtures of the suite: the models on the device, sequences, and tokens to feed them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specport.conformance.bounded import bounded
from specport.conformance.pair import Pair, load
from specport.conformance.steps import Array, Probe
from specport.core.ports import CacheHandle, Model
from specport.errors import SpecportError


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    if not config.getoption("--specport-device"):
        raise pytest.UsageError("give the device to test: --specport-device NAME (see: specport devices)")


@pytest.fixture(scope="session")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    config = request.config
    model, draft = config.getoption("--specport-model"), config.getoption("--specport-draft")
    kind = config.getoption("--specport-tiny")
    return load(_device(config), model, draft, tmp_path_factory.mktemp("model"), kind)


def _device(config: pytest.Config) -> str:
    """Return the option, with an absolute path: the suite may run in another folder."""
    device = str(config.getoption("--specport-device"))
    return (
        str((config.invocation_params.dir / Path(device)).resolve()) if device.endswith(".toml") else device
    )


@pytest.fixture(scope="session")
def model(pair: Pair) -> Model:
    return pair.target.model


@pytest.fixture(scope="session")
def fast(pair: Pair) -> Model:
    """The target without exact numerics, as --fast loads it: it may be able to do more, and in other ways."""
    if not pair.target.model.capabilities.exact:
        pytest.skip("the device has no exact mode: the target is tested as it is")
    model = pair.variant(exact=False)
    if model.capabilities == pair.target.model.capabilities:
        pytest.skip("the device is exact in any case: the target is tested as it is")
    return model


@pytest.fixture(params=["target", "fast"])
def any_probe(request: pytest.FixtureRequest) -> Probe:
    """The target, in exact mode where there is one, then without it."""
    return Probe(request.getfixturevalue("model" if request.param == "target" else "fast"))


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """Skip a test where the model that it steps does not have what its marks name."""
    for mark in request.node.iter_markers("needs"):
        both = "any_probe" in request.fixturenames
        loaded: Model = (
            request.getfixturevalue("any_probe").model if both else request.getfixturevalue("model")
        )
        for name, value in {**dict.fromkeys(mark.args, True), **mark.kwargs}.items():
            found = getattr(loaded.capabilities, name)
            if found != value if name in mark.kwargs else not found:
                pytest.skip(f"the device has no capability {name!r}" + f" {value!r}" * (name in mark.kwargs))


@pytest.fixture(scope="session")
def hidden_probe(pair: Pair) -> Probe:
    """A target that was asked for its first and last layers; skips where the device does not give them."""
    layers = (0, pair.num_layers - 1)
    try:
        model = pair.variant(hidden_layers=layers)
    except SpecportError as error:
        pytest.skip(f"the device gives no hidden states: {error}")
    if not model.capabilities.hidden_layers:
        pytest.skip("the device has no capability 'hidden_layers'")
    assert model.capabilities.hidden_layers == layers
    return Probe(model)


@pytest.fixture(scope="session")
def small(pair: Pair) -> Model:
    """A target whose cache holds a few short texts; skips where the device does not bound its cache."""
    model = bounded(pair)
    if model is None:
        pytest.skip("the device does not bound its cache (LoadOptions.cache_bytes)")
    return model


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
