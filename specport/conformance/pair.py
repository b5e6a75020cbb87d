"""What the suite loads on the device: a target and its draft, and the drafters on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specport.conformance import tiny
from specport.core.ports import Drafter
from specport.drafters.cascade import Cascade
from specport.drafters.model.drafter import ModelDrafter
from specport.drafters.retrieval.history import History
from specport.drafters.retrieval.ngram import NgramDrafter
from specport.drafters.retrieval.recycle import RecycleDrafter
from specport.drafters.retrieval.suffix import SuffixDrafter
from specport.drafters.tree.graft import GraftDrafter
from specport.drafters.tree.level_proposer import ModelLevels
from specport.errors import DeviceError
from specport.models.source import ModelFiles
from specport.runtime.loading import Loader
from specport.runtime.registry import Loaded

DRAFTERS = ("ngram", "suffix", "recycle", "model", "ngram|model", "graft")
MAX_CONTEXT = 1024  # a larger model is tested up to here


@dataclass(frozen=True)
class Pair:
    """files: the target's; tiny: whether it is the suite's own model, of which more is known."""

    loader: Loader
    files: ModelFiles
    target: Loaded
    draft: Loaded
    tiny: bool


def load(device: str, model: str | None, draft: str | None, folder: Path) -> Pair:
    """The models that are named; where none is, the tiny ones, which are written below `folder`.

    A model that comes without a draft drafts for itself. Raises SpecportError.
    """
    loader = Loader.on(device, max_context=MAX_CONTEXT)
    spec = model
    if spec is None:
        own_target, own_draft = tiny.write(folder)
        spec, draft = str(own_target), draft or str(own_draft)
    try:
        files, target = loader.target(spec, None, True)
    except DeviceError:  # a device without an exact mode: what needs one is skipped
        files, target = loader.target(spec, None, False)
    found = loader.draft_with(loader.draft_files(draft or spec, None, files), None)
    return Pair(loader, files, target, found, model is None)


def drafter(pair: Pair, name: str) -> Drafter:
    """One of DRAFTERS on the pair, which has learnt nothing yet."""
    draft, vocab = pair.draft, pair.target.model.vocab_size
    if name == "ngram":
        return NgramDrafter()
    if name == "suffix":
        return SuffixDrafter(History())
    if name == "recycle":
        return RecycleDrafter(vocab)
    if name == "graft":
        levels = ModelLevels(draft.model, vocab, draft.head_tokens)
        return GraftDrafter(levels, [SuffixDrafter(), RecycleDrafter(vocab)])
    model = ModelDrafter(draft.model, vocab, draft.head_tokens)
    return Cascade(NgramDrafter(min_ngram=2), model) if name == "ngram|model" else model
