"""Load models on a device with the user's settings, and look up their stored measurements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specport.core.planning.step_costs import StepCosts
from specport.core.policies.stop_classifier import Classifier
from specport.core.ports import HEAD_INPUT
from specport.drafters.context import DraftModel
from specport.drafters.spec import DraftSpec
from specport.errors import DeviceError, InvalidInput, ModelError
from specport.models import precision as precisions
from specport.models.bundle import Bundle
from specport.models.kinds import bigrams
from specport.models.kinds.diffusion import find_facts
from specport.models.kinds.pipo import Pairs
from specport.models.shipped import is_head, is_mtp_head
from specport.models.source import ModelFiles
from specport.outside.places import expanded
from specport.progress import Progress, silent
from specport.runtime.caches import memory
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import Profile, detect, load_profile
from specport.runtime.devices.registry import Backend, Loaded, LoadOptions, backend_for
from specport.runtime.stored import measurements
from specport.text.tokenizer import Tokenizer, load_beside

HEAD_COST = 0.06  # assumed step of a head that was never timed, in plain steps of the target


@dataclass(frozen=True)
class DraftFiles:
    """Hold the files of a draft and its tokenizer.

    mismatch: how its tokenizer differs from the target's (`Tokenizer.mismatch`); None = ids mean the same.
    """

    files: ModelFiles
    tokenizer: Tokenizer
    mismatch: str | None


@dataclass(frozen=True)
class Loader:
    """Load models on one device with the user's settings."""

    profile: Profile
    backend: Backend
    threads: int | None
    max_context: int | None
    trust_remote_code: bool
    progress: Progress
    cache_memory: str | None = None
    speech: bool = False
    diffusion: bool = False  # whether it loads models that fill in masks, instead of those that go on

    @classmethod
    def on(
        cls,
        device: str,
        threads: int | None = None,
        max_context: int | None = None,
        trust_remote_code: bool = False,
        progress: Progress = silent,
        cache_memory: str | None = None,
        speech: bool = False,
    ) -> Loader:
        """Return a loader for a device.

        speech: whether it loads speech models.
        cache_memory: limit for the caches of targets, see `memory.parse`.
        Raises InvalidInput for bad numbers and DeviceError when the device cannot be used.
        """
        for name, value in (("threads", threads), ("max_context", max_context)):
            if value is not None and value < 1:
                raise InvalidInput(f"{name} is {value}; it must be 1 or more")
        if cache_memory is not None:
            memory.parse(cache_memory)
        profile = detect() if device == "auto" else load_profile(device)
        backend = backend_for(profile)
        return cls(profile, backend, threads, max_context, trust_remote_code, progress, cache_memory, speech)

    def target(self, spec: str | None, precision: str | None, exact: bool) -> tuple[ModelFiles, Loaded]:
        files = self.files(spec, precision or self.profile.precision)
        return files, self.target_with(files, exact)

    def target_with(
        self,
        files: ModelFiles,
        exact: bool,
        exit_layer: int = 0,
        head: ModelFiles | None = None,
        hidden_layers: tuple[int, ...] = (),
        mtp: ModelFiles | None = None,
        mtp_tokens: tuple[int, ...] | None = None,
        pairs: Pairs | None = None,
        skipped_layers: tuple[int, ...] = (),
    ) -> Loaded:
        """Load a target.

        exit_layer: number of layers after which it may exit early; 0 = none.
        head:       bundle of a recurrent head (`hidden_head`) that is to draft for it.
        hidden_layers: layers whose states its steps can return; those of head and module are added.
        mtp:        a module for multi-token prediction (`runtime.mtp`), to draft for it.
        mtp_tokens: ids that the module's head keeps; None = all.
        pairs:      of a pair model, whose decoder this is; None = any other model.
        skipped_layers: layers that its slim verifier does without; () = it has none.
        Raises DeviceError where the device does not support early exits or slim verifiers, and ModelError for
        a head in place of a model.
        """
        if files.bundle and files.bundle.on_states:
            raise ModelError(f"{files.name} is a draft head, not a model", "name it with --draft")
        if head and head.bundle and head.bundle.recurrent:
            hidden_layers = tuple(sorted({*hidden_layers, *head.bundle.recurrent.layers}))
        if mtp is not None:
            hidden_layers = tuple(sorted({*hidden_layers, HEAD_INPUT}))
        options = LoadOptions(
            self.profile,
            exact=exact,
            threads=self.threads,
            max_context=self.max_context,
            hidden_layers=hidden_layers,
            hidden_head=head,
            mtp=mtp,
            mtp_tokens=mtp_tokens,
            pairs=pairs,
            exit_layer=exit_layer,
            skipped_layers=skipped_layers,
            cache_bytes=None if self.cache_memory is None else memory.parse(self.cache_memory),
            progress=self.progress,
        )
        loaded = self.backend.load(files, options)
        if _layer_of(loaded) != exit_layer:
            raise DeviceError(
                f"models cannot exit early on {self.profile.name}", "choose another --draft or --device"
            )
        if skipped_layers and loaded.model.slim is None:
            raise DeviceError(
                f"models have no slim verifier on {self.profile.name}",
                "leave out --verify, or choose another --device",
            )
        return loaded

    def hidden_head(self, spec: DraftSpec) -> ModelFiles | None:
        """Return the bundle of the recurrent head in a draft expression, to be loaded with its target.

        Raises InvalidInput where there are two.
        """
        return self._head(spec, is_head, "draft")

    def mtp_head(self, spec: DraftSpec) -> ModelFiles | None:
        """Return the bundle of the MTP head in a draft expression, as `hidden_head`."""
        return self._head(spec, is_mtp_head, "MTP")

    def _head(self, spec: DraftSpec, is_one: Callable[[Path], bool], kind: str) -> ModelFiles | None:
        paths = {name: expanded(name).resolve() for name in spec.models}
        found = [name for name, path in paths.items() if is_one(path)]
        if len({paths[name] for name in found}) > 1:
            raise InvalidInput(f"two {kind} heads in {str(spec)!r}", "a target is loaded with one: name one")
        return self.files(found[0], self.profile.draft_precision) if found else None

    def exit_layer(self, spec: DraftSpec, files: ModelFiles) -> int:
        """Return the layer of `early-exit:E`, or the best one that calibration found; 0 = no early exit.

        Raises InvalidInput where neither is known.
        """
        layer = spec.exit_layer
        if layer is None:
            return 0
        layer = layer or measurements.find_exit(files.fingerprint, self.profile.name)
        if layer is None:
            raise InvalidInput(
                f"the best exit layer of {files.name} is not known on {self.profile.name}",
                "run specport calibrate --draft early-exit, or name a layer: --draft early-exit:E",
            )
        return layer

    def draft(
        self, spec: str, precision: str | None, beside: ModelFiles, tokenizer: Tokenizer, target: Loaded
    ) -> tuple[DraftFiles, Loaded]:
        """Load a draft: a bundle with its own head, any other model with the head that calibration chose.

        beside, tokenizer: as for `draft_files`. target: the loaded target, which is returned for a draft that
        is a head of it.
        Raises DeviceError for a head that was not loaded with the target.
        """
        draft = self.draft_files(spec, precision, beside, tokenizer)
        files = draft.files
        if files.bundle and files.bundle.on_states:
            lacking = (target.model.mtp if files.bundle.mtp else target.model.hidden_head) is None
            if lacking:
                what = "multi-token prediction" if files.bundle.mtp else "draft head"
                raise DeviceError(
                    f"models have no {what} on {self.profile.name}", "choose another --draft or --device"
                )
            return draft, target
        if files.bundle:
            return draft, self.draft_with(files, files.bundle.head_tokens)
        head = measurements.find_pair(target.key, files.fingerprint).head_tokens
        return draft, self.draft_with(files, head)

    def draft_model(self, draft: DraftFiles, loaded: Loaded, target: Loaded) -> DraftModel:
        """Return a loaded draft with its calibration results for this target."""
        files = draft.files
        if files.bundle and files.bundle.on_states:
            return self._head_model(draft, files.bundle, target)
        parallel = files.bundle.parallel if files.bundle else None
        return DraftModel(
            loaded.model,
            draft.tokenizer,
            files.name,
            self.costs(loaded),
            loaded.head_tokens,
            measurements.find_pair(target.key, files.fingerprint).graft,
            files.bundle.reach if files.bundle else (),
            parallel,
            draft.mismatch,
            assumed=files.bundle.cost if files.bundle else None,
            bigrams=bigrams.of(parallel, files.folder),
        )

    def _head_model(self, draft: DraftFiles, bundle: Bundle, target: Loaded) -> DraftModel:
        """Return a draft that is a head of the loaded target."""
        found = measurements.find(measurements.of_head(target.key, draft.files.fingerprint))
        module = target.model.mtp if bundle.mtp else None
        prior = StepCosts.prior({1: 1.0})
        if module is not None:
            prior = StepCosts.prior(self.profile.cost, self.profile.width_change)
        return DraftModel(
            target.model if module is None else module,
            draft.tokenizer,
            draft.files.name,
            found.costs if found else prior,
            bundle.head_tokens,
            reach=bundle.reach,
            mismatch=draft.mismatch,
            head=target.model.hidden_head if bundle.recurrent else None,
            mtp=module is not None,
            assumed=bundle.cost or HEAD_COST,
        )

    def classifier(self, target: Loaded, draft: ModelFiles) -> Classifier:
        """Return the classifier of this pair. Raises InvalidInput where none was trained."""
        found = measurements.find_pair(target.key, draft.fingerprint).classifier
        if found is None:
            raise InvalidInput(
                f"no classifier has been trained for the draft {draft.name} with this target",
                "run specport calibrate with the same --model, --draft, --device and --threads",
            )
        return found

    def draft_files(
        self, spec: str, precision: str | None, beside: ModelFiles, tokenizer: Tokenizer
    ) -> DraftFiles:
        """Return the files of a draft.

        beside, tokenizer: of the target.
        Raises ModelError for a bundle that was built for another target.
        """
        files = self.files(spec, precision or self.profile.draft_precision)
        if files.bundle and files.bundle.on_states:  # it has the target's tokenizer, and no files of its own
            own, same = tokenizer, files.bundle.tokenizer == tokenizer.fingerprint
            mismatch = None if same else "it was trained with another one"
        else:
            own = load_beside(files.folder, tokenizer)
            mismatch = None if own is tokenizer else own.mismatch(tokenizer)
        if files.bundle:
            files.bundle.check_target(beside.folder, beside.name, beside.fingerprint, mismatch)
        return DraftFiles(files, own, mismatch)

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
        """Return the measured step costs of this model (`specport calibrate`), else the profile's prior."""
        return self._costs(loaded.key)

    def exit_costs(self, target: Loaded) -> StepCosts | None:
        """Return the step costs of the first layers of a target that exits early, else None."""
        if target.model.early_exit is None:
            return None
        return self._costs(measurements.of_exit(target.key))

    def _costs(self, key: str) -> StepCosts:
        found = measurements.find(key)
        return found.costs if found else StepCosts.prior(self.profile.cost, self.profile.width_change)

    def check_precision(self, precision: str) -> None:
        """Raise InvalidInput for a weight format that this device cannot run."""
        if not precisions.stored(precision, self.backend.weights).symmetric and self.profile.symmetric:
            raise InvalidInput(
                f"{self.profile.name} runs symmetric weights only, not {precision}",
                f"add the option sym, as in {self.profile.precision}",
            )

    def files(self, spec: str | None, precision: str) -> ModelFiles:
        """Return the model, converted where needed. Raises ModelError, or InvalidInput for the precision."""
        self.check_precision(precision)
        files = resolve(
            spec,
            precision=precision,
            progress=self.progress,
            trust_remote_code=self.trust_remote_code,
            weights=self.backend.weights,
            speech=self.speech,
        )
        if not self.diffusion and find_facts(files.folder) is not None:
            raise ModelError(
                f"{files.name} is a diffusion model, which fills in masks",
                "use it with: specport run --model",
            )
        return files


def _layer_of(loaded: Loaded) -> int:
    """Return the layer after which a model can exit early; 0 = it cannot."""
    return loaded.model.early_exit.layer if loaded.model.early_exit else 0
