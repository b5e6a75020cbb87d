"""`specport quantize`: build a draft bundle for a target, from the target itself or from a smaller sibling.

Slow stages keep their results: search and training in `OUT.partial`, the target's text in the cache, where
later drafts find it too. The same command resumes a build that was stopped. The bundle is moved to OUT when
it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from specport.quantize.evaluate import quick_costs
from specport.quantize.evaluate.pair import DraftPair, evaluate
from specport.quantize.inputs import Inputs
from specport.quantize.plan import Plan
from specport.quantize.provenance import provenance
from specport.quantize.prune import choose
from specport.quantize.prune.choose import Choice
from specport.quantize.request import Request
from specport.quantize.text import dialogues, shards, training_text
from specport.quantize.text.on_ray import RayWriter, writer_on
from specport.quantize.text.prompts import divide
from specport.quantize.train import distilled
from specport.quantize.train.distilled import PARALLEL, Distilled

from specport.calibration import calibrate, heads, target_text
from specport.core.planning.step_costs import StepCosts
from specport.errors import InvalidInput
from specport.jobs import ray_cluster, workdir, worker
from specport.models import bundle
from specport.models import precision as precisions
from specport.models.bundle import Bundle
from specport.models.kinds import bigrams
from specport.models.kinds.parallel import Parallel
from specport.models.source import ModelFiles, ir_fingerprint, original
from specport.models.weight_sketch import sketch
from specport.progress import Progress, part, silent
from specport.runtime import conversion
from specport.runtime.devices.registry import Loaded
from specport.runtime.stored import measurements

DISTIL = worker.Job("specport.quantize.train.draft:distil_draft", grace_s=120.0)
CHOOSING_TOKENS = 64  # of each answer that layers and head are chosen by


@dataclass(frozen=True)
class Built:
    """The result of a build.

    folder: the bundle's.
    plan:   what was expected of this bundle, and of other heads and numbers of layers.
    """

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
    cluster: str | None = None,
    progress: Progress = silent,
) -> Built:
    """Build a draft for `target` from `source` (None = the target itself) and write it to the folder `out`.

    source: a folder of weights that were distilled on another machine (`train/distilled.py`) keeps its layers
               and its head, unless the request asks for others. A draft bundle keeps them too; it can only be
               trained to draft in parallel.
    processes: processes that train together; more than one are started by `accelerate launch`.
    cluster:   where the target's text is written, see `RayWriter`; None = in this process.
    Other arguments as for `specport.load`. Raises SpecportError; finished stages are kept.
    """
    workdir.check_new(out)
    if cluster is not None:
        ray_cluster.check()
    if processes < 1:
        raise InvalidInput(f"processes is {processes}; it must be 1 or more")
    spec = source if source is not None else target
    imported = distilled.read(Path(spec)) if spec and not request.distil_tokens else Distilled({})
    if imported.facts:
        draft_precision = draft_precision or imported.facts["precision"]
        if request.layers is None and request.speed_up is None:
            request = replace(request, layers=imported.facts["layers"])
    inputs = Inputs.load(
        target, source, device=device, precision=precision, draft_precision=draft_precision, threads=threads,
        trust_remote_code=trust_remote_code, progress=part(progress, 0.0, 0.05),
        bundles=bool(request.parallel),
    )  # fmt: skip
    given = inputs.source_files.bundle
    if given is not None:
        request.check_bundle()
    # Distillation needs weights that can be trained: an error for their lack comes before anything slow.
    trainable = original(spec) if request.distil_tokens and given is None else None
    work = workdir.path_for(out)
    models = {"target": inputs.target_files.fingerprint, "source": inputs.source_files.fingerprint}
    with workdir.hold_workdir(work, {**asdict(request), **models}):
        if given is not None:
            trainable = _huggingface(inputs.source_files.folder, work, part(progress, 0.05, 0.07))
        wanted = draft_precision or inputs.source_files.precision
        elsewhere = writer_on(
            cluster, target, inputs.target_files.fingerprint, threads, device=device, precision=precision,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        return _Build(inputs, request, work, trainable, wanted, imported, processes, elsewhere, progress).run(
            out
        )


def _huggingface(folder: Path, work: Path, progress: Progress) -> Path:
    """Return the weights of a bundle as a Hugging Face folder below `work`, which a later run finds there."""
    from specport.quantize.convert.to_huggingface import to_hugging_face

    out = work / "source"
    return out if out.is_dir() else to_hugging_face(folder, out, progress)


@dataclass
class _Build:
    """One build: runs its stages in order.

    trainable: the original weights to distil; None = no distillation.
    precision: of the draft that is asked for.
    imported:  what an earlier distillation of the source says of itself.
    """

    inputs: Inputs
    request: Request
    work: Path
    trainable: Path | None
    precision: str
    imported: Distilled
    processes: int
    elsewhere: RayWriter | None
    progress: Progress
    shards: list[Path] = field(default_factory=list)

    def run(self, out: Path) -> Built:
        inputs = self.inputs
        choosing, held_out, to_learn = divide(self.request.prompts)
        costs = self._costs(inputs.target, part(self.progress, 0.05, 0.1))
        if self.trainable:
            self.shards = training_text.write(
                inputs.loader, inputs.target_files, inputs.tokenizer, self.request.distil_tokens,
                self.request.seed, to_learn, part(self.progress, 0.1, 0.4), self.elsewhere,
            )  # fmt: skip
        plan = self._plan(choosing, costs, part(self.progress, 0.4, 0.55))
        folder = self.work / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        distillation = self._weights(plan, folder, part(self.progress, 0.55, 0.9))
        parallel = Parallel.of(distillation.pop(PARALLEL, None), plan.head)
        name, precision = inputs.source_files.name, self._precision()
        files = ModelFiles(folder, name, precision, str(out), ir_fingerprint(folder))
        draft = inputs.loader.draft_with(files, plan.head)
        draft_costs = self._costs(draft, part(self.progress, 0.9, 0.92), keep=files)
        pair = DraftPair(
            inputs.target, draft, inputs.tokenizer, name, costs, draft_costs, parallel,
            bigrams=bigrams.of(parallel, folder),
        )  # fmt: skip
        measured = evaluate(pair, held_out, part(self.progress, 0.92, 1.0))
        choice, origin = plan.choice, inputs.source_files.bundle
        made = Bundle(
            target=inputs.target_files.name,
            target_shape=bundle.shape(inputs.target_files.folder),
            target_fingerprint=inputs.target_files.fingerprint,
            target_sketch=sketch(inputs.target_files.folder),
            tokenizer=inputs.tokenizer.fingerprint,
            source=name if origin is None else origin.source,
            precision=precision,
            layers=choice.kept if origin is None else origin.layers,
            num_layers=choice.num_layers if origin is None else origin.num_layers,
            head=None if plan.head is None else bundle.ranges(plan.head),
            distilled=distillation,
            measured={"device": inputs.loader.profile.name, **measured},
            provenance=provenance(
                layers_by=self.request.by,
                layers_gone=[list(dropped) for dropped in choice.dropped_by_count],
                agreements=[round(a, 4) for a in choice.agreements],
                **({} if origin is None else {"from": dict(origin.provenance)}),
            ),
            parallel=parallel,
        )
        bundle.write(folder, made)
        workdir.publish(folder, out)
        if made.pays:
            bundle.register(out, inputs.target_files.fingerprint)
        self.progress("done", 1.0)
        return Built(made, out, plan)

    def _precision(self) -> str:
        """Return the precision of the draft's weights: INT4 gets zero points where weights were fitted.

        Sources often are 4-bit files, whose weights survive INT4 without zero points. Fitted or trained
        weights have left that grid. Of a Qwen draft with 72 % agreement in INT8, 70 % was left with zero
        points and 48 % without.
        """
        return self.precision if self.trainable is None else precisions.with_zero_points(self.precision)

    def _plan(self, choosing: Sequence[str], costs: StepCosts, progress: Progress) -> Plan:
        path = self.work / "plan.json"
        if stored := Plan.load(path):
            return stored
        inputs = self.inputs
        if given := inputs.source_files.bundle:  # its layers and its head were chosen when it was built
            return Plan((), given.head_tokens, Choice.all_of(len(given.layers)))
        bar = part(progress, 0.0, 0.2)
        written = target_text.write(inputs.target.model, inputs.tokenizer, choosing, CHOOSING_TOKENS, bar)
        tried, head = self._head(written, costs, part(progress, 0.2, 0.4))
        if head is not None and self.request.parallel:  # MASK is an id that the tokenizer does not know
            head = tuple(token for token in head if token < inputs.tokenizer.vocab_size)
        search = choose.Search(inputs.loader, inputs.source_files, head, self.work)
        choice = search.run(written, costs, self.request, part(progress, 0.4, 1.0))
        plan = Plan(tried, head, choice)
        plan.save(path)
        return plan

    def _costs(self, loaded: Loaded, progress: Progress, keep: ModelFiles | None = None) -> StepCosts:
        """Return the step costs of a model, as `quick_costs.step_costs` does.

        keep: the files of a new draft: its costs are stored, so that the planner has some until `specport
        calibrate` measures better ones.
        """
        if keep is None:
            return quick_costs.step_costs(loaded, progress)
        if stored := measurements.find(loaded.key):
            return stored.costs
        budget, contexts = quick_costs.BUDGET_S, quick_costs.CONTEXTS
        report = calibrate.report("draft", keep, loaded, self.inputs.loader, progress, budget, contexts)
        return report.measured.costs

    def _head(
        self, written: Sequence[target_text.Text], costs: StepCosts, progress: Progress
    ) -> tuple[tuple[heads.Head, ...], tuple[int, ...] | None]:
        """Return the sizes that were tried, and the ids that the head keeps (None = all).

        A head keeps special tokens, and the ids that the target writes most often; of equal ones the first.
        """
        size = self.request.head_tokens
        if size == 0:
            return (), None
        if size is None and self.imported.facts:
            return (), self.imported.head
        seen = dialogues.token_counts(self.shards)
        always = {*self.inputs.tokenizer.special_ids, *self.inputs.tokenizer.eos_ids}
        whole = self.inputs.loader.draft_with(self.inputs.source_files, None)
        if size is not None:
            tokens = heads.kept_ids(size, whole.model.vocab_size, always, seen)
            return (), None if len(tokens) == whole.model.vocab_size else tokens
        cut = partial(self.inputs.loader.draft_with, self.inputs.source_files)
        tried = heads.compare(cut, whole.model, written, costs, always, progress, seen)
        return tried, heads.best(tried).tokens

    def _weights(self, plan: Plan, folder: Path, progress: Progress) -> dict[str, Any]:
        """Write the draft's IR to `folder`; return what `Bundle.distilled` says of it."""
        if self.trainable is None:
            from specport.quantize.prune import ir

            ir.drop_layers(self.inputs.source_files.folder, folder, plan.choice.dropped)
            if self.imported.folder is not None:
                bigrams.copy(self.imported.folder, folder)
            return dict(self.imported.facts)
        request, trust = self.request, self.inputs.loader.trust_remote_code
        trained = self.work / "distilled"
        arguments = {
            "source": str(self.trainable),
            "work": str(self.work),
            "out": str(trained),
            "dropped": plan.choice.dropped,
            "mlp": request.mlp,
            "head": None if plan.head is None else bundle.ranges(plan.head),
            "shards": [str(path) for path in self.shards],
            "recipe": asdict(request.recipe(self._precision())),
            "trust_remote_code": trust,
            "vocab": self.inputs.tokenizer.vocab_size,
        }
        self.inputs.release()  # training takes all the memory that there is
        facts = worker.run(
            DISTIL, arguments, "the draft cannot be distilled",
            processes=self.processes, progress=part(progress, 0.0, 0.85),
        )  # fmt: skip
        folder.mkdir()
        conversion.convert(
            trained, folder, self._precision(),
            progress=part(progress, 0.85, 1.0), trust_remote_code=trust,
        )  # fmt: skip
        bigrams.copy(trained, folder)
        return {**facts, "tokens_written": request.distil_tokens, shards.TEXT: self.shards[0].parent.name}
