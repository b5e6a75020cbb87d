"""What the suite loads on the device: a target and its draft, and the policies that draft with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specport.conformance.models import tiny
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
    LengthRule,
)
from specport.core.ports import Drafter, Model
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.tree.graft import GraftDrafter
from specport.drafters.tree.level_proposer import ModelLevels
from specport.errors import DeviceError
from specport.models.json_file import read_json
from specport.models.source import ModelFiles
from specport.runtime.devices.registry import Loaded, LoadOptions
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer

DRAFTERS = ("ngram", "suffix", "recycle", "model", "ngram|model", "graft")
MAX_CONTEXT = 1024  # a larger model is tested up to here


@dataclass(frozen=True)
class Pair:
    """A target and a draft on one device.

    files: the target's.
    tiny:  whether it is the suite's own model, of which more is known.
    """

    loader: Loader
    files: ModelFiles
    target: Loaded
    draft: Loaded
    tiny: bool

    @property
    def config(self) -> Mapping[str, Any]:
        """The target's config.json."""
        return read_json(self.files.folder / "config.json")

    @property
    def num_layers(self) -> int:
        return int(self.config.get("num_hidden_layers", 2))

    def variant(self, **options: Any) -> Model:
        """Load the target anew with other `LoadOptions`. Raises SpecportError."""
        model = self.target.model
        chosen = LoadOptions(
            self.loader.profile, exact=model.capabilities.exact, max_context=model.max_context
        )
        return self.loader.backend.load(self.files, replace(chosen, **options)).model


def load(device: str, model: str | None, draft: str | None, folder: Path, kind: str = "llama") -> Pair:
    """Load the models that are named; where none is, the tiny ones, which are written below `folder`.

    kind: of the tiny ones, one of `tiny.KINDS`.

    A model that comes without a draft drafts for itself. Raises SpecportError.
    """
    loader = Loader.on(device, max_context=MAX_CONTEXT)
    spec = model
    if spec is None:
        own_target, own_draft = tiny.write(folder, kind)
        spec, draft = str(own_target), draft or str(own_draft)
    try:
        files, target = loader.target(spec, None, True)
    except DeviceError:  # a device without an exact mode: what needs one is skipped
        files, target = loader.target(spec, None, False)
    found = loader.draft_files(draft or spec, None, files, load_tokenizer(files.folder))
    loaded = loader.draft_with(found.files, None)
    return Pair(loader, files, target, loaded, model is None)


def policy(pair: Pair, name: str, make_rule: Callable[[], LengthRule] = lambda: Fixed(4)) -> FirstProposal:
    """Return a policy over one of DRAFTERS that has learnt nothing yet.

    make_rule: how much it drafts, for each sequence.
    """
    return FirstProposal(_drafters(pair, name), make_rule, tree=pair.target.model.capabilities.tree)


def _drafters(pair: Pair, name: str) -> list[Drafter]:
    draft, vocab = pair.draft, pair.target.model.vocab_size
    if name == "ngram":
        return [NgramDrafter()]
    if name == "suffix":
        return [SuffixDrafter(History())]
    if name == "recycle":
        return [RecycleDrafter(vocab)]
    if name == "graft":
        levels = ModelLevels(draft.model, vocab, draft.head_tokens)
        return [GraftDrafter(levels, [SuffixDrafter(), RecycleDrafter(vocab)])]
    model = ModelDrafter(draft.model, vocab, draft.head_tokens)
    return [NgramDrafter(min_ngram=2), model] if name == "ngram|model" else [model]
