"""What the suite loads on the device: a target and its draft."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specport.conformance import tiny
from specport.errors import DeviceError
from specport.loading import Loader
from specport.models.source import ModelFiles
from specport.registry import Loaded

MAX_CONTEXT = 1024  # a larger model is tested up to here


@dataclass(frozen=True)
class Pair:
    """files: the target's; tiny: whether it is the suite's own model, of which more is known."""

    loader: Loader
    files: ModelFiles
    target: Loaded
    draft: Loaded
    tiny: bool


def load(device: str, model: str | None, draft: str | None, folder: Path) -> Pair:
    """The models that are named; where none is, the tiny ones, which are written below `folder`.

    A model that comes without a draft drafts for itself. Raises SpecportError.
    """
    loader = Loader.on(device, max_context=MAX_CONTEXT)
    spec = model
    if spec is None:
        own_target, own_draft = tiny.write(folder)
        spec, draft = str(own_target), draft or str(own_draft)
    try:
        files, target = loader.target(spec, None, True)
    except DeviceError:  # a device without an exact mode: what needs one is skipped
        files, target = loader.target(spec, None, False)
    found = loader.draft_with(loader.draft_files(draft or spec, None, files), None)
    return Pair(loader, files, target, found, model is None)
