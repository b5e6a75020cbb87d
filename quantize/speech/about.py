"""The record of a draft for a speech model, kept beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.models.atomic import write_json
from specport.outside import Format
from specport.outside.numbers import Amount, Count, Layer, Positive, Share

# Its ending is not .json: those count as parts of a model, which would be converted again after measuring.
NAME = "speech-draft.about"
FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """What was measured with the draft on held-out windows.

    windows, tokens: that were measured. greedy: windows whose text was greedy when the target heard them;
              same: those of them that have the same ids with the draft.
    survival: share of the rounds in which the draft tokens of depth 1, 2, ... were all accepted.
    wer:      of the draft alone, with the target's text as the truth; None where jiwer is missing.
    draft_ms, target_ms: a step of one token. encoder_ms: a window's.
    speed_up, length: of the decoder, expected at the best number of draft tokens, by these figures.
    speed_up_whole: the same with the encoder's time.
    decoder_speed_up: of the decoder, measured with planned drafts; None in older records.
    """

    windows: Count
    tokens: Count
    greedy: Count
    same: Count
    survival: tuple[Share, ...]
    rounds: Count
    wer: Amount | None
    draft_ms: Positive
    target_ms: Positive
    encoder_ms: Amount
    speed_up: Amount
    speed_up_whole: Amount
    length: Count
    decoder_speed_up: Amount | None = None

    @property
    def cost(self) -> float:
        """Return a draft step's time as a share of the target's."""
        return self.draft_ms / self.target_ms


@dataclass(frozen=True)
class About:
    """What was trained and how, with the result.

    target:   the model's name. layers: of its decoder, that were kept; num_layers: that it has.
    head:     number of ids that it can propose; None = all (an older draft).
    recipe:   entries of `Recipe`.
    files, unreadable, windows, held_out: recordings, those that could not be read, windows that the target
              heard, and those of them that were not trained on.
    agreement_before, agreement: share of the held-out tokens that the draft would propose.
    survival_before, survival: share of the held-out chains of one pass whose tokens up to depth 1, 2, ... are
              all the target's; of depth 1 only where the draft drafts token by token.
    trained:  False where training did not raise the agreement, so that the layers are the target's.
    """

    target: str
    layers: tuple[Layer, ...]
    num_layers: Layer
    recipe: Mapping[str, Any]
    files: Count
    unreadable: Count
    windows: Count
    held_out: Count
    tokens_read: Count
    agreement_before: Share
    agreement: Share
    trained: bool
    train_seconds: Amount
    measured: Measured
    device: str
    processor: str
    date: str
    versions: Mapping[str, str]
    head: Count | None = None
    survival: tuple[Share, ...] = ()
    survival_before: tuple[Share, ...] = ()

    @property
    def parallel(self) -> int:
        """Return the tokens that one pass drafts; 0 = token by token."""
        found = self.recipe.get("parallel", 0)
        return found if isinstance(found, int) else 0


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the entries of `About`, and others that are of interest to people, into a folder."""
    write_json(folder / NAME, {"format": FORMAT, **facts})


def read(folder: Path) -> About:
    """Read the record of a draft. Raises ModelError where it cannot be read."""
    return _ABOUT.read(folder / NAME)


_ABOUT = Format(About, "the record of a draft", "run specport quantize speech again", version=FORMAT)
