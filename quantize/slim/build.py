"""`specport quantize verifier`: search the layers that a target's slim verifier skips, and write the mask.

The target's text and every finished trial are kept in `OUT.partial`: the same command goes on after a stop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specport.quantize.provenance import provenance
from specport.quantize.prune.probe import Probe
from specport.quantize.slim.cost import ALPHA, BETA, MaskCost
from specport.quantize.slim.search import check_installed, number_skipped, search
from specport.quantize.text.prompts import CHOOSING, divide
from specport.quantize.train import pace

from specport.calibration import exits, target_text
from specport.calibration.target_text import Text
from specport.errors import InvalidInput
from specport.jobs import workdir
from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.kinds import layer_mask
from specport.models.kinds.layer_mask import LayerMask
from specport.models.source import ModelFiles
from specport.models.weight_sketch import sketch
from specport.outside import Format
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer

LEAST = 24  # tokens of a text: reading its prompt costs as much as the text


@dataclass(frozen=True)
class Request:
    """What to search. Raises InvalidInput for values out of range.

    skip:    share of the layers to skip. trials: number of masks to try.
    tokens:  of the target's own text that masks are judged on, at least LEAST for each prompt.
    prompts: the user's own; () = built-in ones. seed: of the proposals.
    """

    skip: float = 0.45
    trials: int = 60
    tokens: int = 288
    prompts: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        pace.check_seed(self.seed)
        if not 0 < self.skip < 1:
            raise InvalidInput(f"skip is {self.skip:g}; it must be between 0 and 1")
        for name in ("trials", "tokens"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}; it must be 1 or more")


@dataclass(frozen=True)
class _Written:
    texts: tuple[Text, ...]


_WRITTEN = Format(_Written, "texts of a target")


def build(
    target: str | None,
    out: Path,
    request: Request,
    *,
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> LayerMask:
    """Search a mask for `target`, write it to the folder `out`, and let later loads find it.

    Other arguments as for `specport.load`. Raises SpecportError; what is finished is kept.
    """
    workdir.check_new(out)
    check_installed()  # before anything slow
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.05))
    if loader.backend.weights != "ir":
        raise InvalidInput(
            f"masks are searched with OpenVINO, which {loader.profile.name} does not run",
            "search with --device xeon; the mask then holds on every device",
        )
    files = loader.files(target, precision or loader.profile.precision)
    num_layers = exits.num_layers(files.folder)
    count = number_skipped(num_layers, request.skip)
    work = workdir.path_for(out)
    with workdir.hold_workdir(work, {"verifier": asdict(request), "target": files.fingerprint}):
        texts = _texts(loader, files, request, work / "texts.json", part(progress, 0.05, 0.2))
        profile = loader.profile.fitted(files.folder)
        cost = MaskCost(Probe(files.folder, profile.device, profile.fast), texts)
        began = time.perf_counter()
        trials = search(
            cost, num_layers, count, request.trials, request.seed, work / "trials.json",
            part(progress, 0.2, 1.0),
        )  # fmt: skip
        best = trials[0]
        mask = LayerMask(
            files.name, bundle.shape(files.folder), files.fingerprint, sketch(files.folder),
            num_layers, best.skipped, best.cost, best.agreement,
            measured={
                "alpha": ALPHA, "beta": BETA, "tokens": cost.num_tokens, "trials": len(trials),
                "costs": [round(trial.cost, 4) for trial in trials], "seed": request.seed,
                "seconds": round(time.perf_counter() - began, 1), "device": loader.profile.name,
                "precision": files.precision,
            },
            provenance=provenance(),
        )  # fmt: skip
        folder = work / "mask"
        folder.mkdir(exist_ok=True)
        layer_mask.write(folder, mask)
        workdir.publish(folder, out)
    layer_mask.register(out, files.fingerprint)
    progress("done", 1.0)
    return mask


def _texts(
    loader: Loader, files: ModelFiles, request: Request, known: Path, progress: Progress
) -> Sequence[Text]:
    """Return the calibration window: texts that the target writes, or wrote in a run before."""
    stored = _WRITTEN.find(known)
    if stored is not None:
        return stored.texts
    prompts = divide(request.prompts).choosing if request.prompts else CHOOSING
    prompts = prompts[: max(1, request.tokens // LEAST)]
    length = max(1, request.tokens // len(prompts))
    model = loader.target_with(files, exact=False).model
    texts = target_text.write(model, load_tokenizer(files.folder), prompts, length, progress)
    if not any(text.answer for text in texts):
        raise InvalidInput("no prompt fits the target's context", "give shorter --prompts")
    write_json(known, {"texts": [vars(text) for text in texts]})
    return texts
