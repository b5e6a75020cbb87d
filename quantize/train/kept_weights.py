"""Keep the weights that a training begins with in a file, so that it can be undone.

In memory they would take as much as the model, beside gradients and the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from specport.errors import ModelError
from specport.models.atomic import replacing
from specport.models.os_errors import cause

START = "start.safetensors"


class KeptWeights:
    """Keep the values of these parameters in a file. Raises ModelError where it cannot be written."""

    def __init__(self, parameters: Sequence[Any], path: Path) -> None:
        self._parameters, self._path = parameters, path
        try:
            with replacing(path) as temporary:
                save_file({str(i): p.detach().contiguous() for i, p in enumerate(parameters)}, temporary)
        except (OSError, SafetensorError) as error:
            message, hint = cause(error)
            raise ModelError(f"cannot write {path}: {message}", hint) from error

    def restore(self) -> None:
        """Set the parameters to the kept values. Raises ModelError where the file cannot be read."""
        try:
            with safe_open(self._path, "pt") as stored, torch.no_grad():
                for i, parameter in enumerate(self._parameters):
                    parameter.copy_(stored.get_tensor(str(i)))
        except (OSError, SafetensorError) as error:
            message, hint = cause(error)
            raise ModelError(f"cannot read {self._path}: {message}", hint) from error
