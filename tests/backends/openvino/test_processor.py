"""What OpenVINO's settings owe to the processor's instruction sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from specport.models.source import ModelFiles
from specport.runtime.devices.profiles import Profile, load_profile
from specport.runtime.devices.registry import LoadOptions

pytest.importorskip("openvino")

from specport.backends.openvino import compiling, exact_mode
from specport.backends.openvino import load as loading
from specport.backends.openvino.compiling import Job


def test_one_thread_with_amx_runs_floats_in_f32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16, OpenVINO's MLP kernel would divide by zero there."""
    monkeypatch.setattr(loading, "cpu_flags", lambda: ("amx_bf16",))
    monkeypatch.setattr(compiling, "usable_cores", lambda: 4)
    profile = load_profile("xeon")
    f32 = {"INFERENCE_PRECISION_HINT": "f32"}

    def fitting(threads: int, precision: str) -> Profile:
        files = ModelFiles(Path(), "m", precision, "m", "0")
        return loading.for_processor(Job(files, LoadOptions(profile, threads=threads), {}))

    assert fitting(1, "fp16").exact == {**profile.exact, **f32}
    assert fitting(2, "fp16") == profile
    for threads in (1, 2):
        assert fitting(threads, "int4").draft == {**profile.draft, **profile.bf16}
    # A profile that says nothing of AMX computes in bf16 there.
    profile = load_profile("core-ultra-npu-emulated")
    assert fitting(1, "int4").exact == {**profile.exact, **f32} and fitting(2, "int4") == profile


@pytest.mark.parametrize("flag", ["amx_bf16", "avx512_bf16"])
@pytest.mark.parametrize("name", ["xeon", "core-ultra-cpu"])
def test_integer_weights_compute_in_f32_where_the_runtime_would_take_bf16(
    flag: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head's outputs would change how bf16 is rounded, and so the text of exact mode."""
    monkeypatch.setattr(loading, "cpu_flags", lambda: ("avx512f", flag))
    monkeypatch.setattr(compiling, "usable_cores", lambda: 4)
    profile = load_profile(name)
    job = Job(ModelFiles(Path(), "m", "int8", "m", "0"), LoadOptions(profile), {})
    found = loading.for_processor(job)
    assert all(t["INFERENCE_PRECISION_HINT"] == "f32" for t in (found.exact, found.fast, found.draft))
    monkeypatch.setattr(loading, "cpu_flags", lambda: ("avx512f", "avx512_vnni"))
    assert loading.for_processor(job) == profile


def test_one_core_is_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is held to one core has one thread, though the machine has more cores."""
    monkeypatch.setattr(loading, "cpu_flags", lambda: ("amx_bf16",))
    job = Job(ModelFiles(Path(), "m", "fp16", "m", "0"), LoadOptions(load_profile("xeon")), {})
    more = Job(job.files, LoadOptions(load_profile("xeon"), threads=8), {})
    for cores, f32 in (([3], True), ([0, 1], False)):
        monkeypatch.setattr("psutil.Process.cpu_affinity", lambda self, cores=cores: cores)
        assert job.threads == more.threads == len(cores)
        assert ("INFERENCE_PRECISION_HINT" in loading.for_processor(job).exact) is f32


@pytest.mark.parametrize(
    ("threads", "precision", "exact", "f32"),
    [(2, "int8", True, True), (2, "int8", False, False), (1, "int8", False, True), (2, "fp32", False, True)],
)
def test_a_fast_encoder_leaves_the_choice_to_the_runtime_with_amx(
    threads: int, precision: str, exact: bool, f32: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder computes in f32 there, in every case."""
    monkeypatch.setattr(compiling, "usable_cores", lambda: 4)
    jobs: list[Job] = []

    def compiled(job: Job, properties: Mapping[str, Any], **_: object) -> None:
        jobs.append(job)
        assert properties["INFERENCE_PRECISION_HINT"] == "f32"
        raise InterruptedError

    monkeypatch.setattr(loading, "cpu_flags", lambda: ("amx_bf16",))
    monkeypatch.setattr(exact_mode if exact else loading, "compiled", compiled)
    with pytest.raises(InterruptedError):
        loading.load(
            ModelFiles(tmp_path, "m", precision, "m", "0"),
            LoadOptions(load_profile("xeon"), threads=threads, exact=exact),
        )
    assert (jobs[0].encoder.get("INFERENCE_PRECISION_HINT") == "f32") is f32


@pytest.mark.parametrize(("shape", "group"), [("64, 12, 128", 128), ("64, 576", 256), ("64, 9, 64", 64)])
def test_every_role_gets_the_group_of_activations_that_fits(
    shape: str, group: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled(Exception):
        pass

    def compiled(job: object, properties: Mapping[str, Any], **_: object) -> None:
        raise Compiled(properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"])

    for module in (loading, exact_mode):
        monkeypatch.setattr(module, "compiled", compiled)
    (tmp_path / "openvino_model.xml").write_text(f'<data element_type="i4" shape="{shape}" />')
    files = ModelFiles(tmp_path, "m", "ir", "m", "0")  # a user's own IR, of unknown precision
    profile = load_profile("xeon")
    for options in (
        LoadOptions(profile),
        LoadOptions(profile, exact=False),
        LoadOptions(profile, role="draft"),
    ):
        with pytest.raises(Compiled, match=f"^{group}$"):
            loading.load(files, options)
