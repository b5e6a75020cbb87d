"""The user's choice of drafters, devices and caches, checked before anything slow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specport.core.policies.drafting import Drafting
from specport.core.policies.length_rules import CLASSIFIER
from specport.drafters.registry import GRAFT
from specport.drafters.retrieval.folders import Folders
from specport.drafters.spec import DraftSpec, parse
from specport.errors import InvalidInput
from specport.progress import Progress
from specport.runtime.caches.prefixes import Prefixes
from specport.runtime.devices.profiles import Profile
from specport.runtime.drafts import tiers
from specport.runtime.drafts.tiers import Tiered
from specport.runtime.loading import Loader


@dataclass(frozen=True)
class Checked:
    """Hold what these arguments mean. beside: loads drafts. tiered: None = lossless verification."""

    spec: DraftSpec
    tiered: Tiered | None
    folders: Folders
    prefixes: Prefixes
    loader: Loader
    beside: Loader
    drafting: Drafting


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Hold arguments of `specport.load`, as the user gave them."""

    draft: str
    device: str
    draft_device: str | None
    precision: str | None
    draft_precision: str | None
    policy: str | None
    num_draft_tokens: int | None
    branches: tuple[int, ...]
    acceptance: str
    verify: str
    lossy: bool
    verifier: str | Path | None
    history: str | Path | None
    datastore: str | Path | None
    threads: int | None
    max_context: int | None
    cache_memory: str | None
    prefix_cache: bool | str | Path
    prefix_cache_size: str
    trust_remote_code: bool
    progress: Progress

    def checked(self) -> Checked:
        """Return what they mean. Raises SpecportError for what is wrong whatever the model is."""
        spec = parse(self.draft)
        tiered = tiers.asked(self.verify, self.verifier, self.draft, spec, lossy=self.lossy)
        folders = Folders(self.history, self.datastore)
        folders.check(spec)
        prefixes = Prefixes.parse(self.prefix_cache, self.prefix_cache_size)
        loader = Loader.on(
            self.device, self.threads, self.max_context, self.trust_remote_code, self.progress,
            self.cache_memory,
        )  # fmt: skip
        beside = loader
        if self.draft_device is not None:
            _check_draft_device(spec)
            beside = Loader.on(
                self.draft_device, self.threads, self.max_context, self.trust_remote_code, self.progress
            )
        for place, precision in ((loader, self.precision), (beside, self.draft_precision)):
            if precision is not None:
                place.check_precision(precision)
        drafting = self._drafting(loader.profile, tiered)
        if drafting.policy == CLASSIFIER:
            _check_classifier(spec)
        return Checked(spec, tiered, folders, prefixes, loader, beside, drafting)

    def _drafting(self, profile: Profile, tiered: Tiered | None) -> Drafting:
        """Return the user's choices, with the profile's or tiered verification's where there are none."""
        count = self.num_draft_tokens
        if self.policy is None and count is None:
            count = tiered.num_draft_tokens if tiered else profile.num_draft_tokens
        default = tiered.policy if tiered else profile.policy
        return Drafting(self.policy or default, count, self.branches, self.acceptance)


def _check_draft_device(spec: DraftSpec) -> None:
    """Raise InvalidInput where no draft model is loaded on a device of its own."""
    if not spec.models and not spec.auto:
        raise InvalidInput("a draft device needs a draft model", "name one with --draft")


def _check_classifier(spec: DraftSpec) -> None:
    """Raise InvalidInput where no drafter can use the policy "classifier"."""
    if not spec.models:
        raise InvalidInput("the policy classifier needs a draft model", "name one with --draft")
    if GRAFT in spec.kinds:
        raise InvalidInput("the policy classifier does not support a graft", "choose another policy")
