"""Read a Hugging Face folder with transformers, whole: a weight that is missing would be a random one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specport.errors import ModelError

_CHECK = "check that the folder is complete, or download the model again"


def read(kind: Any, folder: Path, *, trust_remote_code: bool = False, **options: Any) -> Any:
    """Return the model in a folder.

    kind: transformers' class, as AutoModelForCausalLM. options: of its `from_pretrained`.
    Raises ModelError where weights are missing; transformers raises many types for unusable files.
    """
    model, told = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, trust_remote_code=trust_remote_code,
        output_loading_info=True, **options,
    )  # fmt: skip
    check(model, told, folder)
    return model


def check(model: Any, told: dict[str, Any], folder: Path) -> None:
    """Raise ModelError where the loading info of `from_pretrained` names weights that were not read."""
    tied: set[str] = set()
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        for name in ("all_tied_weights_keys", "_tied_weights_keys"):
            tied |= {*(getattr(model, name, None) or ())}
    missing = {*told["missing_keys"]} - tied | {key[0] for key in told["mismatched_keys"]}
    if missing:
        raise ModelError(f"{folder} lacks weights: {_names(missing)}", _CHECK)


def _names(names: set[str]) -> str:
    first = sorted(names)[:3]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
