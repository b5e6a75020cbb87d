"""`specport.load`: from names to a pipeline. The only place that joins models, backends and drafters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from specport.api import Drafting, Pipeline
from specport.core.engine import Engine
from specport.core.planning.policies import CLASSIFIER
from specport.core.planning.step_costs import StepCosts
from specport.core.planning.stop_classifier import Classifier
from specport.drafters.retrieval.folders import Folders
from specport.drafters.spec import DraftModel, build, exit_in, models_in, parse
from specport.errors import DeviceError, InvalidInput
from specport.models.bundle import registered
from specport.models.precision import parse as parse_precision
from specport.models.source import ModelFiles, resolve
from specport.progress import Progress, silent
from specport.runtime import measurements
from specport.runtime.profiles import Profile, cpu_name, detect, load_profile
from specport.runtime.registry import Backend, Loaded, LoadOptions, backend_for
from specport.text.tokenizer import load_tokenizer


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
    history: str | Path | None = None,
    datastore: str | Path | None = None,
    threads: int | None = None,
    max_context: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Pipeline:
    """Load a model and its drafter on a device.

    model:     hub id, Hugging Face folder, .gguf file or folder with OpenVINO IR; None = the embedded
               SmolLM2-135M-Instruct. Converted once and kept in the cache.
    draft:     "none", "ngram", "suffix", a model or draft bundle, "early-exit:E" (the model's own first E
               layers), several of them as in "suffix|MODEL" (whichever pays better), or "auto": n-grams, and
               the bundle that `specport quantize` built for this model, if it did. All: `drafting`.
    device:    a profile's name (see `specport devices`), the path of a profile of your own, or "auto".
    draft_device: where a draft model runs; None = where the target does.
    precision: "fp32", "fp16", "int8" or "int4" on OpenVINO, with options as in "int4:asym,awq", and "fp32",
               "bf16" or "fp16" on torch (see `specport.models.precision`); None = the profile's choice.
    exact:     the text equals plain decoding token for token. False: faster attention over long
               contexts, and near-ties may flip.
    policy:    "planned", "fixed", "heuristic", "confidence" or "classifier"; num_draft_tokens is its
               constant, start or cap.
    branches:  children at depth 1, 2, ... for tree drafting with the policy "fixed".
    acceptance: rule for sampling, "rejection" or "block".
    history:   folder in which "suffix" keeps what was written, for later runs; None = in memory only.
    datastore: folder that `specport datastore build` made of your files, for "suffix" to draft from.
    threads, max_context: None = the runtime's and the model's own.

    Raises SpecportError with the next step when something cannot be used.
    """
    # Cheap checks first: a model takes long to load.
    parts = parse(draft)
    folders = Folders(history, datastore)
    folders.check(parts)
    loader = Loader.on(device, threads, max_context, trust_remote_code, progress)
    beside = loader
    if draft_device is not None:
        if not models_in(parts) and draft != "auto":
            raise InvalidInput("there is no draft model for a draft device", "name one with --draft")
        beside = Loader.on(draft_device, threads, max_context, trust_remote_code, progress)
    profile = loader.profile
    if policy is None and num_draft_tokens is None:
        num_draft_tokens = profile.num_draft_tokens
    drafting = Drafting(policy or profile.policy, num_draft_tokens, branches, acceptance)
    if drafting.policy == CLASSIFIER and not models_in(parts):
        raise InvalidInput("the policy classifier needs a draft model", "name one with --draft")
    if drafting.policy == CLASSIFIER and any(part.startswith("graft:") for part in parts):
        raise InvalidInput("the policy classifier cannot grow a graft", "choose another policy")
    files = loader.files(model, precision or profile.precision)
    target = loader.target_with(files, exact, loader.exit_layer(parts, files))
    if draft == "auto" and (bundle := registered(files.fingerprint)):
        parts = [*parts, f"model:{bundle}"]
    tokenizer = load_tokenizer(files.folder)
    notes = [*target.notes]
    for name, used in ((device, loader), (draft_device, beside)):
        if name not in (None, "auto") and (note := used.profile.mismatch(cpu_name())):
            notes.append(note)

    def load_draft(spec: str) -> DraftModel:
        nonlocal drafting
        draft_files, found = beside.draft(spec, draft_precision, files, target)
        if drafting.policy == CLASSIFIER and drafting.classifier is None:
            drafting = replace(drafting, classifier=loader.classifier(target, draft_files))
        notes.extend(found.notes)
        return beside.draft_model(draft_files, found, target)

    retrieval, said = folders.open(tokenizer, target.model.vocab_size)
    notes += said
    drafter = build(
        parts, target.model, tokenizer, load_draft,
        planned=drafting.policy == "planned", costs=loader.costs(target),
        exit_costs=loader.exit_costs(target), retrieval=retrieval,
    )  # fmt: skip
    return Pipeline(
        Engine(target.model, drafter),
        tokenizer,
        drafting,
        model_name=files.name,
        device_name=profile.name,
        notes=notes,
    )


@dataclass(frozen=True)
class Loader:
    """Loads models on one device with the user's settings."""

    profile: Profile
    backend: Backend
    threads: int | None
    max_context: int | None
    trust_remote_code: bool
    progress: Progress

    @classmethod
    def on(
        cls,
        device: str,
        threads: int | None = None,
        max_context: int | None = None,
        trust_remote_code: bool = False,
        progress: Progress = silent,
    ) -> Loader:
        """Raises InvalidInput for bad numbers and DeviceError when the device cannot be used."""
        for name, value in (("threads", threads), ("max_context", max_context)):
            if value is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; it must be 1 or more")
        profile = detect() if device == "auto" else load_profile(device)
        return cls(profile, backend_for(profile), threads, max_context, trust_remote_code, progress)

    def target(self, spec: str | None, precision: str | None, exact: bool) -> tuple[ModelFiles, Loaded]:
        files = self.files(spec, precision or self.profile.precision)
        return files, self.target_with(files, exact)

    def target_with(self, files: ModelFiles, exact: bool, exit_layer: int = 0) -> Loaded:
        """exit_layer: layers after which it may exit early; 0 = none. Raises DeviceError where it cannot."""
        options = LoadOptions(
            self.profile,
            exact=exact,
            threads=self.threads,
            max_context=self.max_context,
            exit_layer=exit_layer,
        )
        loaded = self.backend.load(files, options)
        if loaded.model.capabilities.exit_layer != exit_layer:
            raise DeviceError(
                f"models cannot exit early on {self.profile.name}", "choose another --draft or --device"
            )
        return loaded

    def exit_layer(self, parts: list[str], files: ModelFiles) -> int:
        """What the part early-exit (see `spec.parse`) says, or calibration found; 0 = no early exit.

        Raises InvalidInput where nobody says it.
        """
        layer = exit_in(parts)
        if layer is None:
            return 0
        layer = layer or measurements.find_exit(files.fingerprint, self.profile.name)
        if layer is None:
            raise InvalidInput(
                f"where {files.name} exits best is not known on {self.profile.name}",
                "run specport calibrate --draft early-exit for it, or name a layer: --draft early-exit:E",
            )
        return layer

    def draft(
        self, spec: str, precision: str | None, beside: ModelFiles, target: Loaded
    ) -> tuple[ModelFiles, Loaded]:
        """A bundle with its own head, any other model with the one that calibration found best."""
        files = self.draft_files(spec, precision, beside)
        if files.bundle:
            return files, self.draft_with(files, files.bundle.head_tokens)
        return files, self.draft_with(
            files, measurements.find_pair(target.key, files.fingerprint).head_tokens
        )

    def draft_model(self, files: ModelFiles, loaded: Loaded, target: Loaded) -> DraftModel:
        """A loaded draft with what calibration found of it beside this target."""
        graft = measurements.find_pair(target.key, files.fingerprint).graft
        tokenizer, costs = load_tokenizer(files.folder), self.costs(loaded)
        reach = files.bundle.reach if files.bundle else ()
        return DraftModel(loaded.model, tokenizer, files.name, costs, loaded.head_tokens, graft, reach)

    def classifier(self, target: Loaded, draft: ModelFiles) -> Classifier:
        """Of the policy of that name. Raises InvalidInput where none was trained."""
        found = measurements.find_pair(target.key, draft.fingerprint).classifier
        if found is None:
            raise InvalidInput(
                f"no classifier has been trained for the draft {draft.name} beside this target",
                "run specport calibrate with the same --model, --draft, --device and --threads",
            )
        return found

    def draft_files(self, spec: str, precision: str | None, beside: ModelFiles) -> ModelFiles:
        """Raises ModelError for a bundle that was built for another target than `beside`."""
        files = self.files(spec, precision or self.profile.draft_precision)
        if files.bundle:
            files.bundle.check_target(beside.folder, beside.name, beside.fingerprint, files.folder)
        return files

    def draft_with(self, files: ModelFiles, head_tokens: tuple[int, ...] | None) -> Loaded:
        options = LoadOptions(
            self.profile,
            role="draft",
            threads=self.threads,
            head_tokens=head_tokens,
            max_context=self.max_context,
        )
        return self.backend.load(files, options)

    def costs(self, loaded: Loaded) -> StepCosts:
        """What was measured of this model (`specport calibrate`), else the profile's prior."""
        return self._costs(loaded.key)

    def exit_costs(self, target: Loaded) -> StepCosts | None:
        """What was measured of the first layers of a target that exits early."""
        if not target.model.capabilities.exit_layer:
            return None
        return self._costs(measurements.of_exit(target.key))

    def _costs(self, key: str) -> StepCosts:
        found = measurements.find(key)
        return found.costs if found else StepCosts.prior(self.profile.cost, self.profile.width_change)

    def check_precision(self, precision: str) -> None:
        """Raises InvalidInput for weights that this device cannot run."""
        if self.profile.symmetric and not parse_precision(precision).symmetric:
            raise InvalidInput(
                f"{self.profile.name} runs symmetric weights only, not {precision}",
                f"add the option sym, as in {self.profile.precision}",
            )

    def files(self, spec: str | None, precision: str) -> ModelFiles:
        """The model, converted where needed. Raises ModelError, or InvalidInput as `check_precision` does."""
        self.check_precision(precision)
        return resolve(
            spec,
            precision=precision,
            progress=self.progress,
            trust_remote_code=self.trust_remote_code,
            weights=self.backend.weights,
        )
