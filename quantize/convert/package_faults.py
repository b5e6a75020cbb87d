"""Mend what other installed packages break in transformers' models.

optimum-intel 2 requires torchvision, which no model of text needs. It must be built for the installed torch;
beside torch's CPU build, the one for CUDA installs but does not import, and then models do not import either.

NNCF makes its own class that of all later loggers. Their `warning_once` takes other arguments than the one
that transformers gives to loggers, so that a model which warns while it is built fails.

OpenVINO's converter and NNCF send usage data, also of users who have never been asked, and fork this process
for each of some ten events of a conversion. A fork of a large process takes long, and so does writing to its
memory afterwards.
"""

from __future__ import annotations

import importlib
import logging
import sys
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from specport.progress import Progress, silent

REMEDY = "pip uninstall torchvision"  # only models of images need it
_NAME = "torchvision"


def mend() -> None:
    """Let transformers find no torchvision where the installed one does not import, and loggers of its own.

    And let OpenVINO and NNCF send usage data of those users only who have agreed (`opt_in_out --opt_in`).

    Call this before transformers or optimum is imported, and again before a model is built where NNCF may
    have been imported in between. It costs no time where torchvision works, as the models of transformers
    import it themselves.
    """
    if _NAME not in sys.modules and torchvision_problem():
        sys.modules[_NAME] = None  # type: ignore[assignment]  # as documented: importing it raises ImportError
    _restore_loggers()
    with suppress(ImportError):  # it is not installed, or is another version
        _send_nothing_unasked()


def torchvision_problem(progress: Progress = silent) -> str:
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


def _restore_loggers() -> None:
    """Make NNCF's class of loggers that of NNCF's logger alone."""
    kind = logging.getLoggerClass()
    if kind.__module__.partition(".")[0] != "nncf":
        return
    logging.setLoggerClass(logging.Logger)
    for name, logger in [*logging.Logger.manager.loggerDict.items()]:
        if type(logger) is kind and name.partition(".")[0] != "nncf":
            logger.__class__ = logging.Logger


def _send_nothing_unasked() -> None:
    """Let a user who has not been asked count as one who has declined."""
    from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker

    check = OptInChecker.check
    if check.__module__ == __name__:
        return

    def agreed(*arguments: Any, **options: Any) -> Any:
        found = check(*arguments, **options)
        return ConsentCheckResult.DECLINED if found is ConsentCheckResult.NO_FILE else found

    OptInChecker.check = agreed
