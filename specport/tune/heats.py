"""Run heats: methods beside plain decoding on the same prompts, interleaved, within a time limit.

Every answer is stored at once by `specport.bench.record`, in a folder whose name covers all that decides the
result: models, prompts, settings, device, threads and versions. So a heat goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specport.bench.prompts import Prompt
from specport.bench.record import Job, Record, decode_all, plan
from specport.bench.shared import Shared, encode_all
from specport.bench.summary import Figures, summarise
from specport.calibration.calibrate import Beside, write_texts
from specport.calibration.methods import PLAIN, parse
from specport.core.planning.step_costs import StepCosts
from specport.core.policies.length_rules import PLANNED
from specport.drafters.context import NO_RETRIEVAL
from specport.drafters.registry import MODEL, MTP
from specport.drafters.spec import DraftSpec, PartSpec
from specport.drafters.spec import parse as parse_draft
from specport.models.cache import cache_root
from specport.models.source import ModelFiles
from specport.progress import Progress, silent
from specport.runtime.devices.profiles import Profile, cpu_name
from specport.runtime.devices.registry import Loaded
from specport.runtime.drafts.mtp import head_of, module_of
from specport.runtime.loading import Loader
from specport.runtime.stored import measurements
from specport.runtime.versions import installed
from specport.text.tokenizer import Tokenizer, load_tokenizer

PACKAGES = ("openvino", "torch", "numpy")
LEAST_PROMPTS = 2  # before a method may be dropped
DROP_BELOW = 0.85  # of the best method's speed


@dataclass(frozen=True)
class Heat:
    """Hold the result of a heat.

    figures: method -> its figures over all prompts; PLAIN holds the machine's drift.
    prompts: number of prompts that were finished.
    dropped: methods that were far behind and left out of the later prompts.
    """

    figures: Mapping[str, Figures]
    prompts: int
    dropped: frozenset[str] = frozenset()


@dataclass
class Race:
    """Decide before each job whether it is run: not after the time limit, nor for methods far behind.

    A prompt that was begun is finished, and one prompt always is. deadline, clock: in seconds.
    """

    record: Record
    deadline: float
    clock: Callable[[], float] = time.perf_counter
    dropped: set[str] = field(default_factory=set)
    _over: bool = False
    _prompt: str | None = None
    _began: float = 0.0
    _longest: float = 0.0

    def wanted(self, job: Job) -> bool:
        """Return whether to run this job."""
        if job.prompt.id != self._prompt:
            now = self.clock()
            if self._prompt is not None:
                self._longest = max(self._longest, now - self._began)
                self._over = self._over or now + self._longest > self.deadline
            self._prompt, self._began = job.prompt.id, now
            self.drop()
        return not self._over and job.method not in self.dropped

    def drop(self) -> None:
        """Drop the methods that are far behind the best over the prompts that they have done."""
        done: dict[str, set[str]] = {}
        for row in self.record.rows:
            done.setdefault(row["method"], set()).add(row["id"])
        for ids in {frozenset(each) for each in done.values() if len(each) >= LEAST_PROMPTS}:
            rows = [row for row in self.record.rows if row["id"] in ids]
            table = {name: groups["all"] for name, groups in summarise(rows).items() if name != PLAIN}
            whole = {name: each for name, each in table.items() if each.prompts == len(ids)}
            best = max([1.0, *(each.end_to_end for each in whole.values())])
            self.dropped |= {name for name, each in whole.items() if each.end_to_end < DROP_BELOW * best}


@dataclass
class Track:
    """Hold the target and the prompts of all heats. The target is loaded when it is needed.

    prompts: in the order of measurement, only those that fit. encoded: their token ids.
    """

    loader: Loader
    files: ModelFiles
    tokenizer: Tokenizer
    prompts: Sequence[Prompt]
    max_new_tokens: int
    exact: bool
    draft_precision: str | None
    encoded: Mapping[str, Sequence[int]] = field(default_factory=dict)
    _target: Loaded | None = None
    _head: ModelFiles | None = None
    _module: ModelFiles | None = None
    _written: Any = None

    @classmethod
    def open(
        cls,
        loader: Loader,
        model: str | None,
        precision: str,
        prompts: Sequence[Prompt],
        max_new_tokens: int,
        exact: bool,
        draft_precision: str | None,
    ) -> Track:
        """Load the target and encode the prompts. Raises SpecportError."""
        files = loader.files(model, precision)
        track = cls(
            loader, files, load_tokenizer(files.folder), prompts, max_new_tokens, exact, draft_precision
        )
        room = track.target.model.max_context - max_new_tokens
        track.prompts, track.encoded = encode_all(spread(prompts), track.tokenizer, room)
        return track

    @property
    def target(self) -> Loaded:
        """The loaded target."""
        if self._target is None:
            self._target = self.loader.target_with(
                self.files, self.exact, head=self._head, mtp=self._module,
                mtp_tokens=head_of(self._module, self.loader),
            )  # fmt: skip
        return self._target

    def take_head(self, models: Mapping[str, str]) -> None:
        """Have the target loaded with the draft head among these models. Raises InvalidInput for two."""
        spec = DraftSpec(tuple(PartSpec(MODEL, model) for model in models.values()))
        head = self.loader.hidden_head(spec)
        if head != self._head:
            self._head = head
            self.release()
        trained = module_of(spec, self.files, self.loader)
        if trained is not None and trained != self._module:
            self._module = trained
            self.release()

    def take_module(self, methods: Sequence[str]) -> None:
        """Have the target loaded with its module for multi-token prediction where a method uses it.

        Raises ModelError where it cannot be used.
        """
        kinds = [kind for method in methods for kind in parse_draft(parse(method).draft).kinds]
        if MTP in kinds and (self._module is None or self._module.bundle is not None):
            self._module = module_of(parse_draft(MTP), self.files, self.loader)
            self.release()

    def release(self) -> None:
        """Free the target's memory until it is needed again."""
        self._target = None

    @property
    def costs(self) -> StepCosts | None:
        """The target's measured step costs, or None."""
        found = measurements.find(self.target.key)
        return found.costs if found else None

    @property
    def draft_format(self) -> str:
        """The weight format of draft models."""
        return self.draft_precision or self.loader.profile.draft_precision

    def beside(self, progress: Progress = silent) -> Beside:
        """Return the target as drafts are calibrated for it. It writes its texts at the first call."""
        if self._written is None:
            self._written = write_texts(self.target.model, self.tokenizer, progress)
        costs = self.loader.costs(self.target)
        return Beside(
            self.loader, self.files, self.target.key, self.tokenizer, costs, self._written, self.exact
        )

    def run(
        self,
        methods: Sequence[str],
        models: Mapping[str, str],
        num_prompts: int,
        deadline: float,
        progress: Progress,
    ) -> Heat:
        """Run or go on with a heat. models: alias -> model. Raises SpecportError."""
        named = {method_name(method, self.loader.profile): method for method in methods}
        record = Record(self._folder(methods, models), self._about(methods, models))
        chosen = self.prompts[:num_prompts]
        race = Race(record, deadline)
        race.drop()
        self.take_head(models)
        self.take_module(methods)
        jobs = [job for job in plan(chosen, [PLAIN, *named], 1) if job.method not in race.dropped]
        if record.missing(jobs):
            longest = max(len(self.encoded[prompt.id]) for prompt in chosen) + self.max_new_tokens
            shared = Shared(
                self.loader, self.files, self.target, self.tokenizer, None, self.draft_precision, longest,
                NO_RETRIEVAL, self.exact, others=models, module=self._module,
            )  # fmt: skip
            made = {}
            for name in dict.fromkeys(job.method for job in jobs):
                progress(f"loading {named.get(name, name)}", 0.0)
                made[name] = shared.own(name)
            decode_all(record, jobs, made, self.encoded, self.max_new_tokens, progress, race.wanted)
        rows = [row for row in record.rows if row["id"] in {prompt.id for prompt in chosen}]
        table = {name: groups["all"] for name, groups in summarise(rows).items()}
        figures = {named.get(name, name): each for name, each in table.items()}
        return Heat(
            figures,
            max((each.prompts for each in figures.values()), default=0),
            frozenset(named[name] for name in race.dropped),
        )

    def _about(self, methods: Sequence[str], models: Mapping[str, str]) -> dict[str, Any]:
        """Return all that decides the result of a heat."""
        drafts = {
            alias: self.loader.draft_files(model, self.draft_precision, self.files, self.tokenizer)
            .files.fingerprint
            for alias, model in models.items()
        }  # fmt: skip
        texts = json.dumps([[prompt.id, prompt.text] for prompt in self.prompts])
        return {
            "model": self.files.name,
            "weights": self.files.fingerprint,
            "precision": self.files.precision,
            "drafts": drafts,
            "methods": list(methods),
            "prompts": hashlib.sha256(texts.encode()).hexdigest()[:24],
            "max_new_tokens": self.max_new_tokens,
            **circumstances(self.loader, self.exact),
        }

    def _folder(self, methods: Sequence[str], models: Mapping[str, str]) -> Path:
        return folder_for(self._about(methods, models))


def circumstances(loader: Loader, exact: bool) -> dict[str, Any]:
    """Return what decides the result of any measurement here, beside its models and texts."""
    return {
        "device": loader.profile.name,
        "processor": cpu_name(),
        "threads": loader.threads,
        "exact": exact,
        "versions": installed(PACKAGES),
    }


def folder_for(about: Mapping[str, Any]) -> Path:
    """Return the folder of a measurement with these settings."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_root() / "tune" / digest[:24]


def spread(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts in turns of their categories, so that the first ones are of all kinds."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.category, []).append(prompt)
    longest = max(map(len, groups.values()), default=0)
    return [group[i] for i in range(longest) for group in groups.values() if i < len(group)]


def method_name(draft: str, profile: Profile) -> str:
    """Return the name of the method that `specport run --draft` runs on this device."""
    if profile.policy == PLANNED and profile.num_draft_tokens is None:
        return draft
    number = "" if profile.num_draft_tokens is None else f"={profile.num_draft_tokens}"
    return f"{draft}@{profile.policy}{number}"
