"""Load a diffusion model, and a smaller one that drafts for it, by their names."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from specport.diffusion.engine import DiffusionEngine
from specport.diffusion.layout import num_rows
from specport.diffusion.options import DiffusionOptions
from specport.diffusion.ports import DiffusionModel
from specport.drafters.registry import AUTO, MODEL, NONE
from specport.drafters.spec import parse
from specport.errors import InvalidInput, ModelError
from specport.models.kinds.diffusion import find_facts
from specport.models.source import ModelFiles, located
from specport.outside.places import expanded
from specport.progress import Progress, silent
from specport.runtime.loading import Loader
from specport.text.tokenizer import Tokenizer, load_beside, load_tokenizer

_MOST_ROWS = 2048  # of a step: their mask has the square of it
# Values of arguments of `specport.load` that ask for nothing.
_UNSET: dict[str, tuple[Any, ...]] = {
    "exact": (True,), "branches": ((),), "acceptance": ("rejection",), "prefix_cache": (True, False),
    "prefix_cache_size": ("4GB",), "verify": ("lossless",), "lossy": (True, False),
}  # fmt: skip


@dataclass(frozen=True)
class LoadedDiffusion:
    """Hold an engine with what a pipeline tells of it.

    notes: messages for the user. lossy: as in `Pipeline`.
    """

    engine: DiffusionEngine
    tokenizer: Tokenizer
    name: str
    device: str
    notes: list[str]
    lossy: str = ""


def is_diffusion(model: str | None, progress: Progress = silent) -> bool:
    """Return whether a name is that of a diffusion model; one from a hub is downloaded. Raises ModelError."""
    if model is None:
        return False
    path = expanded(model)
    if not path.exists() and "/" in model:
        path = located(model, progress)
    return path.is_dir() and find_facts(path) is not None


def load(
    model: str,
    options: DiffusionOptions,
    *,
    draft: str = AUTO,
    device: str = "auto",
    draft_device: str | None = None,
    precision: str | None = None,
    draft_precision: str | None = None,
    threads: int | None = None,
    max_context: int | None = None,
    cache_memory: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> LoadedDiffusion:
    """Load a diffusion model and its draft.

    draft: "none", "auto" (none), or a smaller diffusion model with the same tokens.
    Other arguments as for `specport.load`. Raises SpecportError with the next step.
    """
    smaller = _draft_of(draft)
    loader = Loader.on(device, threads, max_context, trust_remote_code, progress, cache_memory)
    loader = replace(loader, diffusion=True)
    files, target, notes = _model(loader, model, precision)
    tokenizer = load_tokenizer(files.folder)
    options = _checked(options, target, smaller is not None)
    if smaller is None:
        engine = DiffusionEngine(target, options)
        return LoadedDiffusion(engine, tokenizer, files.name, loader.profile.name, notes)
    beside = loader
    if draft_device is not None:
        beside = replace(
            Loader.on(draft_device, threads, max_context, trust_remote_code, progress), diffusion=True
        )
    found, drafting, said = _model(beside, smaller, draft_precision or precision)
    mismatch = load_beside(found.folder, tokenizer).mismatch(tokenizer)
    if mismatch is None and drafting.facts.mask_id != target.facts.mask_id:
        mismatch = f"its mask is token {drafting.facts.mask_id}, not {target.facts.mask_id}"
    if mismatch is not None:
        raise ModelError(
            f"{found.name} cannot draft for {files.name}: {mismatch}", "choose a draft of its family"
        )
    engine = DiffusionEngine(target, options, drafting, found.name)
    return LoadedDiffusion(
        engine, tokenizer, files.name, loader.profile.name, [*notes, *said, about(options)], lossy(options)
    )


def lossy(options: DiffusionOptions) -> str:
    """Return the name of a way to decode with a draft whose text depends on that draft; "" for others."""
    if options.layout == "released":
        return "SimSD released"
    return "SimSD by confidence" if options.order == "confidence" else ""


def about(options: DiffusionOptions) -> str:
    """Return a note on what decoding with a draft preserves."""
    if options.layout == "released":
        return (
            "lossy: with the layout released, what judges a token depends on that token; "
            "--verify-layout same-step or grouped has no such leak"
        )
    if options.order == "confidence":
        return (
            "lossy: in the order of confidence the text depends on the draft; "
            "--reveal-order position gives the text of the model alone under the same layout"
        )
    return (
        f"the text, or its law, is that of the model alone under the layout {options.layout}, "
        "which differs from its native denoising"
    )


def _draft_of(draft: str) -> str | None:
    """Return the name of the draft model; None = none. Raises InvalidInput for other drafters."""
    if draft in (AUTO, NONE):
        return None
    spec = parse(draft)
    if spec.kinds != [MODEL]:
        raise InvalidInput(
            f"--draft {draft} does not work with a diffusion model", "its draft is a smaller diffusion model"
        )
    return spec.models[0]


def _model(loader: Loader, name: str, precision: str | None) -> tuple[ModelFiles, DiffusionModel, list[str]]:
    if not is_diffusion(name, loader.progress):
        raise InvalidInput(f"{name} is no diffusion model", "the draft of a diffusion model is one, too")
    files = loader.files(name, precision or loader.profile.precision)
    facts = find_facts(files.folder)
    if facts is None:
        raise ModelError(
            f"the conversion of {name} does not say how it was trained", "use its original folder"
        )
    loaded = loader.target_with(files, exact=False)
    return files, DiffusionModel(loaded.model, facts), [*loaded.notes]


def _checked(options: DiffusionOptions, model: DiffusionModel, drafted: bool) -> DiffusionOptions:
    """Return the options for this model. Raises InvalidInput for what it cannot do."""
    facts = model.facts
    if facts.context == "full" or facts.shifted:
        if drafted:
            raise InvalidInput(
                "a draft needs a model that reads text block by block, and predicts each token in its place",
                "leave out --draft",
            )
        if facts.context != "full":
            raise ModelError(
                "a model with blocks and shifted logits is not supported", "choose another model"
            )
    block = min(options.block_length or facts.block_length, model.model.max_context)
    rows = num_rows(options.layout, block) if drafted else block
    if rows > _MOST_ROWS:
        raise InvalidInput(
            f"blocks of {block} tokens make steps of {rows} rows; the most are {_MOST_ROWS}",
            "choose a smaller --block-length, or --verify-layout same-step",
        )
    if options.order is None:
        return replace(options, order="position" if drafted else "confidence")
    return options


def refuse_for_diffusion(**given: Any) -> None:
    """Raise InvalidInput for an argument of `specport.load` that is set and does not apply here."""
    for name, value in given.items():
        if value not in _UNSET.get(name, (None,)):
            raise InvalidInput(f"{name} does not apply to a diffusion model", "leave it out")
