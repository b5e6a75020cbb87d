"""Hide a torchvision that does not import: with it, the models of transformers do not import either.

optimum-intel 2 requires torchvision, which no model of text needs. It must be built for the installed torch;
beside torch's CPU build, the one for CUDA installs but does not import.
"""

from __future__ import annotations

import importlib
import sys
from importlib.util import find_spec

from specport.progress import Progress, silent

REMEDY = "pip uninstall torchvision"  # only models of images need it
_NAME = "torchvision"


def hide() -> None:
    """Let transformers find no torchvision where the installed one does not import; else do nothing.

    Call this before transformers or optimum is imported. It costs no time where torchvision works, as the
    models of transformers import it themselves.
    """
    if _NAME not in sys.modules and problem():
        sys.modules[_NAME] = None  # type: ignore[assignment]  # as documented: importing it raises ImportError


def problem(progress: Progress = silent) -> str:
    """Return why the installed torchvision does not import; "" where it does, or where there is none.

    Imports torch, which takes seconds. progress: not used; with it this is a function for `jobs.worker.Job`.
    """
    if find_spec(_NAME) is None:
        return ""
    try:
        importlib.import_module(_NAME)
    except Exception as error:  # RuntimeError and OSError as well: its operators belong to another torch
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ""
