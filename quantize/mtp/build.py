"""`specport quantize mtp`: train a module for multi-token prediction, and write its bundle.

Slow stages keep their results: training in `OUT.partial`, the target's text and its hidden states in the
cache, where other builds find them too. The same command resumes a build that was stopped.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from specport.quantize.evaluate.pair import DraftPair, evaluate
from specport.quantize.evaluate.quick_costs import step_costs
from specport.quantize.mtp.request import Request, check_decoder
from specport.quantize.text import hidden, training_text
from specport.quantize.text.on_ray import RayWriter, writer_on
from specport.quantize.text.prompts import divide
from specport.quantize.train.own_text import config_of

from specport.calibration import exits, heads
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import HEAD_INPUT, Model
from specport.errors import InvalidInput, ModelError
from specport.jobs import ray_cluster, workdir, worker
from specport.models import bundle
from specport.models.bundle import Bundle
from specport.models.identity import fingerprint
from specport.models.kinds.mtp import JOIN, WEIGHTS
from specport.models.kinds.mtp_head import MtpHead
from specport.models.source import ModelFiles, original
from specport.models.weight_sketch import sketch
from specport.progress import Progress, part, silent
from specport.runtime.conversion import mtp_head
from specport.runtime.loading import Loader
from specport.runtime.registry import Loaded
from specport.runtime.versions import installed
from specport.text.tokenizer import Tokenizer, load_tokenizer

TRAIN = worker.Job("specport.quantize.mtp.train:train", grace_s=120.0)
PACKAGES = ("specport", "openvino", "nncf", "optimum-intel", "transformers", "torch")
TEMPERATURE = 1.0  # of the text, as sampled acceptance is what the losses are about
STATES = "hidden-mtp"  # folder of the states of whole texts, beside the text


def build(
    target: str | None,
    out: Path,
    request: Request,
    *,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    cluster: str | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Train a head for `target` and write its bundle to the folder `out`; return what the bundle says.

    cluster: where the target's text is written, see `RayWriter`; None = in this process.
    Other arguments as for `specport.load`. Raises SpecportError; finished stages are kept.
    """
    workdir.check_new(out)
    if cluster is not None:
        ray_cluster.check()
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.05))
    if loader.backend.weights != "ir" or loader.profile.buckets:
        raise InvalidInput(
            f"MTP heads are built on OpenVINO's paged path, which {loader.profile.name} does not have",
            "build with --device xeon; the head then runs on torch too",
        )
    # Errors for weights that cannot be read or trained come before anything slow.
    source = original(target)
    check_decoder(config_of(source))
    files = loader.files(target, precision or loader.profile.precision)
    tokenizer = load_tokenizer(files.folder)
    start = None if request.start is None else _start(loader, request.start, files, tokenizer)
    work = workdir.path_for(out)
    asked = {**asdict(request), "start": None if start is None else start.fingerprint}
    with workdir.hold_workdir(work, {"mtp": asked, "target": files.fingerprint}):
        elsewhere = writer_on(
            cluster, target, files.fingerprint, threads, device=device, precision=precision,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        made = _Build(loader, files, tokenizer, request, source, start, work, elsewhere, progress)
        return made.run(out)


def _start(loader: Loader, folder: Path, files: ModelFiles, tokenizer: Tokenizer) -> ModelFiles:
    """Return the head that training starts from. Raises ModelError where it is none of this target."""
    found = loader.draft_files(str(folder), None, files, tokenizer).files
    if found.bundle is None or found.bundle.mtp is None:
        raise ModelError(f"{folder} is no MTP head", "name one that specport quantize mtp made with --from")
    return found


@dataclass
class _Build:
    """One build: runs its stages in order.

    source: the target's weights before their conversion. start: the head to train further, or None.
    """

    loader: Loader
    files: ModelFiles
    tokenizer: Tokenizer
    request: Request
    source: Path
    start: ModelFiles | None
    work: Path
    elsewhere: RayWriter | None
    progress: Progress

    def run(self, out: Path) -> Bundle:
        request, files = self.request, self.files
        _, held_out, to_learn = divide(request.prompts)
        written = training_text.write(
            self.loader, files, self.tokenizer, request.distil_tokens, request.seed, to_learn,
            part(self.progress, 0.05, 0.3), self.elsewhere, temperature=TEMPERATURE,
        )  # fmt: skip
        states = hidden.write_hidden(
            self._with_states, (HEAD_INPUT,), written, written[0].parent / STATES,
            part(self.progress, 0.3, 0.35), whole=True,
        )  # fmt: skip
        columns = self._columns(written)
        folder = self.work / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        arguments = {
            "target": str(files.folder),
            "source": str(self.source),
            "start": None if self.start is None else str(self.start.folder),
            "work": str(self.work),
            "out": str(folder),
            "shards": [str(path) for path in written],
            "states": [str(path) for path in states],
            "columns": columns,
            "recipe": asdict(request.recipe),
            "trust_remote_code": self.loader.trust_remote_code,
        }
        facts: dict[str, Any] = worker.run(
            TRAIN, arguments, "the MTP head cannot be trained", progress=part(self.progress, 0.35, 0.95)
        )
        made = self._manifest(columns, {**facts, "tokens_written": request.distil_tokens})
        bundle.write(folder, made)  # so that it can be loaded and measured
        measured = self._measured(folder, made, held_out, part(self.progress, 0.95, 1.0))
        made = replace(made, measured=measured)
        bundle.write(folder, made)
        workdir.publish(folder, out)
        if made.pays:
            bundle.register(out, files.fingerprint)
        self.progress("done", 1.0)
        return made

    def _with_states(self) -> Model:
        """Load the target as it runs, with the states that the head reads."""
        return self.loader.target_with(self.files, True, hidden_layers=(HEAD_INPUT,)).model

    def _columns(self, written: Sequence[Path]) -> bundle.Ranges | None:
        """Return the ids that the head can draft: those of `start`, or the most frequent; None = all."""
        if self.start is not None and self.start.bundle is not None:
            return self.start.bundle.head
        tokens = training_text.frequent_ids(self.request.head_tokens, self.tokenizer, written)
        return None if tokens is None else bundle.ranges(tokens)

    def _manifest(self, columns: bundle.Ranges | None, facts: dict[str, Any]) -> Bundle:
        files = self.files
        count = exits.num_layers(files.folder)
        return Bundle(
            target=files.name,
            target_shape=bundle.shape(files.folder),
            target_fingerprint=files.fingerprint,
            target_sketch=sketch(files.folder),
            tokenizer=self.tokenizer.fingerprint,
            source=files.name,
            precision="fp16",
            layers=(),
            num_layers=count,
            head=columns,
            distilled=facts,
            provenance={
                "command": " ".join(["specport", *sys.argv[1:]]) if sys.argv[0].endswith("specport") else "",
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": installed(PACKAGES),
                "target_precision": files.precision,
                "text": f"written by the target itself at temperature {TEMPERATURE:g}",
                "started_from": "" if self.start is None else self.start.fingerprint,
            },
            mtp=MtpHead(self.request.depth, self.request.loss),
        )

    def _measured(
        self, folder: Path, made: Bundle, prompts: Sequence[str], progress: Progress
    ) -> dict[str, Any]:
        """Return acceptance and speed of the head in greedy texts, on prompts it was not trained on."""
        name = self.files.name
        identity = fingerprint(folder, [], [JOIN, WEIGHTS])
        head = ModelFiles(folder, f"{name}-mtp", made.precision, str(folder), identity, made)
        module = mtp_head(head, self.files, progress=progress)
        target = self.loader.target_with(self.files, True, mtp=module, mtp_tokens=made.head_tokens)
        assert target.model.mtp is not None  # OpenVINO's models have it
        draft = Loaded(target.model.mtp, head_tokens=made.head_tokens)
        own = StepCosts((1,), (0,), ((heads.step_seconds(draft.model),),), measured=True)
        pair = DraftPair(target, draft, self.tokenizer, name, step_costs(target), own, on_states=True)
        return {"device": self.loader.profile.name, **evaluate(pair, prompts, progress)}
