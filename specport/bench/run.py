"""`specport bench`: load what is compared, run it, and write the report.

All of specport's own methods share one loaded target and one loaded draft, except for early exits, which load
a second target. Peers load their own models.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from specport.bench.prompts import read_prompts
from specport.bench.record import Record, decode_all, plan
from specport.bench.report import markdown, page
from specport.bench.shared import DRAFT, Shared, encode_all
from specport.bench.summary import Figures, summarise
from specport.calibration.methods import PLAIN, Method, parse
from specport.drafters.registry import AUTO
from specport.drafters.retrieval.folders import Folders
from specport.drafters.spec import DraftSpec
from specport.drafters.spec import parse as parse_draft
from specport.errors import InvalidInput
from specport.models.atomic import write_atomically
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import cpu_name, usable_cores
from specport.runtime.drafts.automatic import drafters
from specport.runtime.drafts.mtp import head_of, module_of
from specport.runtime.loading import Loader
from specport.runtime.stored import tuned
from specport.runtime.together import lacks
from specport.runtime.versions import installed
from specport.text.tokenizer import load_tokenizer

PEERS = ("genai:", "transformers:", "llama.cpp:")
PACKAGES = (
    "openvino", "openvino-genai", "optimum-intel", "transformers", "torch", "llama-cpp-python", "numpy",
)  # fmt: skip
DEFAULT_METHODS = (AUTO, "ngram", "suffix", "ngram@fixed=4", "ngram@heuristic")
DEFAULT_DRAFT_METHODS = ("ngram|draft", "draft", "draft@fixed=3", "draft@heuristic", "draft@confidence")


@dataclass(frozen=True)
class Report:
    """Hold the results of a benchmark.

    table:  method -> category or "all" -> figures.
    folder: holds report.md, report.html and report.json.
    """

    table: Mapping[str, Mapping[str, Figures]]
    about: Mapping[str, Any]
    folder: Path


def bench(
    prompts: Path,
    out: Path,
    *,
    model: str | None = None,
    draft: str | None = None,
    methods: Sequence[str] = (),
    device: str = "auto",
    precision: str | None = None,
    draft_precision: str | None = None,
    history: str | Path | None = None,
    datastore: str | Path | None = None,
    exact: bool = True,
    threads: int | None = None,
    max_new_tokens: int = 128,
    per_category: int | None = None,
    categories: Sequence[str] = (),
    runs: int = 1,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Report:
    """Compare methods on a prompt file, greedy, one prompt at a time. Resume a stopped run.

    methods: names as in `calibration.methods.parse`, in which `draft` means the model of `draft`, and `auto`
             what `specport.load` uses by default. "genai:MODE" is openvino-genai on the same IR;
             "transformers:MODE" is PyTorch and "llama.cpp:MODE" llama.cpp on the weights before conversion.
             Plain decoding is always included.
    history, datastore: text sources of `suffix`, as for `specport.load`. Nothing is learnt from prompt to
             prompt: the answers of one method would speed up the next.
    Raises SpecportError.
    """
    if max_new_tokens < 2 or runs < 1 or (per_category is not None and per_category < 1):
        raise InvalidInput("max_new_tokens must be 2 or more, runs and per_category 1 or more")
    chosen = read_prompts(prompts, per_category, categories)
    names = [*(methods or [*DEFAULT_METHODS, *(DEFAULT_DRAFT_METHODS if draft else ())])]
    names = [*dict.fromkeys([PLAIN, *names])]
    specs = {name: parse(name) for name in names if not name.startswith(PEERS)}
    drafts = {name: parse_draft(spec.draft) for name, spec in specs.items()}
    if draft is None and any(DRAFT in spec.models for spec in drafts.values()):
        raise InvalidInput("a method uses draft, but no draft model is given", "give one with --draft")
    folders = Folders(history, datastore)
    folders.check(*drafts.values())
    bar = part(progress, 0.0, 0.1)
    loader = Loader.on(device, threads, None, trust_remote_code, bar)
    files = loader.files(model, precision or loader.profile.precision)
    automatic = parse_draft(AUTO)
    if any(spec.auto for spec in drafts.values()):
        automatic, _ = drafters(tuned.find(model, loader.profile.name), files)
    if not methods and automatic.parts == drafts["suffix"].parts:
        names.remove(AUTO)  # it would be measured twice
    loaded = [*(parse_draft(draft).parts if draft else ()), *automatic.parts]
    head = loader.hidden_head(DraftSpec(tuple(loaded)))
    named = [part for spec in drafts.values() for part in spec.parts if part.model is None]
    module = module_of(DraftSpec((*named, *loaded)), files, loader)
    target = loader.target_with(files, exact, head=head, mtp=module, mtp_tokens=head_of(module, loader))
    if lacks(target, head, module):
        automatic = parse_draft(AUTO)
    tokenizer = load_tokenizer(files.folder)
    room = target.model.max_context - max_new_tokens
    fitting, encoded = encode_all(chosen, tokenizer, room)
    longest = max(len(encoded[prompt.id]) for prompt in fitting) + max_new_tokens
    retrieval, _ = folders.open(tokenizer, target.model.vocab_size, learn=False)
    shared = Shared(
        loader, files, target, tokenizer, draft, draft_precision, longest, retrieval, exact, automatic,
        module=module,
    )  # fmt: skip
    compared: dict[str, Method] = {}
    for i, name in enumerate(names):
        progress(f"loading {name}", 0.05 + 0.05 * i / len(names))
        compared[name] = shared.peer(name) if name.startswith(PEERS) else shared.own(name)
    about = {
        "processor": cpu_name(),
        "cores": usable_cores(),
        "device": loader.profile.name,
        "threads": threads,
        "model": files.name,
        "precision": files.precision,
        "draft": shared.draft_name,
        "numerics": "exact" if target.model.capabilities.exact else "fast",
        "costs": "measured" if loader.costs(target).measured else f"prior of {loader.profile.name}",
        "prompts": f"{prompts.name}: {len(fitting)}",
        "max_new_tokens": max_new_tokens,
        "runs": runs,
        "python": platform.python_version(),
        "versions": installed(PACKAGES),
        "methods": {name: dict(method.settings) for name, method in compared.items()},
    }
    if retrieval.history is not None:
        about["history"] = f"{len(retrieval.history.index)} tokens"
    if retrieval.datastore is not None:
        about["datastore"] = f"{len(retrieval.datastore)} tokens"
    record = Record(out, about)
    jobs = plan(fitting, names, runs)
    decode_all(record, jobs, compared, encoded, max_new_tokens, part(progress, 0.1, 1.0))
    return _write(record, {**about, "memory": _peak_memory(), "finished": _now()})


def _write(record: Record, about: Mapping[str, Any]) -> Report:
    table = summarise(record.rows)
    files = {
        "report.md": markdown(table, about),
        "report.html": page(table, about),
        "report.json": json.dumps(
            {"about": about, "table": {m: {c: asdict(f) for c, f in g.items()} for m, g in table.items()}},
            indent=1,
        ),
    }
    for name, text in files.items():
        write_atomically(record.folder / name, text)
    return Report(table, about, record.folder)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _peak_memory() -> str:
    """Return the peak memory of this process with all its models. Needs psutil (extra `bench`)."""
    try:
        import psutil
    except ImportError:
        return "unknown"
    info = psutil.Process().memory_info()
    return f"{getattr(info, 'peak_wset', info.rss) / 1e9:.2f} GB"
