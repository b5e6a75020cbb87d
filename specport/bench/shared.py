"""The loaded models that the methods of a benchmark share, and the methods made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from specport.bench.prompts import Prompt
from specport.calibration.methods import Method, own, parse
from specport.core.engine import Engine
from specport.core.policies.length_rules import CLASSIFIER
from specport.drafters.build import build_policy
from specport.drafters.context import DraftModel, Retrieval
from specport.drafters.registry import MTP
from specport.drafters.spec import DraftSpec
from specport.drafters.spec import parse as parse_draft
from specport.errors import InvalidInput
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded
from specport.runtime.drafts.mtp import as_draft
from specport.runtime.loading import Loader
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer

DRAFT = "draft"  # the name of the --draft model in a method


@dataclass
class Shared:
    """Hold the loaded models that specport's own methods share.

    draft:     the model that the name `draft` means in a method. others: more such names, with their models.
    longest:   most tokens of a prompt plus its answer.
    automatic: the drafters that `auto` means in a method.
    module:    the target's own module for multi-token prediction, where it was loaded with it.
    """

    loader: Loader
    files: ModelFiles
    target: Loaded
    tokenizer: Tokenizer
    draft: str | None
    draft_precision: str | None
    longest: int
    retrieval: Retrieval
    exact: bool
    automatic: DraftSpec = field(default_factory=DraftSpec)
    others: Mapping[str, str] = field(default_factory=dict)
    draft_name: str | None = None
    module: ModelFiles | None = None
    _drafts: dict[str, tuple[DraftModel, ModelFiles]] = field(default_factory=dict)
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
        if draft.auto:
            draft = DraftSpec(self.automatic.parts)
            spec = replace(spec, draft=str(draft))
        if spec.drafting.policy == CLASSIFIER:
            if not draft.models:
                raise InvalidInput(
                    f"the method {name!r} needs a draft model", "write it like 'draft@classifier'"
                )
            classifier = self.loader.classifier(self.target, self._draft_model(draft.models[0])[1])
            spec = replace(spec, drafting=replace(spec.drafting, classifier=classifier))
        target, engine = self._exiting(draft)
        policy = build_policy(
            draft, target.model, self.tokenizer, {name: self.load_draft(name) for name in draft.models},
            drafting=spec.drafting, costs=self.loader.costs(target),
            exit_costs=self.loader.exit_costs(target), retrieval=self.retrieval,
            mtp=self._mtp(draft, target),
        )  # fmt: skip
        exit_ = target.model.early_exit
        about = {"exact": target.model.capabilities.exact, "exit_layer": exit_.layer if exit_ else 0}
        return own(spec, policy, engine, self.tokenizer.eos_ids, about)

    def _mtp(self, draft: DraftSpec, target: Loaded) -> DraftModel | None:
        """Return the target's own module as a draft where a method uses it."""
        if self.module is None or MTP not in draft.kinds:
            return None
        return as_draft(self.module, self.files, self.tokenizer, target, self.loader)

    def peer(self, name: str) -> Method:
        library, _, mode = name.partition(":")
        peers = {"genai": self._genai, "transformers": self._transformers, "llama.cpp": self._llama_cpp}
        return peers[library](mode)

    def _genai(self, mode: str) -> Method:
        from specport.bench.peers.genai import GenAi

        draft = self._draft_model(DRAFT)[1].folder if self.draft else None
        profile = self.loader.profile.fitted(self.files.folder)
        properties = dict(profile.fast)
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

    def load_draft(self, spec: str) -> DraftModel:
        if spec != DRAFT and spec not in (*self.others, *self.automatic.models):
            raise InvalidInput(
                f"unknown drafter {spec!r}", "use auto, ngram, suffix, or draft for the model of --draft"
            )
        model, _ = self._draft_model(spec)
        return replace(
            model, costs=model.costs.fixed()
        )  # a fresh copy: each method corrects it by its own steps

    def _draft_model(self, name: str) -> tuple[DraftModel, ModelFiles]:
        if name not in self._drafts:
            model = self.draft if name == DRAFT else self.others.get(name, name)
            assert model is not None  # called only by methods that need it
            found, loaded = self.loader.draft(
                model, self.draft_precision, self.files, self.tokenizer, self.target
            )
            if name == DRAFT:
                self.draft_name = found.files.name
                if loaded.head_tokens is not None:
                    self.draft_name += f", head cut to {len(loaded.head_tokens)} tokens"
            self._drafts[name] = self.loader.draft_model(found, loaded, self.target), found.files
        return self._drafts[name]


def encode_all(
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
