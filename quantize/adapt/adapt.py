"""`specport adapt`: train a draft on its user's own traffic, and keep the result only where it is better.

Stages: mix own traffic and old text; recover trainable weights; train; compress; replay the old and the new
draft; exchange them. What slow stages gave is kept in the log's folder until the end, so that the same
command resumes an adaptation that was stopped.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from specport.quantize.adapt import mixing, old_text, swapping
from specport.quantize.adapt.idle import Pace, Stopped
from specport.quantize.adapt.judging import Judgement, Replayed, replay
from specport.quantize.adapt.mixing import Mixture
from specport.quantize.adapt.result import ADAPTED, KEPT, REFUSED, STOPPED, Adapted, with_finding
from specport.quantize.train.distilled import PARALLEL

from specport.core.ports import Model
from specport.drafters.context import DraftModel
from specport.errors import InvalidInput
from specport.jobs import workdir, worker
from specport.models import bundle
from specport.models import precision as precisions
from specport.models.bundle import Bundle
from specport.models.folder_checks import IR_BIN
from specport.models.kinds import bigrams
from specport.models.kinds.parallel import Parallel
from specport.models.source import ModelFiles, ir_fingerprint
from specport.outside.places import expanded
from specport.progress import Progress, part, silent
from specport.runtime import conversion
from specport.runtime.devices.profiles import usable_cores
from specport.runtime.loading import Loader
from specport.runtime.stored import measurements
from specport.text.tokenizer import load_tokenizer
from specport.traffic.dialogues import Dialogue
from specport.traffic.log import TrafficLog

DISTIL = worker.Job("specport.quantize.train.draft:distil_draft", grace_s=120.0)
BUDGET_S = 600.0
TRAINING_SHARE = 0.6  # of the budget; the rest is for weights, compression and judging
# Guess of the training's speed, where none was timed here: operations a second of a core, which were measured
# on Zen 4 without AMX; operations for a weight and token; rows that parallel drafts train for each token.
CORE_FLOPS, FLOPS_PER_WEIGHT, PARALLEL_ROWS = 1e11, 6, 3
BYTES_PER_WEIGHT = {"int4": 0.55, "int8": 1.0, "fp16": 2.0, "bf16": 2.0, "fp32": 4.0}
LEARNING_RATE = 2e-5
TEXT = "text"  # the folder of the mixture in the working directory

T = TypeVar("T")


def adapt(
    draft: Path,
    *,
    model: str | None = None,
    budget_s: float = BUDGET_S,
    learning_rate: float = LEARNING_RATE,
    device: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
    pace: Pace | None = None,
) -> Adapted:
    """Train the bundle in the folder `draft` on the log of its target; exchange it where that pays.

    model:    the target, which is loaded only where no old text is in the cache; None = as it was recorded.
    budget_s: seconds of work, by which the amount of text is chosen as well.
    pace:     when to stop; None = by the budget alone.
    Raises SpecportError; finished stages are kept.
    """
    draft = expanded(draft).resolve()
    swapping.recover(draft)
    about = bundle.read(draft)
    bundle.check_is_model(about, draft)
    log = TrafficLog(about.target_fingerprint)
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.02))
    if loader.backend.weights != "ir":
        raise InvalidInput(
            f"drafts are adapted with OpenVINO, which {loader.profile.name} does not run",
            "adapt it with --device xeon",
        )
    work = work_of(log, draft)
    if not Mixture.stored(work / TEXT):
        mixing.read(log)  # too few texts are told before anything slow
    job = _Job(draft, about, log, loader, work, pace or Pace(budget_s), progress, budget_s, learning_rate)
    try:
        job.pace.wait(progress)
        with workdir.hold_workdir(work, {"draft": ir_fingerprint(draft), "learning_rate": learning_rate}):
            result = job.run(model)
    except Stopped:
        return Adapted(STOPPED, draft)
    log.note(last=result.finding())
    return result


def work_of(log: TrafficLog, draft: Path) -> Path:
    """Return the working directory of a draft's adaptation; it is there while one is half done."""
    return log.work / hashlib.sha256(str(draft).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Job:
    """One adaptation: runs its stages in order in the working directory."""

    draft: Path
    about: Bundle
    log: TrafficLog
    loader: Loader
    work: Path
    pace: Pace
    progress: Progress
    budget_s: float
    learning_rate: float

    def run(self, model: str | None) -> Adapted:
        mixture = self._mixture(model, part(self.progress, 0.02, 0.2))
        result = Adapted(REFUSED, self.draft, mixture.own_tokens, mixture.old_tokens, notes=mixture.notes)
        facts = self._trained(mixture, part(self.progress, 0.2, 0.75))
        if not facts["trained"]:
            return result
        new = self.work / "bundle"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        conversion.convert(
            self.work / "distilled", new, self._precision, progress=part(self.progress, 0.75, 0.85),
            trust_remote_code=self.loader.trust_remote_code,
        )  # fmt: skip
        bigrams.copy(self.work / "distilled", new)
        parallel = Parallel.of(facts.get(PARALLEL), self.about.head_tokens)
        made = replace(self.about, precision=self._precision, parallel=parallel)
        judgement = self._judged(new, made, mixture, part(self.progress, 0.85, 0.98))
        result = replace(result, judgement=judgement)
        if not judgement.better:
            return result
        bundle.write(new, with_finding(made, facts, result, judgement))
        swapping.install(new, self.draft)
        self.progress("done", 1.0)
        return replace(result, state=KEPT)

    @property
    def _precision(self) -> str:
        """Return the precision of the new draft: trained weights need zero points in INT4, as in a build."""
        if self.loader.profile.symmetric:  # the device runs no others
            return self.about.precision
        return precisions.with_zero_points(self.about.precision)

    def _mixture(self, model: str | None, progress: Progress) -> Mixture:
        """Return the text to learn from: that of an adaptation which was stopped, else a new mixture."""
        folder = self.work / TEXT
        if found := Mixture.stored(folder):
            return found
        traffic = mixing.read(self.log)
        old = old_text.find(self.about)
        if not old:
            old = self._written(model, mixing.num_answer_tokens(traffic.to_learn), progress)
        most = TRAINING_SHARE * self.budget_s * self._speed()
        return mixing.write(traffic, old, most, folder)

    def _written(self, model: str | None, num_tokens: int, progress: Progress) -> list[Dialogue]:
        """Let the target write old text, since none is in the cache."""
        settings = self.log.settings()
        spec = model or (settings.model if settings else "")
        precision = settings.precision if settings else ""
        if not spec:
            raise InvalidInput(
                f"the text that {self.draft.name} was trained on is not in the cache",
                "name the target, which then writes some: specport adapt --model MODEL",
            )
        loader = replace(self.loader, progress=part(progress, 0.0, 0.1))
        if precision in ("", "ir"):  # not known, or the user's own IR, which has one precision
            precision = loader.profile.precision
        files = loader.files(spec, precision)
        tokenizer = load_tokenizer(files.folder)
        self.about.check_target(files.folder, files.name, files.fingerprint)

        def load() -> Model:
            return loader.target_with(files, exact=False).model

        told = self.pace.checked(part(progress, 0.1, 1.0))
        return self._patiently(lambda: old_text.write(load, tokenizer, self.about, num_tokens, told))

    def _speed(self) -> float:
        """Return the tokens per second of training, from the last adaptation, else a guess."""
        adapted, built = self.about.provenance.get(ADAPTED), self.about.distilled
        size = (self.draft / IR_BIN).stat().st_size
        weights = size / BYTES_PER_WEIGHT.get(precisions.parse(self.about.precision).base, 1.0)
        guess = usable_cores() * CORE_FLOPS / FLOPS_PER_WEIGHT / weights
        guess /= PARALLEL_ROWS if self.about.parallel else 1
        # The build may have trained on another machine, with a GPU.
        for facts, most in ((adapted, math.inf), (built, 2 * guess)):
            if isinstance(facts, Mapping) and facts.get("tokens_read") and facts.get("seconds"):
                return min(float(facts["tokens_read"]) / float(facts["seconds"]), most)
        return guess

    def _trained(self, mixture: Mixture, progress: Progress) -> dict[str, Any]:
        """Train the weights; return what `draft.distil_draft` says of them. Pauses where others are busy."""
        from specport.quantize.convert.to_huggingface import to_hugging_face

        source = self.work / "source"
        if not source.is_dir():
            to_hugging_face(self.draft, source, part(progress, 0.0, 0.1))
        parallel = self.about.parallel
        arguments = {
            "source": str(source),
            "work": str(self.work),
            "out": str(self.work / "distilled"),
            "dropped": [],
            "mlp": 1.0,
            "head": self.about.head,
            "shards": mixture.shards,
            "recipe": {
                "loss": self.about.distilled.get("loss", "kl"),
                "epochs": mixture.epochs,
                "learning_rate": self.learning_rate,
                "precision": self._precision,
                "parallel": parallel.depth if parallel else 0,
            },
            "trust_remote_code": self.loader.trust_remote_code,
            "vocab": load_tokenizer(self.draft).vocab_size,
        }  # fmt: skip
        told = self.pace.checked(part(progress, 0.1, 1.0))
        facts: dict[str, Any] = self._patiently(
            lambda: worker.run(DISTIL, arguments, "the draft cannot be trained", progress=told)
        )
        return facts

    def _patiently(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; begin it anew, when the machine is idle again, each time it is stopped.

        Raises Stopped where the time is over.
        """
        while True:
            try:
                return work()
            except Stopped as stopped:
                if stopped.for_good:
                    raise
                self.pace.wait(self.progress)

    def _judged(self, new: Path, made: Bundle, mixture: Mixture, progress: Progress) -> Judgement:
        """Replay both drafts, as they are stored, on text that neither was trained on."""
        found: list[Replayed] = []
        keys: list[str] = []
        tokenizer = load_tokenizer(self.draft)
        held_out = mixture.held_out_own, mixture.held_out_old
        for number, (folder, about) in enumerate(((self.draft, self.about), (new, made))):
            files = ModelFiles(
                folder, self.draft.name, about.precision, str(self.draft), ir_fingerprint(folder), about
            )
            loaded = self.loader.draft_with(files, about.head_tokens)
            keys.append(loaded.key)
            draft = DraftModel(
                loaded.model, tokenizer, files.name, self.loader.costs(loaded), loaded.head_tokens,
                parallel=about.parallel, bigrams=bigrams.of(about.parallel, folder),
            )  # fmt: skip
            for step, texts in enumerate(held_out):
                begin = (2 * number + step) / 4
                found.append(replay(draft, texts, part(progress, begin, begin + 0.25)))
        # Of the same shapes, what was calibrated holds for both; zero points hardly matter.
        if precisions.parse(made.precision).base == precisions.parse(self.about.precision).base:
            measurements.carry_over(keys[0], keys[1], ir_fingerprint(self.draft), ir_fingerprint(new))
        return Judgement(found[0], found[2], found[1], found[3])
