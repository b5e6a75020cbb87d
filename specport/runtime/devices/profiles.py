"""Hardware profiles: settings of a device and estimates that apply before calibration.

Reads and checks the TOML files of `specport.hw_profiles` or a user's own. Imports no vendor package. CPUs are
recognised by the name that the operating system reports.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import psutil

from specport.core.policies.length_rules import POLICIES
from specport.errors import DeviceError, InvalidInput
from specport.models import precision as precisions
from specport.models.folder_checks import IR_XML
from specport.models.int4_layout import read_layout
from specport.outside import Format, Table, plain_values
from specport.runtime.devices import processor_pattern

DYNAMIC_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"  # OpenVINO's property: activations that share a scale


@dataclass(frozen=True)
class Profile:
    """Settings of one device.

    recognise:  `cpu`, a pattern of the processor's name (`processor_pattern`). Empty: never chosen by itself;
                an accelerator is present when its backend finds `device`.
    backend:    name in the entry-point group `specport.backends`; device: its name for the device.
    exact, fast, draft, fallback: runtime properties for exact and fast targets, for drafts, and for
                exact targets where the start-up check finds the default kernels not invariant.
    bf16:       properties added to the first three for INT8 and INT4 weights where the runtime would compute
                in bf16: on processors with AMX, or with bf16 in AVX-512.
    precision, draft_precision: default weight formats of targets and drafts.
    fit_dynamic_group: whether `DYNAMIC_QUANTIZATION_GROUP_SIZE` is chosen to fit a model's INT4 weights; what
                the tables state then holds for other weights.
    emulated:   whether other hardware emulates the device; noted wherever a result is shown.
    symmetric:  whether the device runs only weights without zero points (option `sym`).
    policy, num_draft_tokens: default drafting; None = the policy's own number.
    buckets:    static step widths; empty = any.
    cost:       new tokens -> step time relative to one token, before calibration.
    width_change: extra time of a step whose width differs from the one before, relative to a one-token
                step.
    cost_source: "measured" or "estimate".
    """

    name: str
    description: str
    backend: str
    device: str
    cost: Mapping[int, float]
    cost_source: str
    recognise: Mapping[str, str]
    exact: Mapping[str, Any]
    fast: Mapping[str, Any]
    draft: Mapping[str, Any]
    fallback: Mapping[str, Any]
    bf16: Mapping[str, Any]
    precision: str = "int8"
    draft_precision: str = "int8"
    fit_dynamic_group: bool = False
    emulated: bool = False
    symmetric: bool = False
    policy: str = "planned"
    num_draft_tokens: int | None = None
    width_change: float = 0.0
    buckets: tuple[int, ...] = ()

    @property
    def emulation(self) -> str | None:
        """Return a note for the user where other hardware emulates the device, else None."""
        return (
            f"{self.name} is emulated: its speed says nothing about the real hardware"
            if self.emulated
            else None
        )

    def dynamic_group(self) -> int | None:
        """Return the group of activations that exact targets use; None = the runtime's own."""
        value = self.exact.get(DYNAMIC_GROUP)
        return None if value is None else int(value)

    def fitted(self, folder: Path) -> Profile:
        """Return the profile for the model in `folder`: the group of activations fits its INT4 weights.

        Unchanged without `fit_dynamic_group`, for other weights and for other formats than IR.
        """
        xml = folder / IR_XML
        if not self.fit_dynamic_group or not xml.is_file():
            return self
        group = read_layout(xml).dynamic_group
        return self if group is None else self.with_dynamic_group(group)

    def with_dynamic_group(self, group: int) -> Profile:
        """Return the profile with this group of activations, whatever a model's weights are."""
        tables = ({**table, DYNAMIC_GROUP: group} for table in (self.exact, self.fast, self.draft))
        exact, fast, draft = tables
        return replace(self, exact=exact, fast=fast, draft=draft, fit_dynamic_group=False)

    def mismatch(self, cpu: str) -> str | None:
        """Return a note for the user when the profile does not describe this processor, else None."""
        pattern = self.recognise.get("cpu")
        if pattern is None or processor_pattern.matches(pattern, cpu):
            return None
        return f"profile {self.name} does not describe this processor ({cpu}); its cost figures may not hold"


def list_profiles() -> list[Profile]:
    """Return every profile that comes with specport; the one that runs everywhere comes first."""
    return [load_profile(name) for name in _names()]


def load_profile(name_or_path: str | Path) -> Profile:
    """Return a profile by name, or from a file that ends in .toml.

    Raises DeviceError for an unknown name and for a file with a missing, unknown or wrong entry.
    """
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return _parse(_PROFILE.read(path), str(path))
    if name_or_path not in _names():
        raise DeviceError(
            f"unknown device {str(name_or_path)!r}",
            f"choose one of {', '.join(_names())}, auto, or a profile file; see: specport devices",
        )
    name = f"{name_or_path}.toml"
    data = resources.files("specport.hw_profiles").joinpath(name).read_bytes()
    return _parse(_PROFILE.decode(data, name), name)


def detect(cpu: str | None = None) -> Profile:
    """Return the profile for this machine's processor; xeon where none is more specific."""
    cpu = cpu_name() if cpu is None else cpu
    for profile in list_profiles():
        pattern = profile.recognise.get("cpu")
        if pattern and processor_pattern.matches(pattern, cpu):
            return profile
    return load_profile("xeon")


@cache
def cpu_name() -> str:
    """Return the processor's name as the operating system reports it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found[1].strip()
    except OSError:
        pass
    if sys.platform == "win32":
        import winreg

        path = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, path) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
    return platform.processor() or platform.machine()


@cache
def cpu_flags() -> frozenset[str]:
    """Return the relevant instruction sets where the operating system lists them, else an empty set."""
    wanted = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"}
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    return frozenset(wanted & set(found[1].split())) if found else frozenset()


def usable_cores() -> int:
    """Return how many cores this process may run on: fewer than there are in a container or under taskset."""
    try:
        return len(psutil.Process().cpu_affinity() or ()) or os.cpu_count() or 1
    except (AttributeError, psutil.Error):  # an operating system without it
        return os.cpu_count() or 1


@cache
def _names() -> tuple[str, ...]:
    files = resources.files("specport.hw_profiles").iterdir()
    names = sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml"))
    return tuple(
        sorted(names, key=lambda name: name != "xeon")
    )  # the profile that runs everywhere comes first


_PROPERTIES = ("exact", "fast", "draft", "fallback", "bf16")
_TABLES = ("recognise", *_PROPERTIES, "cost")
_NUMBER = re.compile("[1-9][0-9]{0,4}")
_MOST = 1 << 16  # of tokens in a step
_WHOLE_TOKEN = (1 << 64) - 1  # OpenVINO's group of all activations of a token


_PROFILE = Format(
    Table, "a profile", "see the profiles of specport: specport devices", DeviceError, most_bytes=1 << 18,
    parse=plain_values.from_toml,
)  # fmt: skip


def _parse(raw: Table, where: str) -> Profile:
    def fail(what: str, allowed: str = "") -> DeviceError:
        return DeviceError(f"profile {where}: {what}", allowed)

    kinds: dict[str, type] = {f.name: str for f in fields(Profile)}
    kinds |= dict.fromkeys(_TABLES, dict) | {
        "num_draft_tokens": int,
        "emulated": bool,
        "symmetric": bool,
        "fit_dynamic_group": bool,
        "width_change": float,
        "buckets": list,
    }
    for key, value in raw.items():
        if key not in kinds:
            raise fail(f"unknown entry {key!r}", f"entries are {', '.join(kinds)}")
        if type(value) is not kinds[key]:
            raise fail(f"{key} is {value!r:.200}", f"it must be a {kinds[key].__name__}")
    missing = [
        key for key in ("name", "description", "backend", "device", "cost", "cost_source") if key not in raw
    ]
    if missing:
        raise fail(f"{missing[0]} is missing")
    for key, allowed in (
        ("policy", tuple(POLICIES)),
        ("cost_source", ("measured", "estimate")),
    ):
        if raw.get(key, allowed[0]) not in allowed:
            raise fail(f"{key} is {raw[key]!r}", f"choose one of {', '.join(allowed)}")
    _check_precisions(raw, fail)
    if not 1 <= raw.get("num_draft_tokens", 1) <= _MOST:
        raise fail(f"num_draft_tokens is {raw['num_draft_tokens']}", f"it must be from 1 to {_MOST}")
    if not 0 <= raw.get("width_change", 0.0) < 10:
        raise fail(f"width_change is {raw['width_change']}", "it must be a share of a step, 0 or more")
    buckets = raw.get("buckets", [])
    if not all(type(b) is int and 0 < b <= _MOST for b in buckets) or buckets != sorted(set(buckets)):
        raise fail(f"buckets is {buckets!r:.200}", f"they must be increasing whole numbers from 1 to {_MOST}")
    for table in _PROPERTIES:
        _check_properties(table, raw.get(table, {}), fail)
    _check_recognise(raw.get("recognise", {}), fail)
    tables = {key: raw.get(key, {}) for key in _TABLES}
    return Profile(**{**raw, **tables, "buckets": tuple(buckets), "cost": _cost(raw["cost"], fail)})


def _check_precisions(raw: Mapping[str, Any], fail: Any) -> None:
    for key in ("precision", "draft_precision"):
        try:
            chosen = precisions.parse(raw.get(key, "int8"))
        except InvalidInput as error:
            raise fail(f"{key}: {error.message}", error.hint) from error
        if raw.get("symmetric") and not chosen.symmetric:
            raise fail(f"symmetric is true, but {key} is {chosen}", f"add the option sym: {key} = 'int4:sym'")


def _check_properties(name: str, table: Mapping[str, Any], fail: Any) -> None:
    for key, value in table.items():
        if type(value) not in (str, int, float, bool):
            raise fail(f"{name}.{key} is {value!r:.200}", "it must be a text, a number, true or false")
        if key == DYNAMIC_GROUP and not _is_group(value):
            raise fail(f"{name}.{key} is {value!r:.200}", "it must be a number of activations, or 0")


def _is_group(value: str | float) -> bool:
    """Return whether this is a group of activations, as a number or as OpenVINO's own text."""
    if isinstance(value, str):
        return value == "0" or _NUMBER.fullmatch(value) is not None
    return type(value) is int and (0 <= value <= _MOST or value == _WHOLE_TOKEN)


def _check_recognise(table: Mapping[str, Any], fail: Any) -> None:
    for key, pattern in table.items():
        if key != "cpu":
            raise fail(f"unknown entry recognise.{key}", "the only entry is cpu")
        wrong = processor_pattern.problem(pattern)
        if wrong is not None:
            raise fail(f"recognise.{key} cannot be used: {wrong}", "as in cpu = 'xeon|epyc'")


def _cost(table: Mapping[str, Any], fail: Any) -> dict[int, float]:
    """Parse {"1": 1.0, "8": 1.4} into {1: 1.0, 8: 1.4}. Raises DeviceError where the values decrease."""
    cost: dict[int, float] = {}
    for key, value in table.items():
        if not _NUMBER.fullmatch(key) or type(value) not in (int, float) or not 0 < value < 1e6:
            raise fail(f"cost.{key} is {value!r}", "entries are NEW_TOKENS = TIME_RELATIVE_TO_ONE_TOKEN")
        cost[int(key)] = float(value)
    if cost.get(1) != 1.0 or [*cost] != sorted(cost) or [*cost.values()] != sorted(cost.values()):
        raise fail("cost must start with 1 = 1.0; tokens and times must not decrease")
    return cost
