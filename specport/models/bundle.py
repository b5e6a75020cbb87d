"""Draft bundles: a folder with a draft's weights and `specport.json`, which says what it was built for.

The weights are ordinary IR with the whole head, so that other runtimes can use the folder as well; which
tokens the head is cut to stands in the manifest, and a backend cuts it when it loads the draft.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.models import manifest
from specport.models.atomic import write_json
from specport.models.cache import cache_root
from specport.models.os_errors import cause
from specport.models.safe_files import UnsafeFile, check_folder
from specport.models.weight_sketch import same, sketch
from specport.text.tokenizer import Tokenizer, load_tokenizer, read_json

BUNDLE_FILE = "specport.json"
FORMAT = 1
_MOST_TOKENS = 1 << 24  # no vocabulary is larger: a damaged file must not fill the memory
_REBUILD = "build it again with: specport quantize"


@dataclass(frozen=True)
class Bundle:
    """What is known of a draft.

    target, target_shape: name of the model it drafts for, and `shape` of that model's configuration.
    target_fingerprint:   of the very weights that it was measured with: other at another precision.
    target_sketch:        of the target's weights, the same at any precision (`weight_sketch`); () = unknown.
    tokenizer:  fingerprint of the tokenizer that both speak.
    source, precision: what it was made from, and its weights' format.
    layers:     decoder layers that were kept, of `num_layers`.
    head:       [first, end) ranges of the token ids that its head keeps; None = all.
    distilled:  how it was healed; empty = not at all.
    measured:   acceptance, times and speed-up, and on what.
    provenance: command, versions, date.
    """

    target: str
    target_shape: str
    target_fingerprint: str
    tokenizer: str
    source: str
    precision: str
    layers: tuple[int, ...]
    num_layers: int
    head: tuple[tuple[int, int], ...] | None = None
    distilled: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    target_sketch: tuple[float, ...] = ()

    @property
    def head_tokens(self) -> tuple[int, ...] | None:
        """The ids that the head keeps, rising; None = all."""
        return None if self.head is None else expand(self.head)

    @property
    def pays(self) -> bool:
        """Whether it was measured to be faster than plain decoding: only then does `auto` use it."""
        return float(self.measured.get("speed_up", 0.0)) > 1.0

    @property
    def reach(self) -> tuple[float, ...]:
        """Measured share of its drafts that were accepted to depth 1, 2, ...; () = not measured."""
        return tuple(float(share) for share in self.measured.get("acceptance_by_depth", ()))

    def check_target(self, folder: Path, name: str, fingerprint: str = "", own: Path | None = None) -> None:
        """Raise ModelError where the model in `folder` is not the one that the draft was built for.

        Another precision or format of that model will do. fingerprint: of the model's weights. own: the
        draft's folder, whose tokenizer decides where the target's is another than at the build: vocabularies
        of one model may be padded differently (`Tokenizer.mismatch`).
        """
        hint = "choose that model, or build a draft for this one with: specport quantize"
        wrong = ""
        if shape(folder) != self.target_shape:
            wrong = "its configuration is another"
        elif fingerprint != self.target_fingerprint and not same(self.target_sketch, sketch(folder)):
            wrong = "its weights are others"
        elif own is not None and (different := self._speaks_another(own, load_tokenizer(folder))):
            wrong = f"its tokenizer is another: {different}"
        if wrong:
            raise ModelError(f"the draft was built for {self.target}, not for {name}: {wrong}", hint)

    def _speaks_another(self, own: Path, target: Tokenizer) -> str | None:
        """Return why the target's tokenizer cannot be the one of the build, or None."""
        if target.fingerprint == self.tokenizer:
            return None
        return load_tokenizer(own).mismatch(target)


def shape(folder: Path) -> str:
    """Hash of what the configuration says of a model's form; the same at every precision."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    table = {**config, **text} if isinstance(text, dict) else config
    names = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    facts = json.dumps({name: table.get(name) for name in names}, sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:24]


def write(folder: Path, bundle: Bundle) -> None:
    """Write the manifest, last of all files of `folder`."""
    manifest.write(folder, {"format": FORMAT, **asdict(bundle)}, BUNDLE_FILE)


def read(folder: Path, *, thorough: bool = False) -> Bundle:
    """Return what is known of the bundle in `folder`.

    Raises ModelError where it is damaged (thorough: hash every file), newer than this specport, or has files
    that are no regular ones.
    """
    path = folder / BUNDLE_FILE
    try:
        check_folder(folder)  # those too that the manifest does not name: they are opened by name
    except (UnsafeFile, OSError) as error:
        raise ModelError(f"the draft bundle {folder} cannot be trusted: {error}", _REBUILD) from error
    if wrong := manifest.damage(folder, BUNDLE_FILE, thorough=thorough):
        raise ModelError(f"the draft bundle {folder} is damaged: {wrong}", _REBUILD)
    about = dict((manifest.read(folder, BUNDLE_FILE) or {}).get("about", {}))
    version = about.pop("format", None)
    if isinstance(version, int) and version > FORMAT:
        raise ModelError(f"{path} is of format {version}; this specport reads {FORMAT}", "update specport")
    try:
        about["target_sketch"] = tuple(float(value) for value in about.get("target_sketch", ()))
        about["layers"] = tuple(int(layer) for layer in about["layers"])
        about["head"] = about["head"] and tuple((int(a), int(b)) for a, b in about["head"])
        bundle = Bundle(**about)
        if not isinstance(bundle.measured, Mapping):
            raise TypeError(f"what was measured is {bundle.measured!r}")
        if bundle.head is not None:
            expand(bundle.head)
        if not all(0.0 <= share <= 1.0 for share in bundle.reach):
            raise ValueError(f"{bundle.reach} are no shares")
        return bundle
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is no draft bundle's manifest: {error}", _REBUILD) from error


def register(folder: Path, target_fingerprint: str) -> None:
    """From now on `--draft auto` uses this bundle beside that target. Raises ModelError."""
    path = _registered(target_fingerprint)
    try:
        write_json(path, {"folder": str(folder.resolve())})
    except OSError as error:
        message, hint = cause(error)
        raise ModelError(f"cannot write {path}: {message}", hint) from error


def registered(target_fingerprint: str) -> Path | None:
    """The bundle that was last built for a target, where it is still there and whole."""
    try:
        stored = json.loads(_registered(target_fingerprint).read_text(encoding="utf-8"))
        folder = Path(stored["folder"])
        read(folder)
        return folder
    except (OSError, ValueError, KeyError, TypeError, ModelError):
        return None


def _registered(target_fingerprint: str) -> Path:
    return cache_root() / "drafts" / f"{target_fingerprint[:24]}.json"


def ranges(tokens: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Rising ids as [first, end) ranges: a cut vocabulary is mostly one long one."""
    found: list[list[int]] = []
    for token in tokens:
        if found and found[-1][1] == token:
            found[-1][1] = token + 1
        else:
            found.append([token, token + 1])
    return tuple((first, end) for first, end in found)


def expand(head: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The ids of [first, end) ranges. Raises ValueError for ranges that mean nothing."""
    tokens: list[int] = []
    for first, end in head:
        if not 0 <= int(first) < int(end) <= _MOST_TOKENS:
            raise ValueError(f"[{first}, {end}) is no range of token ids")
        tokens.extend(range(int(first), int(end)))
    return tuple(tokens)
