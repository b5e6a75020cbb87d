"""`specport.load`: build a pipeline from names. Joins models, backends and drafters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from specport.core.engine import Engine
from specport.core.policies.length_rules import CLASSIFIER
from specport.core.ports import Model, Needs, Policy
from specport.core.prefix_cache import PrefixCache
from specport.core.verify.gates import LOSSLESS
from specport.core.verify.tiered import TieredVerifier
from specport.core.verify.tiered_model import TieredModel
from specport.core.verify.verifier import TargetVerifier
from specport.diffusion.load import is_diffusion, refuse_for_diffusion
from specport.diffusion.load import load as load_diffusion
from specport.diffusion.options import DiffusionOptions
from specport.drafters.build import build_policy
from specport.drafters.context import DraftModel
from specport.drafters.registry import AUTO
from specport.drafters.spec import parse
from specport.errors import InvalidInput
from specport.models.source import ModelFiles
from specport.outside.places import expanded
from specport.pipeline import Pipeline
from specport.progress import Progress, part, silent
from specport.runtime.choice import Choice
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.drafts import automatic
from specport.runtime.drafts.tiers import Tiered
from specport.runtime.stored import tuned
from specport.runtime.together import load_together
from specport.traffic.recorder import recorder_for


def load(
    model: str | None = None,
    *,
    draft: str = "auto",
    device: str = "auto",
    draft_device: str | None = None,
    precision: str | None = None,
    draft_precision: str | None = None,
    exact: bool = True,
    policy: str | None = None,
    num_draft_tokens: int | None = None,
    branches: tuple[int, ...] = (),
    acceptance: str = "rejection",
    verify: str = LOSSLESS,
    lossy: bool = False,
    verifier: str | Path | None = None,
    history: str | Path | None = None,
    datastore: str | Path | None = None,
    threads: int | None = None,
    max_context: int | None = None,
    cache_memory: str | None = None,
    prefix_cache: bool | str | Path = True,
    prefix_cache_size: str = "4GB",
    trust_remote_code: bool = False,
    diffusion: DiffusionOptions | None = None,
    progress: Progress = silent,
) -> Pipeline:
    """Load a model and its drafter on a device.

    model:     hub id, Hugging Face folder, .gguf file or folder with OpenVINO IR; None = the embedded
               SmolLM2-135M-Instruct. Converted once and kept in the cache.
    draft:     "none", "ngram", "suffix", a model or draft bundle, "early-exit:E" (the model's own first E
               layers), several of them as in "suffix|MODEL" (each round uses the one with the higher expected
               speed), or "auto": what `specport tune` chose for this model here, else suffixes, and the
               bundle that `specport quantize` built for this model, or the head that is shipped for it, or
               its own weights for multi-token prediction ("mtp"), if any. All forms: `drafters.spec`.
    device:    name of a profile (see `specport devices`), path of a profile file, or "auto".
    draft_device: device of a draft model; None = the target's.
    precision: "fp32", "fp16", "int8" or "int4" on OpenVINO, with options as in "int4:asym,awq", and "fp32",
               "bf16" or "fp16" on torch (see `specport.models.precision`); None = the tuned format, else the
               profile's.
    draft_precision: the same for a draft model.
    exact:     the text equals plain decoding token for token. False: faster attention over long contexts;
               near-ties may be decided differently.
    policy:    "planned", "fixed", "heuristic", "confidence" or "classifier". num_draft_tokens is its
               constant, start or maximum.
    branches:  children per node at depth 1, 2, ... for tree drafting with the policy "fixed".
    acceptance: acceptance rule for sampling: "rejection", "block", or "match", with which a seed gives the
                text of plain decoding.
    verify:    "lossless": the target verifies each token; or, with `lossy`, "tiered:TA,TE" or "entropy:H": a
               slim verifier made of the target's layers does, and the target only where that is not sure. The
               text may differ then (`core.verify.gates`). It needs a draft that you name, and a mask of
               `specport quantize verifier`; there is no prefix cache.
    lossy:     agree to that.
    verifier:  folder of the slim verifier's mask; None = the one that was built last for this model.
    history:   folder in which "suffix" keeps generated text for later runs; None = in memory only.
    datastore: folder that `specport datastore build` made of your files; "suffix" drafts from it.
    threads, max_context: None = the defaults of the runtime and of the model.
    cache_memory: most memory of the target's key/value cache, as in "4GB" or "30%" of free memory; None = a
               share of the memory that is free at load time (`specport.runtime.caches.memory`).
    prefix_cache: whether texts may begin with what the cache still holds of earlier ones, such as the same
               system prompt: True = in memory, a folder = on disk too, for later processes, False = no.
    prefix_cache_size: most bytes in that folder, as in "4GB"; the least recently used go first.
    diffusion: how a diffusion model decodes. Its draft is a smaller diffusion model (SimSD) or "none"; of the
               other arguments those of models, devices, memory and precision apply.

    Raises SpecportError with the next step when something cannot be used.
    """
    # Do cheap checks first: loading a model takes long, and so does a download. A model that is here is
    # looked at before them, as other arguments apply to diffusion models.
    here = model is None or expanded(model).exists()
    choice = Choice(
        draft=draft, device=device, draft_device=draft_device, precision=precision,
        draft_precision=draft_precision, policy=policy, num_draft_tokens=num_draft_tokens,
        branches=branches, acceptance=acceptance, verify=verify, lossy=lossy, verifier=verifier,
        history=history, datastore=datastore, threads=threads, max_context=max_context,
        cache_memory=cache_memory, prefix_cache=prefix_cache, prefix_cache_size=prefix_cache_size,
        trust_remote_code=trust_remote_code, progress=progress,
    )  # fmt: skip
    checked = None if here else choice.checked()
    if model is not None and is_diffusion(model, part(progress, 0.0, 0.3)):
        refuse_for_diffusion(
            exact=exact, policy=policy, num_draft_tokens=num_draft_tokens, branches=branches,
            acceptance=acceptance, history=history, datastore=datastore, prefix_cache=prefix_cache,
            prefix_cache_size=prefix_cache_size, verify=verify, lossy=lossy, verifier=verifier,
        )  # fmt: skip
        blocks = load_diffusion(
            model, diffusion or DiffusionOptions(),
            draft=draft, device=device, draft_device=draft_device, precision=precision,
            draft_precision=draft_precision, threads=threads, max_context=max_context,
            cache_memory=cache_memory, trust_remote_code=trust_remote_code, progress=progress,
        )  # fmt: skip
        return Pipeline(
            blocks.engine,
            blocks.tokenizer,
            model_name=blocks.name,
            device_name=blocks.device,
            notes=blocks.notes,
            lossy=blocks.lossy,
        )
    if diffusion is not None:
        raise InvalidInput(
            "options of diffusion models do not apply to this model",
            "leave them out, or name a diffusion model",
        )
    checked = checked or choice.checked()
    spec, tiered, folders, prefixes = checked.spec, checked.tiered, checked.folders, checked.prefixes
    loader, beside, drafting = checked.loader, checked.beside, checked.drafting
    profile = loader.profile
    kept = tuned.find(model, profile.name)
    files = loader.files(model, precision or kept.precision or profile.precision)
    notes: list[str] = []
    if draft == AUTO:
        spec, notes = automatic.drafters(kept, files)
    if precision is None and kept.precision not in (None, profile.precision):
        notes.append(f"weights by specport tune: {files.precision}")
    skipped = tiered.skipped_layers(files) if tiered else ()
    together = load_together(
        loader, beside, files, spec, draft_precision, exact,
        default=parse(draft) if draft == AUTO else None, skipped_layers=skipped,
    )  # fmt: skip
    spec, target, tokenizer = together.spec, together.target, together.tokenizer
    notes += [*together.notes, *target.notes, *_short_of_memory(target.model)]
    for name, used in ((device, loader), (draft_device, beside)):
        if name not in (None, "auto") and (note := used.profile.mismatch(cpu_name())):
            notes.append(note)
    drafts: dict[str, DraftModel] = {}
    for name, (place, found, loaded) in together.drafts.items():
        if drafting.policy == CLASSIFIER and drafting.classifier is None:
            drafting = replace(drafting, classifier=loader.classifier(target, found.files))
        if loaded is not target:
            notes.extend(loaded.notes)
        draft_model = place.draft_model(found, loaded, target)
        drafts[name] = replace(draft_model, prefixes=None if loaded is target else prefixes.of(loaded))
    stepped: Model = TieredModel(target.model) if tiered else target.model
    retrieval, said = folders.open(tokenizer, target.model.vocab_size)
    made = build_policy(
        spec, stepped, tokenizer, drafts,
        drafting=drafting, costs=loader.costs(target), exit_costs=loader.exit_costs(target),
        retrieval=retrieval, mtp=together.mtp,
    )  # fmt: skip
    if tiered and not isinstance(prefix_cache, bool):
        notes.append("the prefix cache is not used: tiered verification has none")
    engine, recorded = _engine(files, stepped, made, prefixes.of(target), tiered)
    return Pipeline(
        engine,
        tokenizer,
        drafting,
        model_name=files.name,
        device_name=profile.name,
        notes=[*notes, *recorded, *said],
        on_close=prefixes.flush,
        lossy=tiered.gate.name if tiered else "",
    )


def _engine(
    files: ModelFiles,
    target: Model,
    policy: Policy | None,
    prefixes: PrefixCache | None,
    tiered: Tiered | None,
) -> tuple[Engine, list[str]]:
    """Return an engine, which records texts where the user has switched that on, and notes for the user.

    Texts of tiered verification are not recorded: not all of them are the target's.
    """
    if tiered is not None and isinstance(target, TieredModel):
        verifying = TieredVerifier(target, tiered.gate, policy.needs if policy else Needs())
        return Engine(target, policy, verifying), [tiered.note]
    recorder = recorder_for(files.fingerprint, files.source, files.precision)
    if recorder is None:
        return Engine(target, policy, prefixes=prefixes), []
    verifier = TargetVerifier(target, policy.needs if policy else Needs(), recorder.watch)
    note = "texts are recorded for specport adapt; specport adapt off ends that"
    engine = Engine(
        target, policy, verifier,
        prefixes=prefixes, on_end=recorder.ended, on_update=recorder.outdated,
    )  # fmt: skip
    return engine, [note]


def _short_of_memory(target: Model) -> list[str]:
    """Return a note for the user where a text of the model's whole context does not fit into its cache."""
    room, limit = target.room(), target.max_context
    if room >= limit:
        return []
    return [
        f"there is memory for texts of {room:,} tokens; the model's context holds {limit:,}: free some, or "
        "allow more with --cache-memory"
    ]
