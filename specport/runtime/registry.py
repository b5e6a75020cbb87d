"""Backends: how they are found, what they say of this machine, and how one is asked for a model.

A backend registers an object in the entry-point group `specport.backends`. SPECPORT_BACKENDS, a list
of names with commas between them, restricts which are loaded; empty means none.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from specport.core.ports import Model
from specport.errors import DeviceError
from specport.runtime.profiles import Profile, cpu_flags

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

GROUP = "specport.backends"
Weights = Literal["ir", "huggingface"]


@dataclass(frozen=True)
class DeviceStatus:
    """Whether a profile's device can be used here; if not, why, and what would mend it."""

    profile: str
    backend: str
    device: str
    available: bool
    reason: str = ""
    remedy: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadOptions:
    """How a backend is to load a model.

    role:          a draft may round as it likes; a target in exact mode may not.
    threads:       None = the runtime's own choice.
    hidden_layers: layers whose hidden states every step returns.
    head_tokens:   ids the language-model head is cut to; None = all. A backend that cannot cut heads
                   loads the whole one, and `Loaded.head_tokens` says so.
    max_context:   a smaller limit than the model's own; None = the model's.
    exit_layer:    layers after which the model may exit early to draft for itself (`EarlyExitModel`); 0 =
                   none. A backend that cannot loads a model whose capabilities say 0.
    """

    profile: Profile
    role: Literal["target", "draft"] = "target"
    exact: bool = True
    threads: int | None = None
    hidden_layers: tuple[int, ...] = ()
    head_tokens: tuple[int, ...] | None = None
    max_context: int | None = None
    exit_layer: int = 0


@dataclass(frozen=True)
class Loaded:
    """A loaded model.

    key:   names everything that decides how fast its steps are: runtime, processor, weights, settings.
           Measured costs are kept under it; "" = they cannot be kept.
    notes: what the user should know about how it was loaded.
    head_tokens: the ids behind the columns of the logits; None = every id, in order.
    """

    model: Model
    notes: tuple[str, ...] = ()
    key: str = ""
    head_tokens: tuple[int, ...] | None = None


def settings_key(options: LoadOptions, **facts: object) -> str:
    """A `Loaded.key` of everything that decides which kernels run. facts: what the backend knows of it."""
    head = options.head_tokens
    facts |= {
        "instructions": sorted(cpu_flags()),  # virtual machines of one name differ in them
        "head": head and zlib.crc32(np.asarray(head, np.int64).tobytes()),
        "hidden": options.hidden_layers,
        **({"exit": options.exit_layer} if options.exit_layer else {}),
    }
    text = "\n".join(f"{name}={value}" for name, value in sorted(facts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Backend(Protocol):
    """What stands behind an entry point."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> Weights:
        """What it loads: a folder with OpenVINO IR, or a Hugging Face folder with safetensors."""
        ...

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        """One status for each of these profiles; all of them name this backend. Must not raise."""
        ...

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        """Raises ModelError or DeviceError."""
        ...


@dataclass(frozen=True)
class BrokenBackend:
    """An entry point that could not be loaded. It is listed, and never breaks the others."""

    name: str
    reason: str
    weights: Weights = "huggingface"

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        return [DeviceStatus(p.name, self.name, p.device, False, self.reason) for p in profiles]

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        raise DeviceError(f"backend {self.name} cannot be loaded: {self.reason}")


def backends() -> dict[str, Backend]:
    """Every registered backend by name, as far as SPECPORT_BACKENDS allows."""
    allowed = os.environ.get("SPECPORT_BACKENDS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    found: dict[str, Backend] = {}
    for point in entry_points(group=GROUP):
        if names is not None and point.name not in names:
            continue
        try:
            found[point.name] = point.load()
        except Exception as error:  # third-party code: whatever it raises, the listing goes on
            found[point.name] = BrokenBackend(point.name, f"{type(error).__name__}: {error}")
    return found


def statuses(profiles: Sequence[Profile]) -> list[DeviceStatus]:
    """One status for each profile, in their order."""
    available = backends()
    by_name: dict[str, DeviceStatus] = {}
    for name in dict.fromkeys(profile.backend for profile in profiles):
        own = [profile for profile in profiles if profile.backend == name]
        if name in available:
            by_name |= {status.profile: status for status in available[name].probe(own)}
        else:
            reason = f"backend {name} is not installed or is left out by SPECPORT_BACKENDS"
            by_name |= {p.name: DeviceStatus(p.name, name, p.device, False, reason) for p in own}
    return [by_name[profile.name] for profile in profiles]


def backend_for(profile: Profile) -> Backend:
    """The backend of a profile whose device can be used. Raises DeviceError with what would mend it."""
    (status,) = statuses([profile])
    if not status.available:
        raise DeviceError(
            f"device {profile.name} cannot be used: {status.reason}",
            status.remedy or "see: specport devices",
        )
    return backends()[profile.backend]
