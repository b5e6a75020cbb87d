"""Weight formats that are compared: converted, each with the group of activations that fits it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from specport.errors import InvalidInput, ModelError
from specport.models.folder_checks import IR_BIN, IR_XML
from specport.models.int4_layout import read_layout
from specport.models.precision import parse
from specport.models.source import ModelFiles
from specport.progress import Progress, part
from specport.runtime.caches.memory import free_bytes
from specport.runtime.devices.profiles import Profile
from specport.runtime.loading import Loader

FIT, ROW = "fit", "row"
_MEMORY_OVER_FILE = 3.0  # memory of a loaded model, with weights repacked for the kernels, over its file size


@dataclass(frozen=True)
class Format:
    """One weight format with one group of activations.

    loader: loads `files` with that group.
    dynamic_group: activations that share a scale; None = the runtime's own choice.
    """

    files: ModelFiles
    loader: Loader
    dynamic_group: int | None

    @property
    def name(self) -> str:
        return self.files.precision

    @property
    def size(self) -> int:
        """Return the size of the weights' files in bytes."""
        return sum((self.files.folder / file).stat().st_size for file in (IR_XML, IR_BIN))


def loader_on(device: str, threads: int | None, dynamic_groups: Sequence[str]) -> Loader:
    """Return a loader for a device whose weights are compressed by conversion.

    Raises InvalidInput for another device, and for a group of activations that cannot be read.
    """
    for group in dynamic_groups:
        if group not in (FIT, ROW) and not re.fullmatch(r"[1-9]\d{0,6}|0", group):
            raise InvalidInput(
                f"{group!r} is no group of activations",
                f"give a number, {FIT} (what fits the weights) or {ROW} (the narrowest whole row)",
            )
    loader = Loader.on(device, threads)
    if loader.backend.weights != "ir":
        raise InvalidInput(
            f"{loader.profile.name} runs no compressed weights, so that there is nothing to compare",
            "choose a device that runs on OpenVINO, as --device xeon",
        )
    return loader


def distinct(loader: Loader, precisions: Sequence[str]) -> list[str]:
    """Return the names of these formats without repetitions. Raises InvalidInput for what cannot be run."""
    names = [*dict.fromkeys(str(parse(name)) for name in precisions)]
    for name in names:
        loader.check_precision(name)
    return names


def formats(loader: Loader, files: Sequence[ModelFiles], groups: Sequence[str] = ()) -> list[Format]:
    """Return each file with each group of activations, without repetitions; no groups = what fits."""
    found: dict[tuple[str, int | None], Format] = {}
    for each in files:
        for group in groups or (FIT,):
            profile = _with_group(loader.profile, each, group)
            made = Format(each, replace(loader, profile=profile), profile.dynamic_group())
            found.setdefault((made.name, made.dynamic_group), made)
    return [*found.values()]


def _with_group(profile: Profile, files: ModelFiles, group: str) -> Profile:
    if group == FIT:
        return profile.fitted(files.folder)
    if group != ROW:
        return profile.with_dynamic_group(int(group))
    widest = read_layout(files.folder / IR_XML).widest_dynamic_group
    return profile.fitted(files.folder) if widest is None else profile.with_dynamic_group(widest)


def converted(loader: Loader, spec: str | None, names: Sequence[str], progress: Progress) -> list[ModelFiles]:
    """Return the model's files at each precision. Raises ModelError where it comes in one precision only."""
    found = []
    for number, name in enumerate(names):
        files = replace(loader, progress=share(progress, name, number, len(names))).files(spec, name)
        if files.bundle or files.precision != name:
            raise ModelError(
                f"{spec} holds converted weights only",
                "name the GGUF file or Hugging Face folder that it was converted from",
            )
        found.append(files)
    return found


def share(progress: Progress, name: str, number: int, count: int) -> Progress:
    """Return the progress of one of several items, labelled with its name."""
    own = part(progress, number / count, (number + 1) / count)
    return lambda what, done: own(f"{name}: {what}", done)


def fit_together(formats: Sequence[Format]) -> bool:
    """Return whether all these models may be loaded at once, with half of the free memory left."""
    return _MEMORY_OVER_FILE * sum(each.size for each in formats) < free_bytes() / 2
