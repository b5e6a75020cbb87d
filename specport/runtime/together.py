"""Load a target with its drafts and its tokenizer, at once where that saves time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from specport.drafters.spec import DraftSpec
from specport.models.source import ModelFiles
from specport.runtime.loading import DraftFiles, Loader
from specport.runtime.registry import Loaded
from specport.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Together:
    """Hold a loaded target and its drafts.

    spec:   the draft expression that was loaded.
    drafts: by their names in it, each with the loader that loaded it.
    """

    spec: DraftSpec
    target: Loaded
    tokenizer: Tokenizer
    drafts: dict[str, tuple[Loader, DraftFiles, Loaded]]


def load_together(
    loader: Loader,
    beside: Loader,
    files: ModelFiles,
    spec: DraftSpec,
    draft_precision: str | None,
    exact: bool,
    default: DraftSpec | None = None,
) -> Together:
    """Return the target in `files` and the drafts of `spec`, all ready to step.

    The tokenizer is read while the target is compiled. What a runtime does at a model's first step, such as
    repacking weights, overlaps with loading the next model (`Loaded.prepare`).

    loader, beside: of the target, and of the drafts; a head on the target's hidden states is loaded with it.
    default: taken in place of `spec` where that has such a head and the backend has none; None = an error.
    Raises SpecportError.
    """
    head = loader.hidden_head(spec)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(load_tokenizer, files.folder)
        target = loader.target_with(files, exact, loader.exit_layer(spec, files), head)
        if head is not None and target.model.hidden_head is None and default is not None:
            spec = default
        tokenizer = reading.result()
        others = [name for name in spec.models if head is None or name != head.source]
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
    return Together(spec, target, tokenizer, drafts)
