"""Diffusion models on OpenVINO: blocks that see ahead, in any order, with the logits of the family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")
torch = pytest.importorskip("torch")

from support.processes.own_cache import own_cache  # noqa: E402, F401
from support.tiny import diffusion_families as families  # noqa: E402

from specport.core.arrays import to_host  # noqa: E402
from specport.core.ports import Block, Row  # noqa: E402
from specport.models.kinds.diffusion import DiffusionFacts, find_facts  # noqa: E402
from specport.runtime.conversion import resolve  # noqa: E402
from specport.runtime.devices.profiles import load_profile  # noqa: E402
from specport.runtime.devices.registry import LoadOptions, backend_for  # noqa: E402


def test_logits_are_those_of_the_family(tmp_path: Path) -> None:
    weights = families.save(tmp_path / "sdar", "sdar")
    config, profile = families.CONFIGS["sdar"], load_profile("xeon")
    files = resolve(str(tmp_path / "sdar"), precision="fp32")
    assert find_facts(files.folder) == DiffusionFacts(families.MASK, 4)
    ids = [int(token) for token in np.random.default_rng(0).integers(0, families.MASK, 24)]
    seen = families.native_mask(24, 4)
    want = families.reference(config, weights, ids, seen)
    for role in ("target", "draft"):
        model = backend_for(profile).load(files, LoadOptions(profile, role=role)).model
        assert model.capabilities.visibility == "any" and model.capabilities.gather
        handle = model.open()
        found = to_host(model.step([Row(handle, Block(tuple(ids), tuple(range(24)), seen))]).logits)
        np.testing.assert_allclose(found, want, atol=5e-3, rtol=5e-3)
        model.commit(handle, range(20))
        last = Block(tuple(ids[20:]), tuple(range(4)), np.ones((4, 4), dtype=np.bool_))
        behind = to_host(model.step([Row(handle, last)]).logits)
        np.testing.assert_allclose(behind, want[20:], atol=5e-3, rtol=5e-3)
