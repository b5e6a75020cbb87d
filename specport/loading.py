"""`specport.load`: from names to a pipeline. The only place that joins models, backends and drafters."""

from __future__ import annotations

from specport.api import Drafting, Pipeline
from specport.core.engine import Engine
from specport.drafting import DraftModel, build, parse
from specport.errors import InvalidInput
from specport.models.progress import Progress, silent
from specport.models.source import resolve
from specport.models.tokenizer import load_tokenizer
from specport.profiles import cpu_name, detect, load_profile
from specport.registry import LoadOptions, backend_for


def load(
    model: str | None = None,
    *,
    draft: str = "auto",
    device: str = "auto",
    precision: str | None = None,
    draft_precision: str | None = None,
    exact: bool = True,
    policy: str | None = None,
    num_draft_tokens: int | None = None,
    branches: tuple[int, ...] = (),
    acceptance: str = "rejection",
    threads: int | None = None,
    max_context: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Pipeline:
    """Load a model and its drafter on a device.

    model:     hub id, Hugging Face folder, .gguf file or folder with OpenVINO IR; None = the embedded
               SmolLM2-135M-Instruct. Converted once and kept in the cache.
    draft:     "auto", "none", "ngram", a model, or "ngram|MODEL" (n-gram first, else the model).
    device:    a profile's name (see `specport devices`), the path of a profile of your own, or "auto".
    precision: "fp16", "int8" or "int4" for models that are converted; None = the profile's choice.
    exact:     the text equals plain decoding token for token. False: faster attention over long
               contexts, and near-ties may flip.
    policy:    "adaptive", "fixed", "heuristic" or "confidence"; num_draft_tokens is its start, constant
               or cap.
    branches:  children at depth 1, 2, ... for tree drafting with the policy "fixed".
    acceptance: rule for sampling, "rejection" or "block".
    threads, max_context: None = the runtime's and the model's own.

    Raises SpecportError with the next step when something cannot be used.
    """
    # Cheap checks first: a model takes long to load.
    for name, value in (("threads", threads), ("max_context", max_context)):
        if value is not None and value < 1:
            raise InvalidInput(f"{name} is {value}; it must be 1 or more")
    parts = parse(draft)
    profile = detect() if device == "auto" else load_profile(device)
    if policy is None and num_draft_tokens is None:
        num_draft_tokens = profile.num_draft_tokens
    drafting = Drafting(policy or profile.policy, num_draft_tokens, branches, acceptance)
    backend = backend_for(profile)
    files = resolve(
        model,
        precision=precision or profile.precision,
        progress=progress,
        trust_remote_code=trust_remote_code,
    )
    tokenizer = load_tokenizer(files.folder)
    options = LoadOptions(profile, exact=exact, threads=threads, max_context=max_context)
    loaded = backend.load(files, options)
    notes = [*loaded.notes]
    if device != "auto" and (note := profile.mismatch(cpu_name())):
        notes.append(note)

    def load_draft(spec: str) -> DraftModel:
        draft_files = resolve(
            spec,
            precision=draft_precision or profile.draft_precision,
            progress=progress,
            trust_remote_code=trust_remote_code,
        )
        found = backend.load(
            draft_files, LoadOptions(profile, role="draft", threads=threads, max_context=max_context)
        )
        notes.extend(found.notes)
        return DraftModel(found.model, load_tokenizer(draft_files.folder), draft_files.name)

    drafter = build(parts, loaded.model, tokenizer, load_draft, profile.cost)
    return Pipeline(
        Engine(loaded.model, drafter),
        tokenizer,
        drafting,
        model_name=files.name,
        device_name=profile.name,
        notes=notes,
    )
