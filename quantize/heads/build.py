"""The stages of a head's build: the target's text, its hidden states, training, measurement, the bundle.

Slow stages keep their results: training in `OUT.partial`, the target's text and its hidden states in the
cache, where other builds find them too. The same command resumes a build that was stopped.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from specport.quantize.evaluate.pair import DraftPair, evaluate
from specport.quantize.provenance import provenance
from specport.quantize.text import hidden, training_text
from specport.quantize.text.on_ray import RayWriter, writer_on
from specport.quantize.text.prompts import divide

from specport.calibration import exits
from specport.core.ports import Model
from specport.jobs import ray_cluster, workdir, worker
from specport.models import bundle
from specport.models.bundle import Bundle, Ranges
from specport.models.source import ModelFiles
from specport.models.weight_sketch import sketch
from specport.progress import Progress, part
from specport.runtime.loading import Loader
from specport.text.tokenizer import Tokenizer, load_tokenizer


class Request(Protocol):
    """The part of a request that these stages read."""

    @property
    def distil_tokens(self) -> int: ...
    @property
    def prompts(self) -> tuple[str, ...]: ...
    @property
    def head_tokens(self) -> int: ...
    @property
    def seed(self) -> int: ...


R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class Place:
    """Say where a head is built. Values as for `specport.load`.

    cluster: where the target's text is written, see `RayWriter`; None = in this process.
    """

    device: str = "auto"
    precision: str | None = None
    threads: int | None = None
    trust_remote_code: bool = False
    cluster: str | None = None

    def loader(self, out: Path, progress: Progress) -> Loader:
        """Return what loads the target. Raises SpecportError where nothing can be built at `out`."""
        workdir.check_new(out)
        if self.cluster is not None:
            ray_cluster.check()
        return Loader.on(self.device, self.threads, None, self.trust_remote_code, progress)

    def writer(self, target: str | None, files: ModelFiles) -> RayWriter | None:
        """Return what writes the target's text elsewhere; None = this process writes it."""
        return writer_on(
            self.cluster, target, files.fingerprint, self.threads, device=self.device,
            precision=self.precision, trust_remote_code=self.trust_remote_code,
        )  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Say what all heads of a kind have in common.

    name:        in messages. job: the training. precision: of the stored head.
    temperature: of the text. whole: whether states are read at the prompts' tokens too.
    """

    name: str
    job: worker.Job
    precision: str
    temperature: float = 0.0
    whole: bool = False


@dataclass
class HeadBuild(ABC, Generic[R]):
    """One build: runs its stages in order.

    files:     of the target. layers: of the target, whose hidden states the head reads.
    states:    folder of these states, beside the text.
    elsewhere: writes the text; None = this process does. work: folder of unfinished results.
    """

    kind: ClassVar[Kind]

    loader: Loader
    files: ModelFiles
    tokenizer: Tokenizer
    request: R
    layers: tuple[int, ...]
    states: str
    elsewhere: RayWriter | None
    work: Path
    progress: Progress

    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """Return what the training job gets beside text, states, columns and folders."""

    @abstractmethod
    def described(self, facts: dict[str, Any]) -> Mapping[str, Any]:
        """Return the bundle's entries that only this kind has; they are taken from a training's `facts`."""

    @abstractmethod
    def pair(self, head: ModelFiles, progress: Progress) -> DraftPair:
        """Load the target with the head, to be measured."""

    def columns(self, written: Sequence[Path]) -> Ranges | None:
        """Return the ids that the head can draft: the most frequent of the text; None = all."""
        found = training_text.frequent_ids(self.request.head_tokens, self.tokenizer, written)
        return None if found is None else bundle.ranges(found)

    def run(self, out: Path) -> Bundle:
        """Run all stages, and write the bundle to the folder `out`."""
        _, held_out, to_learn = divide(self.request.prompts)
        written = training_text.write(
            self.loader, self.files, self.tokenizer, self.request.distil_tokens, self.request.seed, to_learn,
            part(self.progress, 0.05, 0.4), self.elsewhere, self.kind.temperature,
        )  # fmt: skip
        states = hidden.write_hidden(
            self._with_states, self.layers, written, written[0].parent / self.states,
            part(self.progress, 0.4, 0.5), whole=self.kind.whole,
        )  # fmt: skip
        columns = self.columns(written)
        folder = self.work / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        arguments = {
            "target": str(self.files.folder),
            "work": str(self.work),
            "out": str(folder),
            "shards": [str(path) for path in written],
            "states": [str(path) for path in states],
            "columns": columns,
            **self.arguments(),
        }
        facts: dict[str, Any] = worker.run(
            self.kind.job,
            arguments,
            f"the {self.kind.name} cannot be trained",
            progress=part(self.progress, 0.5, 0.95),
        )
        made = self._manifest(columns, {**facts, "tokens_written": self.request.distil_tokens})
        bundle.write(folder, made)  # so that it can be loaded and measured
        measured = self._measured(folder, made, held_out, part(self.progress, 0.95, 1.0))
        made = replace(made, measured=measured)
        bundle.write(folder, made)
        workdir.publish(folder, out)
        if made.pays:
            bundle.register(out, self.files.fingerprint)
        self.progress("done", 1.0)
        return made

    def _with_states(self) -> Model:
        """Load the target as it runs, with the states that the head reads."""
        return self.loader.target_with(self.files, True, hidden_layers=self.layers).model

    def _manifest(self, columns: Ranges | None, facts: dict[str, Any]) -> Bundle:
        files = self.files
        own = dict(self.described(facts))
        made = provenance(
            target_precision=files.precision,
            text=f"written by the target itself at temperature {self.kind.temperature:g}",
            **own.pop("provenance", {}),
        )
        return Bundle(
            target=files.name,
            target_shape=bundle.shape(files.folder),
            target_fingerprint=files.fingerprint,
            target_sketch=sketch(files.folder),
            tokenizer=self.tokenizer.fingerprint,
            source=files.name,
            precision=self.kind.precision,
            layers=(),
            num_layers=exits.num_layers(files.folder),
            head=columns,
            distilled=facts,
            provenance=made,
            **own,
        )

    def _measured(
        self, folder: Path, made: Bundle, prompts: Sequence[str], progress: Progress
    ) -> dict[str, Any]:
        """Return acceptance and speed of the head in greedy texts, on prompts it was not trained on."""
        head = ModelFiles(folder, self.files.name, made.precision, str(folder), "", made)
        return {"device": self.loader.profile.name, **evaluate(self.pair(head, progress), prompts, progress)}


@contextmanager
def workdir_of(
    out: Path, kind: str, asked: Mapping[str, Any], files: ModelFiles
) -> Iterator[tuple[Path, Tokenizer]]:
    """Hold the working directory of a build of `kind` for `out`; give it and the target's tokenizer."""
    work = workdir.path_for(out)
    with workdir.hold_workdir(work, {kind: dict(asked), "target": files.fingerprint}):
        yield work, load_tokenizer(files.folder)
