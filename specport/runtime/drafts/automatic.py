"""The drafters that the draft expression `auto` stands for."""

from __future__ import annotations

from specport.drafters.registry import AUTO, MTP
from specport.drafters.spec import DraftSpec, parse
from specport.errors import ModelError
from specport.models.bundle import registered
from specport.models.shipped import shipped_head
from specport.models.source import ModelFiles
from specport.runtime.stored import tuned


def drafters(kept: tuned.Tuned, files: ModelFiles) -> tuple[DraftSpec, list[str]]:
    """Return what `auto` stands for with a target, and notes for the user.

    That is what `specport tune` chose; else the default with the draft that was built for the target, or with
    the head that comes with this package, or with the model's own weights for multi-token prediction, if any.
    """
    chosen, notes = kept.draft(files)
    if chosen is not None:
        return chosen, notes
    default = parse(AUTO)
    built = registered(files.fingerprint)
    built = built or shipped_head(files.folder, files.name, files.fingerprint, files.source)
    if built:
        return default.with_model(str(built)), notes
    try:
        module = files.own_module
    except ModelError as error:
        return default, [*notes, f"no multi-token prediction: {error}"]
    return (default if module is None else default.with_part(MTP)), notes
