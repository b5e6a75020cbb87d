"""See what is at hand to make a model faster here: weight formats, draft models, an early exit.

Nothing is downloaded, converted or measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.errors import SpecportError
from specport.models import cache
from specport.models.bundle import BUNDLE_FILE, registered
from specport.models.folder_checks import IR_BIN, IR_XML
from specport.models.json_file import TOKENIZER_FILE
from specport.models.kinds import mtp
from specport.models.precision import parse
from specport.models.shipped import is_head, is_mtp_head, shipped_head
from specport.models.source import ModelFiles, original
from specport.outside.places import expanded
from specport.quantize.train.layerskip import about as layerskip
from specport.runtime.devices.profiles import Profile
from specport.runtime.loading import Loader
from specport.runtime.stored.tuned import lasting
from specport.text.tokenizer import Tokenizer, load_tokenizer

NAMED, REGISTERED, SHIPPED = "named", "built for this model", "comes with specport"
CACHED, BUILT = "in the cache", "built by tune"
_SMALLER = 0.7  # a draft's files are at most this share of the target's
# Beside the device's own, those with as many bits or more: fewer bits never keep the quality.
_FORMATS = ("int8", "int4", "int4:128", "int4:channel")
_BITS = {"int4": 4, "int8": 8, "fp16": 16, "bf16": 16, "fp32": 32}


@dataclass(frozen=True)
class Sibling:
    """Hold a model that may draft.

    alias: its name in methods. model: as `--draft` takes it, from any folder. why: how it was found.
    """

    alias: str
    name: str
    model: str
    why: str

    @property
    def head(self) -> bool:
        """Whether it is a head on the target's hidden states, which is loaded with the target."""
        return is_head(Path(self.model)) or is_mtp_head(Path(self.model))


def sibling(model: str, name: str, why: str) -> Sibling:
    """Return a model that may draft; its alias is always the same, as results are kept under it."""
    return Sibling(f"draft-{hashlib.sha256(model.encode()).hexdigest()[:6]}", name, model, why)


def is_ready(spec: str | None, precision: str, weights: str) -> bool:
    """Return whether a model can be loaded without a download or a conversion."""
    wanted, name = str(parse(precision)), "default" if spec is None else spec
    path = expanded(name)
    if name != "default" and path.is_dir():
        if (path / IR_XML).is_file():
            return weights == "ir"
        if weights == "huggingface" and (path / TOKENIZER_FILE).is_file() and any(path.glob("*.safetensors")):
            return True
    return any(
        entry.about.get("precision") == wanted
        and _same(str(entry.about.get("source")), name)
        and any(entry.folder.glob("*.safetensors")) == (weights == "huggingface")
        for entry in cache.entries()
    )


def formats(spec: str | None, profile: Profile, weights: str) -> tuple[str, ...]:
    """Return the weight formats to compare, the device's own first; () where a model comes in one only."""
    if weights != "ir":
        return ()
    path = expanded(spec or "default")
    if spec not in (None, "default") and (path / IR_XML).is_file():
        return ()
    own = parse(profile.precision)
    sym = [f"{name}{',' if ':' in name else ':'}sym" for name in _FORMATS]
    others = [parse(name) for name in (sym if profile.symmetric else _FORMATS)]
    fit = [each for each in others if each != own and _BITS[each.base] >= _BITS[own.base]]
    return tuple(map(str, (own, *fit)))


def half_gb(folder: Path, precision: str) -> float:
    """Return the gigabytes that a model would take with 16-bit weights, by the size of its files."""
    return _size(folder) * 16 / _BITS[parse(precision).base] / 1e9


def siblings(
    named: Sequence[str], files: ModelFiles, tokenizer: Tokenizer, loader: Loader
) -> tuple[Sibling, ...]:
    """Return the models that may draft for this target: named ones, its registered draft, and the cache's."""
    found: dict[str, Sibling] = {}

    def add(model: str, name: str, why: str) -> None:
        if model not in found:
            found[model] = sibling(model, name, why)

    for model in named:
        add(lasting(model), Path(model).name, NAMED)
    if (bundle := registered(files.fingerprint)) is not None:
        add(str(bundle.resolve()), bundle.name, REGISTERED)
    if (head := shipped_head(files.folder, files.name, files.fingerprint, files.source)) is not None:
        add(str(head.resolve()), head.name, SHIPPED)
    taken = {str(each.model) for each in found.values()}
    for entry in _cached(files, tokenizer, loader):
        if not any(_same(str(entry.about.get("source")), model) for model in taken):
            add(str(entry.folder.resolve()), str(entry.about["name"]), CACHED)
    return tuple(found.values())


def _cached(files: ModelFiles, tokenizer: Tokenizer, loader: Loader) -> Iterator[cache.Entry]:
    """Yield smaller models of the cache with the target's tokenizer; of each the best weight format."""
    limit = _SMALLER * _size(files.folder)
    wanted = str(parse(loader.profile.draft_precision))
    chosen: dict[str, cache.Entry] = {}
    for entry in cache.entries():
        about: Mapping[str, Any] = entry.about
        name = str(about.get("name", ""))
        ir = (entry.folder / IR_XML).is_file()
        if not name or name == files.name or ir != (loader.backend.weights == "ir"):
            continue
        if (entry.folder / mtp.JOIN).is_file():  # a part of a model
            continue
        if not 0 < _size(entry.folder) <= limit or not _fits(entry.folder, tokenizer):
            continue
        if name not in chosen or about.get("precision") == wanted:
            chosen[name] = entry
    yield from chosen.values()


def exits_early(spec: str | None) -> bool:
    """Return whether a model was trained to exit early (`specport quantize layerskip`)."""
    return spec is not None and (expanded(spec) / layerskip.NAME).is_file()


def predicts_more(folder: Path | None) -> bool:
    """Return whether a Hugging Face folder has weights for multi-token prediction that can be used."""
    try:
        return folder is not None and folder.is_dir() and mtp.find(folder) is not None
    except SpecportError:
        return False


def trainable(spec: str | None) -> bool:
    """Return whether the weights that a draft could be trained from are at hand."""
    if spec is not None and (expanded(spec) / BUNDLE_FILE).is_file():
        return True
    if not (spec in (None, "default") or expanded(spec or "").exists()):
        return False  # a hub id: it would be downloaded
    try:
        return spec in (None, "default") or original(spec).exists()
    except SpecportError:
        return False


def _fits(folder: Path, tokenizer: Tokenizer) -> bool:
    try:
        return not load_tokenizer(folder).mismatch(tokenizer)
    except (SpecportError, OSError, ValueError):
        return False


def _size(folder: Path) -> int:
    """Return the bytes of a folder's weights."""
    files = [folder / IR_BIN] if (folder / IR_BIN).is_file() else [*folder.glob("*.safetensors")]
    return sum(file.stat().st_size for file in files)


def _same(one: str, other: str) -> bool:
    """Return whether two names of models mean the same."""
    return one == other or lasting(one) == lasting(other)
