"""Draft heads that come with this package, for models that many users run without any option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.models import bundle
from specport.models.fetch import download
from specport.models.kinds import mtp
from specport.models.kinds.recurrent import WEIGHTS
from specport.outside import Format, Table

FOLDER = Path(__file__).parent.parent / "shipped"
ORIGIN = "target_sha256"  # entry of a head's provenance: hash of the file that its target was converted from


def shipped_head(folder: Path, name: str, fingerprint: str, source: str) -> Path | None:
    """Return the shipped head that was built for the target in `folder`; None where there is none.

    name, fingerprint: of the target. source: what the user named; the default model needs no comparison of
    weights. A damaged head counts as none: it is only a way to be faster.
    """
    for path in sorted(FOLDER.glob(f"*/{WEIGHTS}")):
        # Files are hashed only where the head may be the right one.
        if _about(path.parent).get("target_shape") != bundle.shape(folder):
            continue
        try:
            found = bundle.read(path.parent)
            if found.recurrent is None:
                continue
            if source != "default" or found.provenance.get(ORIGIN) != download.SHA256:
                found.check_target(folder, name, fingerprint)
            return path.parent
        except ModelError:
            continue
    return None


def is_head(folder: Path) -> bool:
    """Return whether a folder holds a bundle with a recurrent head, by its manifest, which is not checked."""
    return (folder / WEIGHTS).is_file() and _about(folder).get("recurrent") is not None


def is_mtp_head(folder: Path) -> bool:
    """Return whether a folder holds a bundle with an MTP head, by its manifest, which is not checked."""
    return (folder / mtp.JOIN).is_file() and _about(folder).get("mtp") is not None


def _about(folder: Path) -> Mapping[str, Any]:
    """Return what a manifest says, unchecked; empty where there is none."""
    found = _MANIFEST.find(folder / bundle.BUNDLE_FILE)
    return {} if found is None else found.about


@dataclass(frozen=True)
class _Manifest:
    about: Table


_MANIFEST = Format(_Manifest, "a manifest")
