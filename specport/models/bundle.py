"""Draft bundles: a folder with a draft's weights and the manifest `specport.json`, which names its target.

The weights are ordinary IR with the whole head, so that other runtimes can use the folder too. The manifest
lists the tokens that the head is cut to; a backend cuts it when it loads the draft. A recurrent head
(`kinds/recurrent.py`) and an MTP head (`kinds/mtp_head.py`) are no models of their own: they are loaded with
their target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.models import bundle_facts, manifest
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.models.json_file import text_config
from specport.models.kinds.mtp_head import MtpHead
from specport.models.kinds.parallel import Parallel
from specport.models.kinds.recurrent import Recurrent
from specport.models.os_errors import cause
from specport.models.safe_files import UnsafeFile, check_folder
from specport.models.weight_sketch import same, sketch
from specport.outside import Format

BUNDLE_FILE = "specport.json"
FORMAT = 1
_MOST_TOKENS = 1 << 20  # larger than any vocabulary; keeps a damaged file from filling the memory
_REBUILD = "build it again with: specport quantize"


Ranges = tuple[tuple[int, int], ...]  # [first, end) of token ids, ascending


@dataclass(frozen=True)
class Bundle:
    """Hold the facts about a draft. Raises ValueError where a fact is of another type or out of range.

    target, target_shape: name of its target, and `shape` of the target's configuration.
    target_fingerprint:   of the weights that it was measured with; differs at another precision.
    target_sketch:        of the target's weights, the same at any precision (`weight_sketch`); () = unknown.
    tokenizer:  fingerprint of the tokenizer that both share.
    source, precision: model that it was made from, and its weight format.
    layers:     indices of the kept decoder layers, of `num_layers`.
    head:       [first, end) ranges of the token ids that its head keeps; None = all.
    distilled:  how it was distilled (`quantize.train.draft`); empty = it was not.
    measured:   acceptance, times and speed-up, and the conditions of the measurement.
    provenance: command, versions, date.
    parallel:   how it drafts several tokens in one pass; None = token by token.
    recurrent:  shape of a recurrent head on the target's hidden states; None = it is none.
    mtp:        facts about a trained module for multi-token prediction; None = it is none.
    """

    target: str
    target_shape: str
    target_fingerprint: str
    tokenizer: str
    source: str
    precision: str
    layers: tuple[int, ...]
    num_layers: int
    head: Ranges | None = None
    distilled: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    target_sketch: tuple[float, ...] = ()
    parallel: Parallel | None = None
    recurrent: Recurrent | None = None
    mtp: MtpHead | None = None

    def __post_init__(self) -> None:
        check_head(self.head)
        if self.parallel is not None:
            self.parallel.check_head(self.head[-1][1] if self.head else 0)

    @property
    def head_tokens(self) -> tuple[int, ...] | None:
        """The ids that the head keeps, ascending; None = all."""
        return None if self.head is None else expand(self.head)

    @property
    def on_states(self) -> bool:
        """Whether the draft is a head on the target's hidden states, which only runs with its target."""
        return self.recurrent is not None or self.mtp is not None

    @property
    def pays(self) -> bool:
        """Whether the draft was measured to be faster than plain decoding. Only then does `auto` use it."""
        return float(self.measured.get("speed_up", 0.0)) > 1.0

    @property
    def cost(self) -> float | None:
        """Measured seconds of a step in plain steps of the target; None = not measured."""
        found = self.measured.get("cost")
        return None if found is None else float(found)

    @property
    def reach(self) -> tuple[float, ...]:
        """Measured share of drafts accepted to depth 1, 2, ...; () = not measured.

        The last adaptation to the user's own texts counts before the build.
        """
        adapted = self.provenance.get("adapted")
        shares = adapted.get("reach", ()) if isinstance(adapted, Mapping) else ()
        return tuple(float(share) for share in shares or self.measured.get("acceptance_by_depth", ()))

    def check_target(
        self,
        folder: Path,
        name: str,
        fingerprint: str = "",
        mismatch: str | None = None,
    ) -> None:
        """Raise ModelError where the model in `folder` is not the draft's target.

        Another precision or format of the target is accepted.
        fingerprint: of the model's weights.
        mismatch:    how the draft's tokenizer differs from the model's, or None.
        """
        hint = "choose that model, or build a draft for this one with: specport quantize"
        wrong = ""
        if shape(folder) != self.target_shape:
            wrong = "its configuration differs"
        elif fingerprint != self.target_fingerprint and not same(self.target_sketch, sketch(folder)):
            wrong = "its weights differ"
        elif mismatch:
            wrong = f"its tokenizer differs: {mismatch}"
        if wrong:
            raise ModelError(f"the draft was built for {self.target}, not for {name}: {wrong}", hint)


def check_is_model(bundle: Bundle, folder: Path) -> None:
    """Raise ModelError for a head on hidden states, which has no layers to train, adapt or export."""
    if bundle.on_states:
        raise ModelError(
            f"{folder} is a draft head, which only runs with its target",
            "name a draft that is a model of its own; specport quantize head or mtp builds another head",
        )


def shape(folder: Path) -> str:
    """Return a hash of the architecture fields of a model's configuration; the same at every precision."""
    table = text_config(folder)
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    facts = json.dumps({name: table.get(name) for name in names}, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:24]


def write(folder: Path, bundle: Bundle) -> None:
    """Write the manifest, after all other files of `folder`."""
    manifest.write(folder, {"format": FORMAT, **asdict(bundle)}, BUNDLE_FILE)


def read(folder: Path, *, thorough: bool = False) -> Bundle:
    """Return the facts about the bundle in `folder`.

    thorough: hash every file.
    Raises ModelError where the bundle is damaged, is newer than this specport, or has files that are not
    regular.
    """
    path = folder / BUNDLE_FILE
    try:
        check_folder(folder)  # includes files that the manifest does not list, since they are opened by name
    except (UnsafeFile, OSError) as error:
        raise ModelError(f"the draft bundle {folder} cannot be trusted: {error}", _REBUILD) from error
    if wrong := manifest.damage(folder, BUNDLE_FILE, thorough=thorough):
        raise ModelError(f"the draft bundle {folder} is damaged: {wrong}", _REBUILD)
    found = _BUNDLE.of((manifest.read(folder, BUNDLE_FILE) or {}).get("about", {}), str(path))
    bundle_facts.MEASURED.of(found.measured, str(path))
    bundle_facts.DISTILLED.of(found.distilled, str(path))
    bundle_facts.PROVENANCE.of(found.provenance, str(path))
    return found


_BUNDLE = Format(Bundle, "a draft bundle's manifest", _REBUILD, version=FORMAT)


@dataclass(frozen=True)
class _Registered:
    folder: Path


_REGISTERED = Format(_Registered, "the place of a draft")


def register(folder: Path, target_fingerprint: str) -> None:
    """Make `--draft auto` use this bundle with that target from now on. Raises ModelError."""
    path = _registered(target_fingerprint)
    try:
        write_json(path, {"folder": str(folder.resolve())})
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot write {path}: {message}", hint) from error


def registered(target_fingerprint: str) -> Path | None:
    """Return the bundle that was last built for a target, or None where it is missing or damaged."""
    found = _REGISTERED.find(_registered(target_fingerprint))
    try:
        if found is None:
            return None
        read(found.folder)
        return found.folder
    except ModelError:
        return None


def all_registered() -> list[Path]:
    """Return the folders of the usable bundles that `--draft auto` would take, of all targets."""
    fingerprints = [path.stem for path in sorted((cache_root() / "drafts").glob("*.json"))]
    return [folder for fingerprint in fingerprints if (folder := registered(fingerprint)) is not None]


def _registered(target_fingerprint: str) -> Path:
    return cache_root() / "drafts" / f"{target_fingerprint[:24]}.json"


def ranges(tokens: Sequence[int]) -> Ranges:
    """Return ascending ids as [first, end) ranges. A cut vocabulary is mostly one long range."""
    found: list[list[int]] = []
    for token in tokens:
        if found and found[-1][1] == token:
            found[-1][1] = token + 1
        else:
            found.append([token, token + 1])
    return tuple((first, end) for first, end in found)


def check_head(head: Sequence[Sequence[int]] | None) -> None:
    """Raise ValueError where these are not ascending [first, end) ranges of token ids."""
    before = 0
    for first, end in head or ():
        if not before <= first < end <= _MOST_TOKENS:
            raise ValueError(f"[{first}, {end}) is not a range of token ids that comes next")
        before = end


def expand(head: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the ids of [first, end) ranges. Raises ValueError for invalid ranges."""
    check_head(head)
    return tuple(token for first, end in head for token in range(first, end))
