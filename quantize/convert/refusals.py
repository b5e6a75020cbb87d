"""Say in one line why optimum-intel does not convert a model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from specport.errors import ModelError, SpecportError

_OTHER_RUNTIME = "run it on torch: --device cuda, or torch-cpu"
_VERSION = re.compile(r"(Minimum|Maximum) required is ([\w.*]+)")
_UNKNOWN = ("custom or unsupported architecture", "has been removed")
_CAUSE = re.compile(r"^Exception:\n(.+)$", re.MULTILINE)  # of a model that cannot be traced


@contextmanager
def explained(kind: str) -> Iterator[None]:
    """Raise ModelError for what optimum-intel or the tracer raises within the context.

    kind: the model's `model_type`.
    Lack of memory and errors of the system pass: they are no fault of the model.
    """
    try:
        yield
    except (SpecportError, MemoryError, OSError):
        raise
    except (ValueError, NotImplementedError) as error:
        raise _refusal(str(error), kind) from error
    except RuntimeError as error:
        found = _CAUSE.search(str(error))
        if found is None:
            raise
        raise ModelError(
            f"{kind} models like this one cannot be traced: {found[1]}", _OTHER_RUNTIME
        ) from error


def _refusal(text: str, kind: str) -> ModelError:
    optimum = f"optimum-intel {metadata.version('optimum-intel')}"
    if found := _VERSION.search(text):
        sign = ">=" if found[1] == "Minimum" else "<="
        have = metadata.version("transformers")
        return ModelError(
            f"{optimum} converts {kind} models with transformers {sign}{found[2]} only, not {have}",
            f"pip install 'transformers{sign}{found[2]}', or {_OTHER_RUNTIME}",
        )
    if any(words in text for words in _UNKNOWN):
        return ModelError(f"{optimum} does not convert {kind} models", _OTHER_RUNTIME)
    reason = (text.strip().splitlines() or ["no reason is given"])[0][:300]
    return ModelError(f"{kind} models like this one cannot be converted: {reason}", _OTHER_RUNTIME)
