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
    """Hold a loaded target and its drafts, by their names in the draft expression."""

    target: Loaded
    tokenizer: Tokenizer
    drafts: dict[str, tuple[DraftFiles, Loaded]]


def load_together(
    loader: Loader,
    beside: Loader,
    files: ModelFiles,
    spec: DraftSpec,
    draft_precision: str | None,
    exact: bool,
) -> Together:
    """Return the target in `files` and the drafts of `spec`, all ready to step.

    The tokenizer is read while the target is compiled. What a runtime does at a model's first step, such as
    repacking weights, overlaps with loading the next model (`Loaded.prepare`).

    loader, beside: of the target, and of the drafts. Raises SpecportError.
    """
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(load_tokenizer, files.folder)
        target = loader.target_with(files, exact, loader.exit_layer(spec, files))
        tokenizer = reading.result()
        # Alone, a model is prepared by its first step: one more step in advance would save nothing.
        preparing = [pool.submit(target.prepare)] if target.prepare and spec.models else []
        drafts = {}
        for name in spec.models:
            draft, loaded = beside.draft(name, draft_precision, files, tokenizer, target)
            if loaded.prepare:
                preparing.append(pool.submit(loaded.prepare))
            drafts[name] = draft, loaded
        for prepared in preparing:
            prepared.result()
    return Together(target, tokenizer, drafts)
