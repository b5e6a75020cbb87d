"""Load a target with its drafts and its tokenizer, at once where that saves time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from specport.drafters.context import DraftModel
from specport.drafters.spec import DraftSpec
from specport.errors import ModelError
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded
from specport.runtime.drafts.mtp import as_draft, head_of, module_of
from specport.runtime.loading import DraftFiles, Loader
from specport.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Together:
    """Hold a loaded target and its drafts.

    spec:   the draft expression that was loaded.
    drafts: by their names in it, each with the loader that loaded it.
    mtp:    the target's own module for multi-token prediction, where it drafts.
    notes:  messages for the user about what could not be loaded.
    """

    spec: DraftSpec
    target: Loaded
    tokenizer: Tokenizer
    drafts: dict[str, tuple[Loader, DraftFiles, Loaded]]
    mtp: DraftModel | None = None
    notes: tuple[str, ...] = ()


def lacks(target: Loaded, head: ModelFiles | None, module: ModelFiles | None) -> bool:
    """Return whether the backend could not load a target's draft head, or its module, that was asked for."""
    return bool(head and target.model.hidden_head is None) or bool(module and target.model.mtp is None)


def load_together(
    loader: Loader,
    beside: Loader,
    files: ModelFiles,
    spec: DraftSpec,
    draft_precision: str | None,
    exact: bool,
    default: DraftSpec | None = None,
    skipped_layers: tuple[int, ...] = (),
) -> Together:
    """Return the target in `files` and the drafts of `spec`, all ready to step.

    The tokenizer is read while the target is compiled. What a runtime does at a model's first step, such as
    repacking weights, overlaps with loading the next model (`Loaded.prepare`).

    loader, beside: of the target, and of the drafts; a head on the target's hidden states is loaded with it.
    default: taken in place of `spec` where that has such a head and the backend has none, or where the
             target's module for multi-token prediction cannot be used; None = an error.
    skipped_layers: of the target's slim verifier; () = there is none.
    Raises SpecportError.
    """
    notes: list[str] = []
    try:
        module = module_of(spec, files, loader)
    except ModelError as error:
        if default is None:
            raise
        spec, module = default, None
        notes.append(f"no multi-token prediction: {error}")
    head = loader.hidden_head(spec)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(load_tokenizer, files.folder)
        target = loader.target_with(
            files, exact, loader.exit_layer(spec, files), head, mtp=module,
            mtp_tokens=head_of(module, loader), skipped_layers=skipped_layers,
        )  # fmt: skip
        if default is not None and lacks(target, head, module):
            spec, module = default, None
        tokenizer = reading.result()
        with_target = {found.source for found in (head, module) if found is not None and found.bundle}
        others = [name for name in spec.models if name not in with_target]
        # Alone, a model is prepared by its first step: one more step in advance would save nothing.
        preparing = [pool.submit(target.prepare)] if target.prepare and others else []
        drafts = {}
        for name in spec.models:
            place = beside if name in others else loader
            draft, loaded = place.draft(name, draft_precision, files, tokenizer, target)
            if loaded.prepare and loaded is not target:
                preparing.append(pool.submit(loaded.prepare))
            drafts[name] = place, draft, loaded
        for prepared in preparing:
            prepared.result()
    own = module if module is not None and module.bundle is None else None
    mtp = None if own is None else as_draft(own, files, tokenizer, target, loader)
    return Together(spec, target, tokenizer, drafts, mtp, tuple(notes))
