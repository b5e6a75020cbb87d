"""`specport bench`: load what is compared, run it, and write the report.

All of specport's own methods share one loaded target and one loaded draft, except for early exits, which load
a second target. Peers load their own models.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from specport.bench.prompts import Prompt, read_prompts
from specport.bench.record import Record, decode_all, plan
from specport.bench.report import markdown, page
from specport.bench.summary import Figures, summarise
from specport.calibration.methods import PLAIN, Method, own, parse
from specport.core.engine import Engine
from specport.core.planning.policies import CLASSIFIER
from specport.drafters.build import build_policy
from specport.drafters.context import DraftModel, Retrieval
from specport.drafters.retrieval.folders import Folders
from specport.drafters.spec import DraftSpec
from specport.drafters.spec import parse as parse_draft
from specport.errors import InvalidInput
from specport.models.atomic import write_atomically
from specport.models.source import ModelFiles
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.runtime.profiles import cpu_name
from specport.runtime.registry import Loaded
from specport.runtime.versions import installed
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer, load_tokenizer

PEERS = ("genai:", "transformers:", "llama.cpp:")
PACKAGES = (
    "openvino", "openvino-genai", "optimum-intel", "transformers", "torch", "llama-cpp-python", "numpy",
)  # fmt: skip
DRAFT = "draft"  # the name of the --draft model in a method
DEFAULT_METHODS = ("ngram", "suffix", "ngram@fixed=4", "ngram@heuristic")
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

    methods: names as in `calibration.methods.parse`, in which `draft` means the model of `draft`, and
             "genai:MODE" for openvino-genai on the same IR, "transformers:MODE" for PyTorch and
             "llama.cpp:MODE" for llama.cpp on the weights before conversion. Plain decoding is always
             included.
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
    files, target = loader.target(model, precision, exact)
    tokenizer = load_tokenizer(files.folder)
    room = target.model.max_context - max_new_tokens
    fitting, encoded = _encode(chosen, tokenizer, room)
    longest = max(len(encoded[prompt.id]) for prompt in fitting) + max_new_tokens
    retrieval, _ = folders.open(tokenizer, target.model.vocab_size, learn=False)
    shared = _Shared(loader, files, target, tokenizer, draft, draft_precision, longest, retrieval, exact)
    compared: dict[str, Method] = {}
    for i, name in enumerate(names):
        progress(f"loading {name}", 0.05 + 0.05 * i / len(names))
        compared[name] = shared.peer(name) if name.startswith(PEERS) else shared.own(name)
    about = {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
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


@dataclass
class _Shared:
    """Hold the loaded models that specport's own methods share."""

    loader: Loader
    files: ModelFiles
    target: Loaded
    tokenizer: Tokenizer
    draft: str | None
    draft_precision: str | None
    longest: int  # most tokens of a prompt plus its answer
    retrieval: Retrieval
    exact: bool
    draft_name: str | None = None
    _draft: DraftModel | None = None
    _draft_files: ModelFiles | None = None
    _torch_models: dict[Path, Any] = field(default_factory=dict)
    _exits: dict[int, Loaded] = field(default_factory=dict)
    _engines: dict[int, Engine] = field(default_factory=dict)

    def _exiting(self, spec: DraftSpec) -> tuple[Loaded, Engine]:
        """Return the target and an engine on it; for an early exit, a second copy of the weights."""
        layer = self.loader.exit_layer(spec, self.files)
        if layer and layer not in self._exits:
            self._exits[layer] = self.loader.target_with(self.files, self.exact, layer)
        target = self._exits[layer] if layer else self.target
        if layer not in self._engines:
            self._engines[layer] = Engine(target.model)
        return target, self._engines[layer]

    def own(self, name: str) -> Method:
        spec = parse(name)
        draft = parse_draft(spec.draft)
        if spec.drafting.policy == CLASSIFIER:
            if not draft.models:
                raise InvalidInput(
                    f"the method {name!r} needs a draft model", "write it like 'draft@classifier'"
                )
            classifier = self.loader.classifier(self.target, self._draft_model()[1])
            spec = replace(spec, drafting=replace(spec.drafting, classifier=classifier))
        target, engine = self._exiting(draft)
        policy = build_policy(
            draft, target.model, self.tokenizer, {name: self._load_draft(name) for name in draft.models},
            drafting=spec.drafting, costs=self.loader.costs(target),
            exit_costs=self.loader.exit_costs(target), retrieval=self.retrieval,
        )  # fmt: skip
        exit_ = target.model.early_exit
        about = {"exact": target.model.capabilities.exact, "exit_layer": exit_.layer if exit_ else 0}
        return own(spec, policy, engine, self.tokenizer.eos_ids, about)

    def peer(self, name: str) -> Method:
        library, _, mode = name.partition(":")
        peers = {"genai": self._genai, "transformers": self._transformers, "llama.cpp": self._llama_cpp}
        return peers[library](mode)

    def _genai(self, mode: str) -> Method:
        from specport.bench.peers.genai import GenAi

        draft = self._draft_model()[1].folder if self.draft else None
        profile, properties = self.loader.profile, dict(self.loader.profile.fast)
        if self.loader.threads is not None:
            properties["INFERENCE_NUM_THREADS"] = self.loader.threads
        return GenAi(mode, self.files.folder, draft, profile.device, self.tokenizer.eos_ids, properties)

    def _transformers(self, mode: str) -> Method:
        from specport.bench.peers.transformers import Transformers

        return Transformers(
            mode,
            self.files.source,
            self.draft,
            self.tokenizer.eos_ids,
            self.loader.threads,
            self.loader.trust_remote_code,
            self._torch_models,
            self.files.precision if self.loader.backend.weights == "huggingface" else "bf16",
        )

    def _llama_cpp(self, mode: str) -> Method:
        from specport.bench.peers.llama_cpp import LlamaCpp

        context = self.longest + 64  # room for draft tokens beyond the end
        eos_ids = self.tokenizer.eos_ids
        return LlamaCpp(mode, self.files.source, self.draft, eos_ids, self.loader.threads, context)

    def _load_draft(self, spec: str) -> DraftModel:
        if spec != DRAFT:
            raise InvalidInput(
                f"unknown drafter {spec!r}", "use ngram, suffix, or draft for the model of --draft"
            )
        model, _ = self._draft_model()
        return replace(
            model, costs=model.costs.fixed()
        )  # a fresh copy: each method corrects it by its own steps

    def _draft_model(self) -> tuple[DraftModel, ModelFiles]:
        if self._draft is None or self._draft_files is None:
            assert self.draft is not None  # called only by methods that need it
            found, loaded = self.loader.draft(
                self.draft, self.draft_precision, self.files, self.tokenizer, self.target
            )
            self._draft_files = found.files
            self.draft_name = found.files.name
            if loaded.head_tokens is not None:
                self.draft_name += f", head cut to {len(loaded.head_tokens)} tokens"
            self._draft = self.loader.draft_model(found, loaded, self.target)
        return self._draft, self._draft_files


def _encode(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, room: int
) -> tuple[list[Prompt], dict[str, list[int]]]:
    """Return the token ids of each prompt that leaves room for the answer."""
    encoded: dict[str, list[int]] = {}
    for prompt in prompts:
        ids = encode(tokenizer, prompt.text)
        if len(ids) < room:
            encoded[prompt.id] = ids
    fitting = [prompt for prompt in prompts if prompt.id in encoded]
    if not fitting:
        raise InvalidInput("no prompt fits the model's context", "choose shorter prompts")
    return fitting, encoded


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
