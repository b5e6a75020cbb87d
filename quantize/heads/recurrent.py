"""`specport quantize head`: train a recurrent head on a target's hidden states, and write its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specport.quantize.evaluate.pair import DraftPair
from specport.quantize.evaluate.quick_costs import step_costs
from specport.quantize.heads.build import HeadBuild, Kind, Place, workdir_of
from specport.quantize.train.recurrent.recipe import Recipe

from specport.calibration import exits, heads
from specport.core.planning.step_costs import StepCosts
from specport.errors import InvalidInput
from specport.jobs import worker
from specport.models.bundle import Bundle
from specport.models.fetch import download
from specport.models.kinds.recurrent import MAX_DEPTH, Recurrent
from specport.models.shipped import ORIGIN
from specport.models.source import ModelFiles
from specport.progress import Progress, part, silent


@dataclass(frozen=True)
class Request:
    """What to build. Raises InvalidInput for values out of range.

    distil_tokens: tokens that the target writes for the head to learn from.
    prompts:     the user's own turns (see `prompts.divide`).
    layers:      of the target, whose states the head reads; () = at a third, at two thirds, and the last.
    inner, blocks: of the head's feed-forward blocks (`Recurrent`).
    depth:       tokens that it is trained to draft one after the other.
    head_tokens: most frequent ids that it can draft; 0 = all.
    loss, epochs, learning_rate, seed: as for `train.recurrent.recipe.Recipe`.
    """

    distil_tokens: int = 300_000
    prompts: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    inner: int = 1536
    blocks: int = 1
    depth: int = 5
    head_tokens: int = 8192
    loss: str = "kl"
    epochs: float = 4.0
    learning_rate: float = 5e-4
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
        self.recipe  # noqa: B018  # checks the rest

    @property
    def recipe(self) -> Recipe:
        """The part of the request that training reads."""
        return Recipe(self.loss, self.epochs, self.learning_rate, seed=self.seed)


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
    place = Place(device, precision, threads, trust_remote_code, cluster)
    loader = place.loader(out, part(progress, 0.0, 0.05))
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
    with workdir_of(out, "head", asdict(request), files) as (work, tokenizer):
        states = "hidden-" + "-".join(map(str, layers))
        elsewhere = place.writer(target, files)
        made = _Build(loader, files, tokenizer, request, layers, states, elsewhere, work, progress)
        return made.run(out)


@dataclass
class _Build(HeadBuild[Request]):
    kind = Kind(
        "draft head", worker.Job("specport.quantize.train.recurrent.making:train", grace_s=120.0), "int8"
    )

    def arguments(self) -> Mapping[str, Any]:
        names = ("inner", "blocks", "depth", "layers")
        return {
            "shape": {name: getattr(self.request, name) for name in names},
            "recipe": asdict(self.request.recipe),
        }

    def described(self, facts: dict[str, Any]) -> Mapping[str, Any]:
        origin = {ORIGIN: download.SHA256} if self.files.source == "default" else {}
        licence = "that of specport; the weights were trained on the output of the target"
        return {
            "recurrent": Recurrent.of(facts.pop("recurrent")),
            "provenance": {"licence": licence, **origin},
        }

    def pair(self, head: ModelFiles, progress: Progress) -> DraftPair:
        target = self.loader.target_with(self.files, True, head=head)
        seconds = heads.head_step_seconds(target.model)
        own = StepCosts((1,), (0,), ((seconds,),), measured=True)
        return DraftPair(
            target, target, self.tokenizer, self.files.name, step_costs(target), own, on_states=True
        )
