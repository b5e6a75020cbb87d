"""`specport quantize mtp`: train a module for multi-token prediction, and write its bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from specport.quantize.evaluate.pair import DraftPair
from specport.quantize.evaluate.quick_costs import step_costs
from specport.quantize.heads.build import HeadBuild, Kind, Place, workdir_of
from specport.quantize.mtp.request import Request, check_decoder
from specport.quantize.train.own_text import config_of

from specport.calibration import heads
from specport.core.planning.step_costs import StepCosts
from specport.core.ports import HEAD_INPUT
from specport.errors import InvalidInput, ModelError
from specport.jobs import worker
from specport.models.bundle import Bundle, Ranges
from specport.models.identity import fingerprint
from specport.models.kinds.mtp import JOIN, WEIGHTS
from specport.models.kinds.mtp_head import MtpHead
from specport.models.source import ModelFiles, original
from specport.progress import Progress, part, silent
from specport.runtime.conversion import mtp_head
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer

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
    place = Place(device, precision, threads, trust_remote_code, cluster)
    loader = place.loader(out, part(progress, 0.0, 0.05))
    if loader.backend.weights != "ir" or loader.profile.buckets:
        raise InvalidInput(
            f"MTP heads are built on OpenVINO's paged path, which {loader.profile.name} does not have",
            "build with --device xeon; the head then runs on torch too",
        )
    # Errors for weights that cannot be read or trained come before anything slow.
    source = original(target)
    check_decoder(config_of(source))
    files = loader.files(target, precision or loader.profile.precision)
    start = None if request.start is None else _start(loader, request.start, files)
    asked = {**asdict(request), "start": None if start is None else start.fingerprint}
    with workdir_of(out, "mtp", asked, files) as (work, tokenizer):
        elsewhere = place.writer(target, files)
        made = _Build(
            loader, files, tokenizer, request, (HEAD_INPUT,), STATES, elsewhere, work, progress, source, start
        )  # fmt: skip
        return made.run(out)


def _start(loader: Loader, folder: Path, files: ModelFiles) -> ModelFiles:
    """Return the head that training starts from. Raises ModelError where it is none of this target."""
    found = loader.draft_files(str(folder), None, files, load_tokenizer(files.folder)).files
    if found.bundle is None or found.bundle.mtp is None:
        raise ModelError(f"{folder} is no MTP head", "name one that specport quantize mtp made with --from")
    return found


@dataclass
class _Build(HeadBuild[Request]):
    """One build of an MTP head.

    source: the target's weights before their conversion. start: the head to train further, or None.
    """

    kind = Kind(
        "MTP head", worker.Job("specport.quantize.mtp.train:train", grace_s=120.0), "fp16",
        temperature=1.0, whole=True,  # sampled acceptance is what the losses are about
    )  # fmt: skip

    source: Path
    start: ModelFiles | None

    def columns(self, written: Sequence[Path]) -> Ranges | None:
        """Return the ids that the head can draft: those of `start`, or the most frequent; None = all."""
        if self.start is not None and self.start.bundle is not None:
            return self.start.bundle.head
        return super().columns(written)

    def arguments(self) -> Mapping[str, Any]:
        return {
            "source": str(self.source),
            "start": None if self.start is None else str(self.start.folder),
            "recipe": asdict(self.request.recipe),
            "trust_remote_code": self.loader.trust_remote_code,
        }

    def described(self, facts: dict[str, Any]) -> Mapping[str, Any]:
        return {
            "mtp": MtpHead(self.request.depth, self.request.loss),
            "provenance": {"started_from": "" if self.start is None else self.start.fingerprint},
        }

    def pair(self, head: ModelFiles, progress: Progress) -> DraftPair:
        name, bundle = self.files.name, head.bundle
        assert bundle is not None  # it was just written
        identity = fingerprint(head.folder, [], [JOIN, WEIGHTS])
        head = replace(head, name=f"{name}-mtp", fingerprint=identity)
        module = mtp_head(head, self.files, progress=progress)
        target = self.loader.target_with(self.files, True, mtp=module, mtp_tokens=bundle.head_tokens)
        assert target.model.mtp is not None  # OpenVINO's models have it
        draft = Loaded(target.model.mtp, head_tokens=bundle.head_tokens)
        own = StepCosts((1,), (0,), ((heads.step_seconds(draft.model),),), measured=True)
        return DraftPair(target, draft, self.tokenizer, name, step_costs(target), own, on_states=True)
