"""What OpenVINO's settings owe to the processor's instruction sets."""

from __future__ import annotations

import pytest

from specport.runtime.profiles import load_profile
from specport.runtime.registry import LoadOptions

pytest.importorskip("openvino")

from specport.backends.openvino import load as loading


def test_one_thread_with_amx_runs_floats_in_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, OpenVINO's MLP kernel would divide by zero there."""
    monkeypatch.setattr(loading, "cpu_flags", lambda: ("amx_bf16",))
    profile = load_profile("xeon")
    one, two = (LoadOptions(profile, threads=threads) for threads in (1, 2))
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}
    assert loading._for_processor(one, "fp16").exact == {**profile.exact, **f32}
    assert loading._for_processor(two, "fp16") == profile
    for options in (one, two):
        assert loading._for_processor(options, "int4").draft == {**profile.draft, **profile.amx}
