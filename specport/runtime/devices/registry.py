"""Find backends, query them about this machine, and define how to ask one for a model.

A backend registers an object in the entry-point group `specport.backends`. SPECPORT_BACKENDS, a list of
names separated by commas, restricts which are loaded; an empty value means none.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from specport.core.block import Block
from specport.core.ports import Model, Row
from specport.errors import DeviceError, SpecportError
from specport.progress import Progress, silent
from specport.runtime.devices.profiles import Profile, cpu_flags

if TYPE_CHECKING:
    from specport.models.kinds.pipo import Pairs
    from specport.models.source import ModelFiles

GROUP = "specport.backends"
Weights = Literal["ir", "huggingface"]


@dataclass(frozen=True)
class DeviceStatus:
    """Hold whether a profile's device can be used here; if not, the reason and the fix."""

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

    role:          a draft may round in any way; a target in exact mode may not.
    threads:       None = the runtime's own choice.
    hidden_layers: layers whose hidden states a step can return.
    hidden_head:   bundle of a recurrent head that drafts from these states (`Model.hidden_head`); a backend
                   without support loads a model without it.
    mtp:           the target's own module for multi-token prediction (`Model.mtp`), from `models.kinds.mtp`;
                   a backend without support loads a model without it.
    mtp_tokens:    ids that the module's head is cut to; None = all.
    head_tokens:   ids that the language-model head is cut to; None = all. A backend that cannot cut heads
                   loads the whole head, and `Loaded.head_tokens` is None.
    max_context:   a smaller limit than the model's own; None = the model's.
    exit_layer:    number of layers after which the model may exit early to draft for itself
                   (`Model.early_exit`); 0 = none. A backend without support loads a model without an exit.
    skipped_layers: layers that the model's slim verifier does without (`Model.slim`); () = there is none. A
                   backend without support loads a model without one.
    cache_bytes:   most memory of the key/value cache; None = a share of free memory
                   (`memory.default_share`).
    pairs:         of a pair model, whose decoder this is: its ids are pairs of tokens (`models.kinds.pipo`).
                   None = any other model.
    progress:      told of what takes long.
    """

    profile: Profile
    role: Literal["target", "draft"] = "target"
    exact: bool = True
    threads: int | None = None
    hidden_layers: tuple[int, ...] = ()
    hidden_head: ModelFiles | None = None
    mtp: ModelFiles | None = None
    mtp_tokens: tuple[int, ...] | None = None
    head_tokens: tuple[int, ...] | None = None
    max_context: int | None = None
    exit_layer: int = 0
    skipped_layers: tuple[int, ...] = ()
    cache_bytes: int | None = None
    pairs: Pairs | None = None
    progress: Progress = field(default=silent, compare=False)


class CrossAttention(Protocol):
    """Read what tokens attend to in an encoder's output."""

    def __call__(
        self, conditioning: NDArray[np.float32], tokens: Sequence[int], heads: Sequence[tuple[int, int]]
    ) -> NDArray[np.float32]:
        """Return [heads, tokens, frames] the weights of these (layer, head)."""
        ...


@dataclass(frozen=True)
class Speech:
    """Hold what a speech model has beside its decoder, which is `Loaded.model`.

    encode:    turns features [mels, 2 frames] into states [frames, width]: the decoder's conditioning.
    attention: of the decoder to such states.
    key:       hash of the encoder's weights; a draft with an equal one takes the target's states.
    """

    encode: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    attention: CrossAttention
    key: str


@dataclass(frozen=True)
class Loaded:
    """Hold a loaded model.

    key:   names everything that decides how fast its steps are: runtime, processor, weights, settings.
           Measured costs are stored under it; "" = they cannot be stored.
    notes: messages for the user about how it was loaded.
    head_tokens: the token id of each column of the logits; None = every id, in order.
    prepare: does what the runtime would do at the first step, such as repacking weights, which takes seconds.
           The caller may run it in another thread while it loads other models. None = there is nothing to do.
    speech: of a speech model; None = a text model.
    """

    model: Model
    notes: tuple[str, ...] = ()
    key: str = ""
    head_tokens: tuple[int, ...] | None = None
    prepare: Callable[[], None] | None = field(default=None, compare=False)
    speech: Speech | None = field(default=None, compare=False)


def first_step(model: Model) -> None:
    """Step a model once and discard the result: `Loaded.prepare` of runtimes that repack weights then."""
    handle = model.open()
    try:
        model.step([Row(handle, Block.chain((0,)), logits="last")])
    finally:
        model.close(handle)


def settings_key(options: LoadOptions, **facts: object) -> str:
    """Return a `Loaded.key` that covers everything that decides which kernels run.

    facts: what the backend knows of it.
    """
    head = options.head_tokens
    facts |= {
        "instructions": sorted(cpu_flags()),  # virtual machines with the same processor name differ in them
        "head": head and zlib.crc32(np.asarray(head, np.int64).tobytes()),
        "hidden": options.hidden_layers,
        **({"exit": options.exit_layer} if options.exit_layer else {}),
        **({"skipped": options.skipped_layers} if options.skipped_layers else {}),
    }
    text = "\n".join(f"{name}={value}" for name, value in sorted(facts.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Backend(Protocol):
    """The object behind an entry point."""

    @property
    def name(self) -> str: ...

    @property
    def weights(self) -> Weights:
        """The format that it loads: "ir" for OpenVINO IR, "huggingface" for a folder with safetensors."""
        ...

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        """Return one status for each of these profiles, which all name this backend. Must not raise."""
        ...

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        """Return the loaded model. Raises ModelError or DeviceError."""
        ...


# What code of other packages may raise; what it does must not end or break the rest.
_ANYTHING = (Exception, SystemExit)


@dataclass(frozen=True)
class GuardedBackend:
    """Call a backend of another package, and name it where it fails."""

    name: str
    weights: Weights
    own: Backend

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        try:
            found = {s.profile: s for s in self.own.probe(profiles) if isinstance(s, DeviceStatus)}
        except _ANYTHING as error:
            return BrokenBackend(self.name, _reason(error)).probe(profiles)
        unknown = BrokenBackend(self.name, "its backend says nothing of it").probe(profiles)
        return [found.get(status.profile, status) for status in unknown]

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        try:
            loaded = self.own.load(files, options)
        except SpecportError:
            raise
        except _ANYTHING as error:
            raise DeviceError(f"backend {self.name} cannot load {files.name}: {_reason(error)}") from error
        if not isinstance(loaded, Loaded):
            raise DeviceError(f"backend {self.name} gives a {type(loaded).__name__} for a loaded model")
        return loaded


def _guarded(name: str, backend: Any) -> Backend:
    """Return a backend of another package for use. Raises TypeError for an object that is none."""
    if not (callable(getattr(backend, "probe", None)) and callable(getattr(backend, "load", None))):
        raise TypeError(f"a {type(backend).__name__} is no backend")
    weights: Any = getattr(backend, "weights", None)
    if weights not in get_args(Weights):
        raise TypeError(f"it loads weights {weights!r:.100}, not {' or '.join(get_args(Weights))}")
    return GuardedBackend(name, weights, backend)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class BrokenBackend:
    """Stand for an entry point that could not be loaded, so that it is listed without breaking the others."""

    name: str
    reason: str
    weights: Weights = "huggingface"

    def probe(self, profiles: Sequence[Profile]) -> list[DeviceStatus]:
        return [DeviceStatus(p.name, self.name, p.device, False, self.reason) for p in profiles]

    def load(self, files: ModelFiles, options: LoadOptions) -> Loaded:
        raise DeviceError(f"backend {self.name} cannot be loaded: {self.reason}")


def backends() -> dict[str, Backend]:
    """Return every registered backend by name, as far as SPECPORT_BACKENDS allows."""
    allowed = os.environ.get("SPECPORT_BACKENDS")
    names = None if allowed is None else {name.strip() for name in allowed.split(",")}
    found: dict[str, Backend] = {}
    for point in entry_points(group=GROUP):
        if names is not None and point.name not in names:
            continue
        try:
            backend = point.load()
            own = point.value.startswith("specport.")
            found[point.name] = backend if own else _guarded(point.name, backend)
        except _ANYTHING as error:
            found[point.name] = BrokenBackend(point.name, _reason(error))
    return found


def statuses(profiles: Sequence[Profile]) -> list[DeviceStatus]:
    """Return one status for each profile, in their order."""
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
    """Return the backend of a profile. Raises DeviceError with the fix where its device cannot be used."""
    (status,) = statuses([profile])
    if not status.available:
        raise DeviceError(
            f"device {profile.name} cannot be used: {status.reason}",
            status.remedy or "see: specport devices",
        )
    return backends()[profile.backend]
