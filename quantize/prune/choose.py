"""Chooses how many layers a draft keeps, and which: by what they cost and how well the draft still agrees."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from specport.quantize.convert import ir
from specport.quantize.prune import depth
from specport.quantize.prune.probe import Probe

from specport.calibration import heads
from specport.core.planning.step_costs import StepCosts
from specport.errors import InvalidInput
from specport.models.atomic import write_json
from specport.models.source import ModelFiles, ir_fingerprint
from specport.progress import Progress
from specport.runtime.loading import Loader
from specport.text.builtin_prompts import Text

if TYPE_CHECKING:
    from specport.quantize.build import Request

FLOOR = 0.3  # agreement below which even a healed draft is not worth its cost
# Share of the lost agreement that healing is expected to bring back, where nothing else is known.
HEALED = 0.5


@dataclass(frozen=True)
class Choice:
    """gone[n]: the layers that go when n of them go; `count` of them do.

    agreements: with the target, unhealed, with 0, 1, ... of them gone.
    seconds:    of a draft step, likewise. rates: tokens a second that are expected of each.
    """

    num_layers: int
    count: int
    gone: tuple[tuple[int, ...], ...]
    agreements: tuple[float, ...]
    seconds: tuple[float, ...]
    rates: tuple[float, ...]

    @property
    def dropped(self) -> tuple[int, ...]:
        return tuple(sorted(self.gone[self.count]))

    @property
    def kept(self) -> tuple[int, ...]:
        return tuple(layer for layer in range(self.num_layers) if layer not in self.dropped)


@dataclass(frozen=True)
class Search:
    """folder: IR of the draft with all its layers. half: a folder for one with fewer, to be timed."""

    folder: Path
    loader: Loader
    files: ModelFiles
    head: tuple[int, ...] | None
    half: Path

    def run(
        self,
        texts: Sequence[Text],
        target: StepCosts,
        request: Request,
        known: Path,
        progress: Progress,
    ) -> Choice:
        """known: where the result of the search is kept, and found when it is run again."""
        total, found = self._dropping(texts, request, known, progress)
        count = 0 if request.layers is None else total - request.layers
        whole, layer = self._seconds(found)
        seconds = tuple(whole - layer * n for n in range(len(found.agreements)))
        healing = HEALED if request.distil_tokens else 0.0
        best = found.agreements[0]
        rates = tuple(
            heads.rate(share + healing * max(best - share, 0.0), cost, target)
            for share, cost in zip(found.agreements, seconds, strict=True)
        )
        if request.layers is None and request.speed_up is None:
            count = max(range(len(rates)), key=rates.__getitem__)
        elif request.speed_up is not None:
            fast = [n for n, cost in enumerate(seconds) if whole / cost >= request.speed_up]
            if not fast:
                reached = whole / seconds[-1]
                raise InvalidInput(
                    f"a draft step can be made {reached:.2f} times as fast at most, not {request.speed_up:g}",
                    "ask for less, or make it from a smaller model",
                )
            count = fast[0]
        return Choice(total, count, found.gone, found.agreements, seconds, rates)

    def _dropping(
        self, texts: Sequence[Text], request: Request, known: Path, progress: Progress
    ) -> tuple[int, depth.Dropping]:
        """How many layers there are, and which go when 0, 1, ... of them go."""
        probe = Probe(self.folder, self.loader.profile.device, self.loader.profile.draft, self.head)
        total, layers = probe.num_layers, request.layers
        if layers is not None and layers > total:
            raise InvalidInput(f"the draft has {total} layers, fewer than {layers}")
        if known.is_file():
            stored = json.loads(known.read_text(encoding="utf-8"))
            return total, depth.Dropping(tuple(map(tuple, stored["gone"])), tuple(stored["agreements"]))
        count, floor = (total - 1, FLOOR) if layers is None else (total - layers, 0.0)
        agreement = partial(probe.agreement, texts)
        if request.by in depth.MEASURES:
            streams = np.concatenate([probe.streams(text) for text in texts], axis=1)
            found = depth.by_measure(streams, request.by, agreement, range(count + 1), progress, floor)
        else:
            found = depth.by_agreement(agreement, total, count, progress, floor)
        write_json(known, asdict(found))
        return total, found

    def _seconds(self, found: depth.Dropping) -> tuple[float, float]:
        """Seconds of the whole draft's step, and what each layer takes of it."""
        gone = found.gone[(len(found.gone)) // 2]
        whole = self.loader.draft_with(self.files, self.head)
        seconds = heads.step_seconds(whole.model)
        if not gone:
            return seconds, 0.0
        ir.drop_layers(self.folder, self.half, gone)
        files = ModelFiles(self.half, self.files.name, self.files.precision, "", ir_fingerprint(self.half))
        ratio = heads.step_ratio(whole.model, self.loader.draft_with(files, self.head).model)
        return seconds, max(seconds * (1.0 - ratio) / len(gone), 0.0)
