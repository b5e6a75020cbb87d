"""`specport quantize head`: train a recurrent draft head on a target's hidden states, and write its bundle.

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
from specport.quantize.text import hidden, training_text
from specport.quantize.text.on_ray import RayWriter, writer_on
from specport.quantize.text.prompts import divide

from specport.calibration import exits, heads
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import Model
from specport.errors import InvalidInput
from specport.jobs import ray_cluster, workdir, worker
from specport.models import bundle
from specport.models.bundle import Bundle
from specport.models.fetch import download
from specport.models.kinds.recurrent import MAX_DEPTH, Recurrent
from specport.models.shipped import ORIGIN
from specport.models.source import ModelFiles
from specport.models.weight_sketch import sketch
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.text.tokenizer import Tokenizer, load_tokenizer

TRAIN = worker.Job("specport.quantize.train.recurrent.making:train", grace_s=120.0)
PACKAGES = ("specport", "openvino", "nncf", "optimum-intel", "transformers", "torch")


@dataclass(frozen=True)
class Request:
    """What to build. Raises InvalidInput for values out of range.

    distil_tokens: tokens that the target writes for the head to learn from.
    prompts:     the user's own turns (see `prompts.divide`).
    layers:      of the target, whose states the head reads; () = at a third, at two thirds, and the last.
    inner, blocks: of the head's feed-forward blocks (`Recurrent`).
    depth:       tokens that it is trained to draft one after the other.
    head_tokens: most frequent ids that it can draft; 0 = all.
    loss, epochs, learning_rate, seed: as for `train.recurrent.training.Recipe`.
    """

    distil_tokens: int = 300_000
    prompts: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    inner: int = 1536
    blocks: int = 1
    depth: int = 5
    head_tokens: int = 8192
    loss: str = "kl"
    epochs: float = 8.0
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distil_tokens < 1:
            raise InvalidInput(f"distil_tokens is {self.distil_tokens}; it must be 1 or more")
        if not 1 <= self.depth <= MAX_DEPTH:
            raise InvalidInput(f"depth is {self.depth}; it must be from 1 to {MAX_DEPTH}")
        if self.head_tokens < 0:
            raise InvalidInput(f"head_tokens is {self.head_tokens}; it must be 0 or more")
        try:
            Recurrent(self.layers or (0,), 1, self.inner, self.blocks, self.depth)
        except ValueError as error:
            raise InvalidInput(f"no draft head can have this shape: {error}") from error


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
    if loader.backend.weights != "ir":
        raise InvalidInput(
            f"draft heads are built with OpenVINO, which {loader.profile.name} does not run",
            "build with --device xeon; the head then runs on every device",
        )
    files = loader.files(target, precision or loader.profile.precision)
    count = exits.num_layers(files.folder)
    layers = request.layers or tuple(sorted({(count - 1) // 3, 2 * (count - 1) // 3, count - 1}))
    if layers[-1] >= count:
        raise InvalidInput(
            f"{files.name} has {count} layers, the last is {count - 1}", "choose other --layers"
        )
    request = replace(request, layers=layers)
    work = workdir.path_for(out)
    with workdir.hold_workdir(work, {"head": asdict(request), "target": files.fingerprint}):
        elsewhere = writer_on(
            cluster, target, files.fingerprint, threads, device=device, precision=precision,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        tokenizer = load_tokenizer(files.folder)
        return _Build(loader, files, tokenizer, request, work, elsewhere, progress).run(out)


@dataclass
class _Build:
    loader: Loader
    files: ModelFiles
    tokenizer: Tokenizer
    request: Request
    work: Path
    elsewhere: RayWriter | None
    progress: Progress

    def run(self, out: Path) -> Bundle:
        request, files = self.request, self.files
        _, held_out, to_learn = divide(request.prompts)
        written = training_text.write(
            self.loader, files, self.tokenizer, request.distil_tokens, request.seed, to_learn,
            part(self.progress, 0.05, 0.4), self.elsewhere,
        )  # fmt: skip
        states = hidden.write_hidden(
            self._with_states, request.layers, written, written[0].parent / _states_name(request.layers),
            part(self.progress, 0.4, 0.5),
        )  # fmt: skip
        columns = training_text.frequent_ids(request.head_tokens, self.tokenizer, written)
        folder = self.work / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        names = ("inner", "blocks", "depth", "layers")
        arguments = {
            "target": str(files.folder),
            "work": str(self.work),
            "out": str(folder),
            "shards": [str(path) for path in written],
            "states": [str(path) for path in states],
            "columns": None if columns is None else bundle.ranges(columns),
            "shape": {name: getattr(request, name) for name in names},
            "recipe": {n: getattr(request, n) for n in ("loss", "epochs", "learning_rate", "seed")},
        }
        facts: dict[str, Any] = worker.run(
            TRAIN, arguments, "the draft head cannot be trained", progress=part(self.progress, 0.5, 0.95)
        )
        shape = Recurrent.of(facts.pop("recurrent"))
        made = self._manifest(shape, columns, {**facts, "tokens_written": request.distil_tokens})
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
        return self.loader.target_with(self.files, True, hidden_layers=self.request.layers).model

    def _manifest(
        self, shape: Recurrent | None, columns: tuple[int, ...] | None, facts: dict[str, Any]
    ) -> Bundle:
        files = self.files
        origin = {ORIGIN: download.SHA256} if files.source == "default" else {}
        return Bundle(
            target=files.name,
            target_shape=bundle.shape(files.folder),
            target_fingerprint=files.fingerprint,
            target_sketch=sketch(files.folder),
            tokenizer=self.tokenizer.fingerprint,
            source=files.name,
            precision="int8",
            layers=(),
            num_layers=exits.num_layers(files.folder),
            head=None if columns is None else bundle.ranges(columns),
            distilled=facts,
            provenance={
                "command": " ".join(["specport", *sys.argv[1:]]) if sys.argv[0].endswith("specport") else "",
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": installed(PACKAGES),
                "target_precision": files.precision,
                "text": "written by the target itself",
                "licence": "that of specport; the weights were trained on the output of the target",
                **origin,
            },
            recurrent=shape,
        )

    def _measured(
        self, folder: Path, made: Bundle, prompts: Sequence[str], progress: Progress
    ) -> dict[str, Any]:
        """Return acceptance and speed of the head, on prompts that it was not trained on."""
        name = self.files.name
        head = ModelFiles(folder, name, made.precision, str(folder), "", made)
        target = self.loader.target_with(self.files, True, head=head)
        seconds = heads.head_step_seconds(target.model)
        own = StepCosts((1,), (0,), ((seconds,),), measured=True)
        pair = DraftPair(target, target, self.tokenizer, name, step_costs(target), own, on_states=True)
        measured = evaluate(pair, prompts, progress)
        return {"device": self.loader.profile.name, **measured}


def _states_name(layers: Sequence[int]) -> str:
    """Return the name of the folder with the hidden states of these layers, beside the text."""
    return "hidden-" + "-".join(map(str, layers))
