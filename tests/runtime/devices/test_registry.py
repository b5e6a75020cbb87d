"""Backends are found, restricted and asked; a broken one breaks nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from specport.backends.openvino import backend as openvino_backend

from specport.cli import main
from specport.errors import DeviceError
from specport.models.source import ModelFiles
from specport.runtime.devices import registry
from specport.runtime.devices.profiles import Profile, list_profiles, load_profile
from specport.runtime.devices.registry import DeviceStatus, LoadOptions

torch_probe = importlib.import_module(
    "specport.backends.torch.probe"
)  # its package has a function of that name


class Point:
    """An entry point as importlib.metadata gives it."""

    def __init__(self, name: str, value: Any) -> None:
        self.name = name
        self._value = value
        self.value = "specport.backends.x" if name in ("torch", "openvino") else "theirs:backend"

    def load(self) -> Any:
        if isinstance(self._value, BaseException):
            raise self._value
        return self._value


def test_both_backends_are_registered() -> None:
    assert {"openvino", "torch"} <= set(registry.backends())


@pytest.mark.parametrize(("allowed", "expected"), [("torch", {"torch"}), ("", set()), ("nope", set())])
def test_environment_restricts_what_loads(
    monkeypatch: pytest.MonkeyPatch, allowed: str, expected: set[str]
) -> None:
    monkeypatch.setenv("SPECPORT_BACKENDS", allowed)
    assert set(registry.backends()) == expected
    by_name = {status.profile: status for status in registry.statuses(list_profiles())}
    assert not by_name["xeon"].available and "SPECPORT_BACKENDS" in by_name["xeon"].reason
    with pytest.raises(DeviceError, match="xeon cannot be used"):
        registry.backend_for(load_profile("xeon"))


def test_a_broken_entry_point_is_listed_and_breaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    good = registry.backends()["torch"]
    points = [Point("torch", good), Point("openvino", ImportError("libfoo is missing"))]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    by_name = {status.profile: status for status in registry.statuses(list_profiles())}
    assert "libfoo is missing" in by_name["xeon"].reason
    assert "libfoo" not in by_name["cuda"].reason
    with pytest.raises(DeviceError, match="libfoo"):
        registry.backend_for(load_profile("xeon"))


class Theirs:
    """A backend of another package, which behaves as told."""

    name, weights = "theirs", "huggingface"

    def __init__(self, said: Any) -> None:
        self.said = said

    def probe(self, profiles: Sequence[Profile]) -> Any:
        if isinstance(self.said, BaseException):
            raise self.said
        return self.said

    load = probe


PROFILE = replace(load_profile("torch-cpu"), name="mine", backend="theirs")
THEIRS = {
    "exits when imported": (SystemExit(3), "SystemExit: 3"),
    "is none": ("a text", "a str is no backend"),
    "raises": (Theirs(OSError("no such device")), "OSError: no such device"),
    "exits": (Theirs(SystemExit("bye")), "SystemExit: bye"),
    "says nothing": (Theirs([]), "says nothing of it"),
    "gives no list": (Theirs(None), "TypeError"),
    "speaks of another device": (Theirs([DeviceStatus("xeon", "theirs", "CPU", True)]), "says nothing of it"),
}


@pytest.mark.parametrize(("backend", "reason"), THEIRS.values(), ids=THEIRS)
def test_what_another_package_does_is_named_and_breaks_nothing(
    backend: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = registry.backends()["torch"]
    points = [Point("theirs", backend), Point("torch", good)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    theirs, ours = registry.statuses([PROFILE, load_profile("torch-cpu")])
    assert not theirs.available and reason in theirs.reason and theirs.backend == "theirs"
    assert ours == good.probe([load_profile("torch-cpu")])[0]
    with pytest.raises(DeviceError, match="theirs"):
        registry.backends()["theirs"].load(ModelFiles(Path(), "m", "int8", "m", ""), LoadOptions(PROFILE))


def test_absent_hardware_is_a_reason_and_a_remedy() -> None:
    for status in registry.statuses(list_profiles()):
        assert status.available or (status.reason and status.remedy)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_torch_is_offered_where_its_packages_are(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = [load_profile(name) for name in ("torch-cpu", "gaudi-emulated")]
    monkeypatch.setattr(torch_probe, "version", lambda name: "1.0")
    monkeypatch.setattr(torch_probe, "find_spec", lambda name: name)
    assert all(status.available for status in registry.statuses(profiles))
    monkeypatch.setattr(torch_probe, "find_spec", lambda name: None if name == missing else name)
    for status in registry.statuses(profiles):
        assert not status.available and missing in status.reason and "pip install" in status.remedy


@pytest.mark.parametrize(("tool", "reason"), [(None, "no NVIDIA driver"), ("smi", "without CUDA")])
def test_cuda_needs_a_driver_and_a_build(
    tool: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_probe.shutil, "which", lambda name: tool)
    monkeypatch.setattr(torch_probe, "Path", lambda path: SimpleNamespace(exists=lambda: False))
    monkeypatch.setattr(torch_probe, "find_spec", lambda name: name)
    monkeypatch.setattr(torch_probe, "version", lambda name: "2.13.0+cpu")
    (status,) = registry.statuses([load_profile("cuda")])
    assert not status.available and reason in status.reason and status.remedy


def test_probe_survives_a_missing_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it now fails
    (status,) = openvino_backend.probe([load_profile("xeon")])
    assert not status.available and "pip install" in status.remedy


def test_devices_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert all(profile.name in shown for profile in list_profiles())
    assert "fix: " in shown and "\x1b" not in shown
    assert main(["devices", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {d["profile"] for d in told["devices"]} == {p.name for p in list_profiles()}
    assert told["auto"] in {d["profile"] for d in told["devices"]}


def test_devices_loads_no_framework() -> None:
    code = (
        "import sys; from specport.cli import main; main(['devices']); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "optimum"} & set(done.stderr.split())
