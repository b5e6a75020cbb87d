"""Read the JSON files of a model folder, which are untrusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specport.outside import Format, Table, plain_values

TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "config.json"
MAX_FILE_BYTES = 1 << 28  # larger than any real file; keeps a wrong or hostile one from filling the memory
_JSON: Format[Any] = Format(
    Any, "a JSON file", "copy or download the file again", parse=plain_values.from_foreign_json
)


def read_json(path: Path) -> Table:
    """Return the object in a JSON file; empty where the file is missing or holds no object.

    Raises ModelError when the file is damaged, too large or not a regular file.
    """
    value = _JSON.read_if_there(path)
    return value if isinstance(value, dict) else {}


def text_config(folder: Path) -> Table:
    """Return a model's config.json; what it says of the text model of several stands with the rest."""
    return text_part(read_json(folder / CONFIG_FILE))


def text_part(config: Table) -> Table:
    """Return a configuration; what it says of the text model of several stands with the rest."""
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def whole(table: Table, name: str, most: int = 1 << 31) -> int | None:
    """Return an entry that is a whole number from 1 to `most`, else None."""
    value = table.get(name)
    return value if type(value) is int and 1 <= value <= most else None
