"""`specport quantize`: from a target, and a smaller sibling of it, to a draft that is worth its cost.

What takes long is kept while it is done: search and training in `OUT.partial`, the text that the target
writes in the cache, for later drafts as well. The same command goes on there; the bundle appears at once,
when all of it is there.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from specport.quantize.evaluate import pair as proof
from specport.quantize.inputs import Origin
from specport.quantize.plan import Plan
from specport.quantize.prune import choose, depth
from specport.quantize.text import teacher
from specport.quantize.text.prompts import parts
from specport.quantize.train import distilled as healed
from specport.quantize.train.distilled import Healed

from specport.calibration import calibrate, heads
from specport.calibration.measure import measure
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Model
from specport.errors import InvalidInput
from specport.jobs import worker
from specport.jobs.workdir import workplace
from specport.models import bundle
from specport.models import precision as precisions
from specport.models.bundle import Bundle
from specport.models.source import ModelFiles, ir_fingerprint, original
from specport.models.weight_sketch import sketch
from specport.progress import Progress, part, silent
from specport.runtime import measurements
from specport.runtime.registry import Loaded
from specport.runtime.versions import installed
from specport.text import builtin_prompts

PACKAGES = ("specport", "openvino", "nncf", "optimum-intel", "transformers", "torch")
AGREEMENT = "agreement"
_CHOOSING_TOKENS = 64
_COSTS_BUDGET_S, _CONTEXTS = 8.0, (64,)  # for costs that calibration has not measured


@dataclass(frozen=True)
class Request:
    """What to build. Raises InvalidInput for wishes that contradict each other.

    layers, speed_up: how many layers to keep, or how much faster a draft step is to be; neither: as many as
                   make the most tokens a second.
    by:            what tells which layers go: "agreement" (how well the draft still agrees with the target,
                   layer by layer), or a measure of `depth.MEASURES`.
    mlp:           share of the feed-forward channels that stay; fewer than all only with healing.
    head_tokens:   size of the head; 0 keeps it whole, None takes the best size.
    distil_tokens: tokens that the target writes for the draft to learn from; 0 = no healing.
    prompts:       the user's own turns, to write answers to, choose and measure by (see `prompts.parts`).
    loss, epochs, learning_rate, seed: see `distil.Recipe`.
    """

    layers: int | None = None
    speed_up: float | None = None
    by: str = AGREEMENT
    mlp: float = 1.0
    head_tokens: int | None = None
    distil_tokens: int = 0
    prompts: tuple[str, ...] = ()
    loss: str = "kl"
    epochs: float = 3.0
    learning_rate: float = 2e-5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layers is not None and self.speed_up is not None:
            raise InvalidInput("layers and speed_up are two ways to say one thing", "give one of them")
        if self.layers is not None and self.layers < 1:
            raise InvalidInput(f"layers is {self.layers}; it must be 1 or more")
        if self.speed_up is not None and not 1.0 <= self.speed_up <= 20.0:
            raise InvalidInput(f"speed_up is {self.speed_up}; it must be from 1 to 20")
        if not 0.1 <= self.mlp <= 1.0:
            raise InvalidInput(f"mlp is {self.mlp}; it must be from 0.1 to 1")
        if self.mlp < 1.0 and not self.distil_tokens:
            raise InvalidInput("a draft with fewer channels has to be healed", "add --distil TOKENS")
        if self.by not in (AGREEMENT, *depth.MEASURES):
            known = ", ".join((AGREEMENT, *depth.MEASURES))
            raise InvalidInput(f"unknown measure {self.by!r}", f"choose one of {known}")
        if self.head_tokens is not None and self.head_tokens < 0:
            raise InvalidInput(f"head_tokens is {self.head_tokens}; it must be 0 or more")
        if self.distil_tokens < 0:
            raise InvalidInput(f"distil_tokens is {self.distil_tokens}; it must be 0 or more")
        if self.prompts and len(set(self.prompts)) < 4:
            raise InvalidInput(
                "fewer than four different prompts are too few to choose and measure by", "give more"
            )


@dataclass(frozen=True)
class Built:
    """folder: of the bundle. plan: what was expected of it, and of other heads and layers."""

    bundle: Bundle
    folder: Path
    plan: Plan


def build(
    target: str | None,
    out: Path,
    request: Request,
    *,
    source: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    draft_precision: str | None = None,
    threads: int | None = None,
    processes: int = 1,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Built:
    """Build a draft for `target` from `source` (None = the target itself) and write it to the folder `out`.

    source: what was healed elsewhere (`train/distilled.py`) keeps its layers and head, unless others are
    asked for.
    processes: more than one train together, as `accelerate launch` starts them.
    Other arguments as for `specport.load`. Raises SpecportError; what was done until then is kept.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} is there already", "choose another --out, or remove it first")
    if processes < 1:
        raise InvalidInput(f"processes is {processes}; it must be 1 or more")
    spec = source if source is not None else target
    before = healed.read(Path(spec)) if spec and not request.distil_tokens else Healed({})
    if before.facts:
        draft_precision = draft_precision or before.facts["precision"]
        if request.layers is None and request.speed_up is None:
            request = replace(request, layers=before.facts["layers"])
    origin = Origin.load(
        target, source, device=device, precision=precision, draft_precision=draft_precision, threads=threads,
        trust_remote_code=trust_remote_code, progress=part(progress, 0.0, 0.05),
    )  # fmt: skip
    # Known now, before anything takes long: healing needs weights that can be trained.
    trainable = original(spec) if request.distil_tokens else None
    work = out.with_name(out.name + ".partial")
    prints = {"target": origin.target_files.fingerprint, "source": origin.files.fingerprint}
    with workplace(work, {**asdict(request), **prints}):
        return _Job(origin, request, work, trainable, before, processes, progress).run(out)


@dataclass
class _Job:
    """One build: the stages in their order."""

    origin: Origin
    request: Request
    work: Path
    trainable: Path | None
    before: Healed
    processes: int
    progress: Progress
    shards: list[Path] = field(default_factory=list)

    def run(self, out: Path) -> Built:
        origin = self.origin
        choosing, held_out, own = parts(self.request.prompts)
        costs = self._costs(origin.target, part(self.progress, 0.05, 0.1))
        if self.trainable:
            bar = part(self.progress, 0.1, 0.4)
            count, seed = self.request.distil_tokens, self.request.seed
            folder = teacher.folder_for(origin.target_files.fingerprint, own, seed)
            self.shards = teacher.write_shards(
                self._writer, origin.tokenizer, folder, count, seed, own, bar, least=2
            )  # one is held out
        plan = self._plan(choosing, costs, part(self.progress, 0.4, 0.55))
        folder = self.work / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        distilled = self._weights(plan, folder, part(self.progress, 0.55, 0.9))
        name, precision = origin.files.name, self._precision()
        files = ModelFiles(folder, name, precision, str(out), ir_fingerprint(folder))
        draft = origin.loader.draft_with(files, plan.head)
        draft_costs = self._costs(draft, part(self.progress, 0.9, 0.92), keep=files)
        pair = proof.Pair(origin.target, draft, origin.tokenizer, name, costs, draft_costs)
        measured = proof.measure(pair, held_out, part(self.progress, 0.92, 1.0))
        choice = plan.choice
        made = Bundle(
            target=origin.target_files.name,
            target_shape=bundle.shape(origin.target_files.folder),
            target_fingerprint=origin.target_files.fingerprint,
            target_sketch=sketch(origin.target_files.folder),
            tokenizer=origin.tokenizer.fingerprint,
            source=name,
            precision=precision,
            layers=choice.kept,
            num_layers=choice.num_layers,
            head=None if plan.head is None else bundle.ranges(plan.head),
            distilled=distilled,
            measured={"device": origin.loader.profile.name, **measured},
            provenance={
                "command": " ".join(["specport", *sys.argv[1:]]) if sys.argv[0].endswith("specport") else "",
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": installed(PACKAGES),
                "layers_by": self.request.by,
                "layers_gone": [list(gone) for gone in choice.gone],
                "agreements": [round(a, 4) for a in choice.agreements],
            },
        )
        bundle.write(folder, made)
        if out.exists():
            out.rmdir()  # empty, as was checked
        os.replace(folder, out)
        if made.pays:
            bundle.register(out, origin.target_files.fingerprint)
        self.progress("done", 1.0)
        return Built(made, out, plan)

    def _writer(self) -> Model:
        """The target with the faster kernels: it writes text to learn from, not text to be compared."""
        return self.origin.loader.target_with(self.origin.target_files, exact=False).model

    def _precision(self) -> str:
        """What the draft's weights are stored in: INT4 with zero points, where they were fitted or trained.

        Sources often are 4-bit files, whose weights survive INT4 without. Those that have left their grid do
        not: of a Qwen draft that agreed with 72 % in INT8, 70 % was left with zero points and 48 % without.
        """
        given = self.origin.files.precision
        return given if self.trainable is None else precisions.with_zero_points(given)

    def _plan(self, choosing: Sequence[str], costs: StepCosts, progress: Progress) -> Plan:
        kept = self.work / "plan.json"
        if known := Plan.load(kept):
            return known
        origin = self.origin
        bar = part(progress, 0.0, 0.2)
        written = builtin_prompts.write(
            origin.target.model, origin.tokenizer, choosing, _CHOOSING_TOKENS, bar
        )
        tried, head = self._head(written, costs, part(progress, 0.2, 0.4))
        search = choose.Search(origin.files.folder, origin.loader, origin.files, head, self.work / "half")
        order = self.work / "layers.json"
        choice = search.run(written, costs, self.request, order, part(progress, 0.4, 1.0))
        plan = Plan(tried, head, choice)
        plan.save(kept)
        return plan

    def _costs(self, loaded: Loaded, progress: Progress, keep: ModelFiles | None = None) -> StepCosts:
        """What calibration found, else a quick look.

        keep: files of the draft, whose costs are kept: it is new, and has to be planned by something until it
        is calibrated.
        """
        if found := measurements.find(loaded.key):
            return found.costs
        if keep is None:
            return measure(
                loaded.model, contexts=_CONTEXTS, budget_s=_COSTS_BUDGET_S, progress=progress
            ).costs
        loader = self.origin.loader
        report = calibrate.report("draft", keep, loaded, loader, progress, _COSTS_BUDGET_S, _CONTEXTS)
        return report.measured.costs

    def _head(
        self, written: Sequence[builtin_prompts.Text], costs: StepCosts, progress: Progress
    ) -> tuple[tuple[heads.Head, ...], tuple[int, ...] | None]:
        """The ids that the head keeps: what the target writes most often, the first ones, special ones."""
        size = self.request.head_tokens
        if size == 0:
            return (), None
        if size is None and self.before.facts:
            return (), self.before.head
        seen = teacher.token_counts(self.shards)
        always = {*self.origin.tokenizer.special_ids, *self.origin.tokenizer.eos_ids}
        whole = self.origin.loader.draft_with(self.origin.files, None)
        if size is not None:
            tokens = heads.kept_ids(size, whole.model.vocab_size, always, seen)
            return (), None if len(tokens) == whole.model.vocab_size else tokens
        cut = partial(self.origin.loader.draft_with, self.origin.files)
        tried = heads.compare(cut, whole.model, written, costs, always, progress, seen)
        return tried, heads.best(tried).tokens

    def _weights(self, plan: Plan, folder: Path, progress: Progress) -> dict[str, Any]:
        """Write the draft's IR to `folder`; returns how it was healed."""
        if self.trainable is None:
            from specport.quantize.convert import ir

            ir.drop_layers(self.origin.files.folder, folder, plan.choice.dropped)
            return dict(self.before.facts)
        asked, trust = self.request, self.origin.loader.trust_remote_code
        healed_folder = self.work / "healed"
        names = ("loss", "epochs", "learning_rate", "seed")
        arguments = {
            "source": str(self.trainable),
            "work": str(self.work),
            "out": str(healed_folder),
            "dropped": plan.choice.dropped,
            "mlp": asked.mlp,
            "head": None if plan.head is None else bundle.ranges(plan.head),
            "shards": [str(path) for path in self.shards],
            "recipe": {name: getattr(asked, name) for name in names} | {"precision": self._precision()},
            "trust_remote_code": trust,
        }
        found = worker.run(
            "heal", arguments, "the draft cannot be healed",
            processes=self.processes, progress=part(progress, 0.0, 0.85),
        )  # fmt: skip
        folder.mkdir()
        worker.convert(
            healed_folder, folder, self._precision(),
            progress=part(progress, 0.85, 1.0), trust_remote_code=trust,
        )  # fmt: skip
        return {**found, "tokens_written": asked.distil_tokens}
