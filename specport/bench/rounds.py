"""`specport bench --record`: record the rounds of a draft model on a prompt file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specport.bench.prompts import read_prompts
from specport.bench.recording import Costs, Recording, record
from specport.bench.shared import DRAFT, Shared, encode_all
from specport.core.engine import Engine
from specport.core.planning.model_draft import UNKNOWN_COST
from specport.drafters.build import build_sources
from specport.drafters.context import NO_RETRIEVAL
from specport.drafters.spec import parse as parse_draft
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer


def record_rounds(
    prompts: Path,
    out: Path,
    *,
    draft: str,
    model: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    draft_precision: str | None = None,
    threads: int | None = None,
    max_new_tokens: int = 128,
    per_category: int | None = None,
    categories: Sequence[str] = (),
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Recording:
    """Record a draft model's chains on a prompt file for `bench.replay`. Resume a stopped recording.

    `out` is written after each answer.

    The texts are plain greedy answers in exact mode. Other arguments are as for `bench`.
    Raises SpecportError.
    """
    chosen = read_prompts(prompts, per_category, categories)
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.1))
    files, target = loader.target(model, precision, True)
    tokenizer = load_tokenizer(files.folder)
    fitting, encoded = encode_all(chosen, tokenizer, target.model.max_context - max_new_tokens)
    shared = Shared(loader, files, target, tokenizer, draft, draft_precision, 0, NO_RETRIEVAL, True)
    loaded = shared.load_draft(DRAFT)
    (source,) = build_sources(
        parse_draft(DRAFT), target.model, tokenizer, {DRAFT: loaded}, planned=True, costs=loader.costs(target)
    )
    target_costs, measured = loader.costs(target), loader.costs(target).measured and loaded.costs.measured
    if not measured:  # priors have no unit: assume what the planner assumes
        loaded.costs.assume(UNKNOWN_COST * target_costs.step(1, 0))
    costs = Costs(target_costs, loaded.costs, target.model.capabilities.min_width)
    about = {
        "processor": cpu_name(),
        "device": loader.profile.name,
        "model": files.name,
        "precision": files.precision,
        "draft": shared.draft_name,
        "prompts": prompts.name,
        "costs": "measured" if measured else f"prior of {loader.profile.name}",
    }
    recording = Recording(
        about, {loader.profile.name: costs}, max_new_tokens, (), bool(source.drafter.parallel)
    ).resumed(out)
    done = {text.id for text in recording.texts}
    engine = Engine(target.model)
    for number, prompt in enumerate(fitting):
        progress(f"{prompt.category} {prompt.id}", 0.1 + 0.9 * number / len(fitting))
        if prompt.id not in done:
            text = record(
                engine, source.drafter, prompt, encoded[prompt.id], tokenizer.eos_ids, max_new_tokens
            )
            recording = replace(recording, texts=(*recording.texts, text))
            recording.save(out)
    return recording
