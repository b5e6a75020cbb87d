"""Choose how many layers a draft keeps, and which, by step time and agreement with the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from specport.quantize.prune import depth, ir
from specport.quantize.prune.probe import Probe
from specport.quantize.request import Request

from specport.calibration import heads
from specport.calibration.target_text import Text
from specport.core.planning.step_costs import StepCosts
from specport.errors import InvalidInput
from specport.models.atomic import write_json
from specport.models.source import ModelFiles, ir_fingerprint
from specport.outside import Format
from specport.progress import Progress
from specport.runtime.loading import Loader

FLOOR = 0.3  # agreement below which even a distilled draft is not worth its cost
RECOVERED = 0.5  # share of the lost agreement that distillation is assumed to bring back


_DROPPING = Format(depth.Dropping, "an order of layers")


@dataclass(frozen=True)
class Choice:
    """Which layers are dropped, and what was expected of other numbers of layers.

    count: number of layers to drop. dropped_by_count[n]: the layers to drop where n are dropped.
    agreements, seconds, tokens_per_second: with n layers dropped: agreement with the target before
           distillation, seconds of a draft step, expected speed.
    """

    num_layers: int
    count: int
    dropped_by_count: tuple[tuple[int, ...], ...]
    agreements: tuple[float, ...]
    seconds: tuple[float, ...]
    tokens_per_second: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.count < len(self.dropped_by_count) or not 0 <= self.num_layers < 1 << 16:
            raise ValueError(f"{self.count} of {self.num_layers} layers cannot be dropped")

    @classmethod
    def all_of(cls, num_layers: int) -> Choice:
        """Return the choice of all layers, for which nothing was measured."""
        return cls(num_layers, 0, ((),), (), (), ())

    @property
    def dropped(self) -> tuple[int, ...]:
        return tuple(sorted(self.dropped_by_count[self.count]))

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(layer for layer in range(self.num_layers) if layer not in self.dropped)


@dataclass(frozen=True)
class Search:
    """A search for the layers to drop from the draft in `files`.

    files: IR of the draft with all its layers.
    head:  ids that its head will keep; None = all.
    work:  folder for the order of layers, which a later run finds there, and for a smaller draft to be timed.
    """

    loader: Loader
    files: ModelFiles
    head: tuple[int, ...] | None
    work: Path

    def run(self, texts: Sequence[Text], target: StepCosts, request: Request, progress: Progress) -> Choice:
        """Return the choice that the request asks for.

        texts:  the target's own, which the draft should agree with. target: its step costs.
        Raises InvalidInput for more layers than there are, and for a speed that cannot be reached.
        """
        total, dropping = self._dropping(texts, request, progress)
        count = 0 if request.layers is None else total - request.layers
        whole, layer = self._seconds(dropping)
        seconds = tuple(whole - layer * n for n in range(len(dropping.agreements)))
        recovered = RECOVERED if request.distil_tokens else 0.0
        best = dropping.agreements[0]
        speeds = tuple(
            heads.expected_speed(share + recovered * max(best - share, 0.0), cost, target)
            for share, cost in zip(dropping.agreements, seconds, strict=True)
        )
        if request.layers is None and request.speed_up is None:
            count = max(range(len(speeds)), key=speeds.__getitem__)
        elif request.speed_up is not None:
            fast = [n for n, cost in enumerate(seconds) if whole / cost >= request.speed_up]
            if not fast:
                reached = whole / seconds[-1]
                raise InvalidInput(
                    f"a draft step can be made {reached:.2f} times as fast at most, not {request.speed_up:g}",
                    "ask for less, or build the draft from a smaller model",
                )
            count = fast[0]
        return Choice(total, count, dropping.dropped_by_count, dropping.agreements, seconds, speeds)

    def _dropping(
        self, texts: Sequence[Text], request: Request, progress: Progress
    ) -> tuple[int, depth.Dropping]:
        """Return the number of layers, and which to drop where 0, 1, ... of them are dropped."""
        known = self.work / "layers.json"
        profile = self.loader.profile.fitted(self.files.folder)
        probe = Probe(self.files.folder, profile.device, profile.draft, self.head)
        total, layers = probe.num_layers, request.layers
        if layers is not None and layers > total:
            raise InvalidInput(f"the draft has {total} layers, fewer than {layers}")
        stored = _DROPPING.find(known)
        if stored and stored.reaches(total, 0 if layers is None else total - layers):
            return total, stored
        count, floor = (total - 1, FLOOR) if layers is None else (total - layers, 0.0)
        agreement = partial(probe.agreement, texts)
        if request.by in depth.MEASURES:
            streams = np.concatenate([probe.streams(text) for text in texts], axis=1)
            dropping = depth.by_measure(streams, request.by, agreement, range(count + 1), progress, floor)
        else:
            dropping = depth.by_agreement(agreement, total, count, progress, floor)
        write_json(known, asdict(dropping))
        return total, dropping

    def _seconds(self, dropping: depth.Dropping) -> tuple[float, float]:
        """Return the seconds of the whole draft's step, and the seconds of one layer in it.

        A draft without half of the layers is timed beside the whole one.
        """
        dropped = dropping.dropped_by_count[(len(dropping.dropped_by_count)) // 2]
        whole = self.loader.draft_with(self.files, self.head)
        seconds = heads.step_seconds(whole.model)
        if not dropped:
            return seconds, 0.0
        half = self.work / "half"
        ir.drop_layers(self.files.folder, half, dropped)
        files = ModelFiles(half, self.files.name, self.files.precision, "", ir_fingerprint(half))
        ratio = heads.step_ratio(whole.model, self.loader.draft_with(files, self.head).model)
        return seconds, max(seconds * (1.0 - ratio) / len(dropped), 0.0)
