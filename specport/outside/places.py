"""Paths as users name them."""

from __future__ import annotations

import os
from pathlib import Path

from specport.errors import InvalidInput


def expanded(name: str | Path) -> Path:
    """Return a path with `~` expanded, for which `exists` and the like raise nothing; it need not exist.

    Raises InvalidInput for a user that there is not, a name that is too long or not allowed, and a folder
    that may not be entered.
    """
    shown = f"{str(name)!r:.120}"
    try:
        path = Path(name).expanduser()
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except RuntimeError as error:
        raise InvalidInput(f"cannot find the home folder of {shown}", "give the whole path") from error
    except (OSError, ValueError) as error:  # ValueError: a null character, half of a surrogate pair
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"cannot use the path {shown}: {reason}", "name another one") from error
    return path
