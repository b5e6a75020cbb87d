"""Load an IR folder on a device: the properties for the processor, the role and the numerics."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from specport.backends.openvino import architecture
from specport.backends.openvino.compiling import PRECISION, STATIC_CONTEXT, Job, compiled, key_of, loaded
from specport.backends.openvino.exact_mode import load_exact

from specport.models.kinds.diffusion import is_diffusion
from specport.runtime.devices.profiles import Profile, cpu_flags
from specport.runtime.devices.registry import Loaded, LoadOptions

if TYPE_CHECKING:
    from specport.models.source import ModelFiles


# Flags of processors on which the runtime computes in bf16 unless told otherwise: with AMX, and with bf16 in
# AVX-512, such as Zen 4.
_BF16 = {"amx_bf16", "avx512_bf16"}


def load(files: ModelFiles, options: LoadOptions) -> Loaded:
    """Load the model in `files.folder`, ready to step.

    An exact target is checked once for each runtime, processor, model and settings. Where the default kernels
    round differently for different splits, it is loaded again in full f32.

    Raises ModelError, DeviceError, and InvalidInput for a cache that is too small for any text.
    """
    job = Job.of(files, options)
    architecture.check(job.config, files.name)
    # For the many positions of an encoder, what the runtime would choose with AMX takes half the time of f32.
    # It changes some words: exact mode has f32.
    encoder = options.profile.fitted(files.folder).exact
    job = replace(job, options=replace(options, profile=for_processor(job)))
    profile = job.options.profile.fitted(files.folder)
    notes = notes_for(job)
    if job.threads == 1 or (options.exact and options.role == "target"):
        encoder = profile.exact
    if files.precision == "fp32" and profile.fallback:
        # fp32 weights imply f32 arithmetic.
        f32 = profile.fallback
        profile = replace(profile, exact=f32, fast=f32, draft=f32)
        encoder = f32
    job = replace(job, options=replace(job.options, profile=profile), encoder=encoder)
    if is_diffusion(job.config):  # any mask needs the fast form, and there is no exact mode for it
        model = compiled(job, profile.fast, exact_mode=False)
        return loaded(model, notes, key_of(job, profile.fast, padded=False), job)
    if options.role == "draft":
        # Pad like an exact target, although the rounding of a draft does not matter: one and two new
        # tokens then have the same shape, and a change of shape costs more than the second token.
        model = compiled(job, profile.draft, exact_mode=True)
        return loaded(model, notes, key_of(job, profile.draft, padded=True), job)
    if not options.exact:
        model = compiled(job, profile.fast, exact_mode=False)
        return loaded(model, notes, key_of(job, profile.fast, padded=False, hidden=False), job)
    return load_exact(job, profile, notes)


def for_processor(job: Job) -> Profile:
    """Return the profile with the properties for processors on which the runtime would compute in bf16."""
    profile = job.options.profile
    if not job.on_cpu or not _BF16 & {*cpu_flags()}:
        return profile
    extra = profile.bf16
    if job.threads == 1:
        # The bf16 kernel of an MLP (LLMMLP) shares work among pairs of threads. With one thread, OpenVINO
        # 2026.4 divides by zero and the process dies.
        extra = {**extra, PRECISION: "f32"}
    elif job.files.precision.startswith(("fp", "bf")):  # "ir" of unknown precision is mostly INT8 or INT4
        return profile
    exact, fast, draft = ({**table, **extra} for table in (profile.exact, profile.fast, profile.draft))
    return replace(profile, exact=exact, fast=fast, draft=draft)


def notes_for(job: Job) -> tuple[str, ...]:
    """Return notes for the user about the target's device; none for a draft."""
    options, profile = job.options, job.options.profile
    if options.role == "draft":
        return ()
    notes = [*([profile.emulation] if profile.emulation else []), *architecture.notes(job.config)]
    if profile.buckets and options.max_context is None and job.context_limit() > STATIC_CONTEXT:
        notes.append(
            f"the context is {STATIC_CONTEXT} tokens on {profile.name}, where each step reads all of it: "
            "--max-context sets another length"
        )
    if options.threads is not None and not job.on_cpu:
        notes.append(f"{profile.device} has no setting for the number of threads: --threads is ignored")
    return tuple(notes)
