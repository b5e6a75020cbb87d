"""A module for multi-token prediction, the target's own or trained: found for a draft expression, and joined
with its costs."""

from __future__ import annotations

from specport.core.planning.step_costs import StepCosts
from specport.drafters.context import DraftModel
from specport.drafters.registry import MTP
from specport.drafters.spec import DraftSpec
from specport.errors import DeviceError, InvalidInput, ModelError
from specport.models import precision as precisions
from specport.models.json_file import read_json, whole
from specport.models.source import ModelFiles
from specport.runtime.conversion import mtp_head, mtp_module
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader
from specport.runtime.stored import measurements
from specport.text.tokenizer import Tokenizer

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}  # of a weight


def module_of(spec: DraftSpec, files: ModelFiles, loader: Loader) -> ModelFiles | None:
    """Return the module that a draft expression names, converted where needed: the target's own, or a trained
    one (`specport quantize mtp`), which has a bundle.

    files: of the target. Raises ModelError where it has none, or none that can be used, and InvalidInput
    where two are named.
    """
    head = loader.mtp_head(spec)
    if head is not None:
        if MTP in spec.kinds:
            raise InvalidInput(f"two MTP heads in {str(spec)!r}", "a target is loaded with one: name one")
        if head.bundle is not None:  # said before anything slow
            head.bundle.check_target(files.folder, files.name, files.fingerprint)
        return mtp_head(head, files, weights=loader.backend.weights, progress=loader.progress)
    if MTP not in spec.kinds:
        return None
    found = mtp_module(files, weights=loader.backend.weights, progress=loader.progress)
    if found is None:
        raise ModelError(
            f"{files.name} has no weights for multi-token prediction",
            "train an MTP head with specport quantize mtp, name a Hugging Face folder that has them with "
            "--model, or choose another --draft",
        )
    return found


def head_of(module: ModelFiles | None, loader: Loader) -> tuple[int, ...] | None:
    """Return the ids that training or calibration left in the head of a module; None = all."""
    if module is not None and module.bundle is not None:
        return module.bundle.head_tokens
    return None if module is None else measurements.find_cut(module.fingerprint, loader.profile.name)


def as_draft(
    module: ModelFiles, files: ModelFiles, tokenizer: Tokenizer, target: Loaded, loader: Loader
) -> DraftModel:
    """Return the target's own module that was loaded with it, as a draft with its costs.

    module, files: of the module, loaded with the head of `head_of`, and of the target.
    Raises DeviceError where the device runs no such module.
    """
    if target.model.mtp is None:
        raise DeviceError(
            f"models have no multi-token prediction on {loader.profile.name}",
            "choose another --draft or --device",
        )
    profile = loader.profile
    found = measurements.find(measurements.of_head(target.key, module.fingerprint))
    tokens = head_of(module, loader)
    return DraftModel(
        target.model.mtp,
        tokenizer,
        module.name,
        found.costs if found else StepCosts.prior(profile.cost, profile.width_change),
        tokens,
        assumed=_share(module, files, len(tokens) if tokens else target.model.vocab_size),
    )


def _share(module: ModelFiles, target: ModelFiles, num_rows: int) -> float:
    """Return what a step of a module reads of weights, in those of its target; 1 at most.

    num_rows: of the head that it shares with the target.
    """
    sizes = [
        sum(path.stat().st_size for kind in ("bin", "safetensors") for path in files.folder.glob(f"*.{kind}"))
        for files in (module, target)
    ]
    width = whole(read_json(module.folder / "config.json"), "hidden_size") or 0
    head = num_rows * width * _BYTES[precisions.parse(module.precision).base]
    return min(1.0, (sizes[0] + head) / max(1, sizes[1]))
