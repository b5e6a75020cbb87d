"""Say whether a folder holds a model of the wanted kind that is whole, before anything loads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from specport.errors import ModelError
from specport.models import tensors
from specport.models.json_file import CONFIG_FILE, TOKENIZER_FILE, read_json, text_config
from specport.models.kinds.pipo import is_pair_folder
from specport.models.kinds.whisper import speech_form
from specport.models.safe_files import UnsafeFile, check_name, regular

IR_XML, IR_BIN = "openvino_model.xml", "openvino_model.bin"
_DOWNLOAD = "download the model again"
_PARTS, _MOST_PARTS = re.compile("layers|experts|heads|depth|blocks"), 1 << 14


def check_kind(folder: Path, speech: bool | None) -> None:
    """Raise ModelError for a speech model where a text model is wanted, and the other way round.

    A pair model is loaded by its parts, and is refused as a whole.
    """
    if is_pair_folder(str(folder)):
        raise ModelError(
            f"{folder} holds a pair model (PIPO), which is lossy", "use it with: specport run --model"
        )
    if speech and speech_form(folder) is None:
        raise ModelError(
            f"{folder} holds no Whisper model ({_kind(folder)})", "give a folder of Whisper, or a hub id"
        )
    if speech is False and speech_form(folder) is not None:
        raise ModelError(f"{folder} holds a speech model (whisper)", "use it with: specport transcribe")


def _kind(folder: Path) -> str:
    kind = read_json(folder / "config.json").get("model_type")
    return kind if isinstance(kind, str) else "of an unknown kind"


def check_weights(folder: Path, names: Sequence[str]) -> None:
    """Raise ModelError where weights are not regular files, or the index names a file outside `folder`.

    A configuration that asks for more layers than there are tensors is refused: libraries would make lists
    and layers of any number before they look at the weights.
    """
    if problem := sizes_problem(folder):
        raise ModelError(f"{folder} cannot be used: {problem}", _DOWNLOAD)
    index = read_json(folder / "model.safetensors.index.json").get("weight_map")
    try:
        for name in names:
            regular(folder / name)
        for name in {*map(str, index.values())} if isinstance(index, dict) else ():
            check_name(name)
        count = sum(len(tensors.header(folder / name)) for name in names)
    except (UnsafeFile, OSError) as error:
        raise ModelError(f"{folder} cannot be used: {error}", _DOWNLOAD) from error
    except ValueError as error:
        raise ModelError(f"{folder} cannot be read: {error}", _DOWNLOAD) from error
    layers = text_config(folder).get("num_hidden_layers")
    if isinstance(layers, int) and layers > count:
        raise ModelError(f"{folder} has {count} tensors for {layers} layers", _DOWNLOAD)


def sizes_problem(folder: Path) -> str | None:
    """Return which number of parts in a model's config.json is larger than any real one, or None."""
    try:
        config = read_json(folder / CONFIG_FILE)
    except ModelError as error:
        return error.message
    for table in (config, *(value for value in config.values() if isinstance(value, dict))):
        counts = {k: v for k, v in table.items() if _PARTS.search(k) and isinstance(v, int)}
        for name, value in counts.items():
            if value > _MOST_PARTS:
                return f"{name} is {value} in {CONFIG_FILE}"
    return None


def ir_problem(folder: Path) -> str | None:
    """Return why a folder with OpenVINO IR cannot be run, or None."""
    for name in (IR_XML, IR_BIN, "config.json"):
        if not (folder / name).is_file():
            return f"{name} is missing"
    if not (folder / TOKENIZER_FILE).is_file():
        return f"it has no tokenizer ({TOKENIZER_FILE})"
    with open(folder / IR_XML, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 64))
        if b"</net>" not in file.read():
            return f"{IR_XML} is truncated"
    return sizes_problem(folder)


def folder_problem(folder: Path) -> str | None:
    """Return why a Hugging Face folder of the cache cannot be run, or None."""
    missing = [name for name in ("config.json", TOKENIZER_FILE) if not (folder / name).is_file()]
    if not any(folder.glob("*.safetensors")):
        missing.append("*.safetensors")
    return f"{missing[0]} is missing" if missing else sizes_problem(folder)
