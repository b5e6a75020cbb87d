"""Read a Hugging Face folder with transformers, whole: a weight that is missing would be a random one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from specport.quantize.convert import package_faults

from specport.errors import ModelError
from specport.models import tensors

# A tensor of whole numbers may hold several weights in each: of two bits at least.
_PACKED = {"U8": 4, "I8": 4, "I16": 8, "I32": 16, "U32": 16, "I64": 32}
_MORE, _FEW = 1.1, 1 << 20  # what is made from other weights, such as tables of positions
_CHECK = "check that the folder is complete, or download the model again"


def read(
    kind: Any, folder: Path, *, hint: str = _CHECK, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Return the model in a folder. Raises ModelError where it is no whole model; `hint` goes with it.

    kind: transformers' class, as AutoModelForCausalLM. options: of its `from_pretrained`.
    """
    with explained(folder, hint):
        if not trust_remote_code:
            check_room(kind, folder, options.get("config"))
        model, told = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, trust_remote_code=trust_remote_code,
            output_loading_info=True, **options,
        )  # fmt: skip
    check(model, told, folder)
    return model


@contextmanager
def explained(folder: Path | str, hint: str) -> Iterator[None]:
    """Say why transformers cannot read a folder: it raises many types for unusable files.

    Its own progress bars are not drawn meanwhile; specport's show what the user waits for.
    """
    try:
        with no_bars():
            yield
    except ModelError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"{folder} cannot be read: {reason}", hint) from error


@contextmanager
def no_bars() -> Iterator[None]:
    """Let transformers draw no progress bars meanwhile."""
    package_faults.mend()
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def check_room(kind: Any, folder: Path, config: Any = None) -> None:
    """Raise ModelError where a configuration asks for far more numbers than the folder's tensors have.

    A small file could otherwise take any memory. config: transformers'; None = that of the folder.
    """
    import torch
    from transformers import AutoConfig

    try:
        stored = tensors.in_folder(folder).values()
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} cannot be read: {error}", _CHECK) from error
    there = sum(math.prod(each.shape) * _PACKED.get(each.kind, 1) for each in stored)
    if config is None:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    make = getattr(kind, "from_config", None)  # of the classes that choose a model by its configuration
    try:
        with torch.device("meta"):
            empty = make(config, trust_remote_code=False) if make is not None else kind(config)
    except (NotImplementedError, RuntimeError):  # a model that computes while it is made
        return
    wanted = sum(parameter.numel() for parameter in empty.parameters()) - _counted_twice(empty)
    if wanted > _MORE * there + _FEW:
        raise ModelError(f"{folder} lacks weights: it has {there:,} of {wanted:,} numbers", _CHECK)


def _counted_twice(model: Any) -> int:
    """Return the numbers of the head where it is to be the embeddings, and is not yet.

    `parameters` has shared ones once.
    """
    try:
        table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    except (AttributeError, NotImplementedError):  # a model without the one or the other
        return 0
    return int(head.numel()) if _is_tied(model) and head is not table else 0


def check(model: Any, told: dict[str, Any], folder: Path) -> None:
    """Raise ModelError where the loading info of `from_pretrained` names weights that were not read."""
    tied = {*(getattr(model, "all_tied_weights_keys", None) or ())}
    if _is_tied(model):  # transformers 4 has the names whether or not they are tied
        tied |= {*(getattr(model, "_tied_weights_keys", None) or ())}
    missing = {*told["missing_keys"]} - tied | {key[0] for key in told["mismatched_keys"]}
    if missing:
        raise ModelError(f"{folder} lacks weights: {_names(missing)}", _CHECK)


def _is_tied(model: Any) -> bool:
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))


def _names(names: set[str]) -> str:
    first = sorted(names)[:3]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
