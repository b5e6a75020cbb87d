"""Read the JSON files of a model folder, which are untrusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specport.errors import ModelError
from specport.models.safe_files import regular

TOKENIZER_FILE = "tokenizer.json"
MAX_FILE_BYTES = 1 << 28  # larger than any real file; keeps a wrong or hostile one from filling the memory


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; empty where the file is missing or holds no object.

    Raises ModelError when the file is damaged, too large or not a regular file.
    """
    try:
        if regular(path).stat().st_size > MAX_FILE_BYTES:
            raise ModelError(f"{path} is too large")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {error}", "copy or download the file again") from error
    return value if isinstance(value, dict) else {}
