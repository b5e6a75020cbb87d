"""Download a model's files from the Hugging Face hub into the hub's cache. No other module uses the hub."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from specport.errors import ModelError
from specport.models.os_errors import cause, is_local
from specport.progress import Progress, silent

ANSWER_S = 20.0  # longest wait for the hub's first answer, including name look-up and retries
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "tokenizer.model"]
IR_FILES = ["openvino_model.xml", "openvino_model.bin"]
T = TypeVar("T")


def fetch(model_id: str, progress: Progress = silent) -> Path:
    """Return a folder with the needed files of `org/name[@revision]`.

    When the hub cannot be reached, a copy in the hub's cache is used. Raises ModelError, within 30 s when
    offline.
    """
    repo, _, revision = model_id.partition("@")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "20")
    try:
        import huggingface_hub
        from huggingface_hub import errors
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        raise ModelError(
            "hub ids need the huggingface-hub package", "pip install huggingface-hub, or give a local folder"
        ) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    disable_progress_bars()  # the hub draws one bar per file; ours shows the total
    progress(f"looking up {repo}", 0.0)

    def download(**options: Any) -> Path:
        folder = huggingface_hub.snapshot_download(
            repo, revision=revision or None, etag_timeout=10, **options
        )
        return Path(folder)

    try:
        info = _within(
            ANSWER_S,
            lambda: huggingface_hub.HfApi().model_info(repo, revision=revision or None, timeout=10),
        )
        names = {file.rfilename for file in info.siblings or []}
        progress(f"downloading {repo}", 0.1)
        bar = reporting_bar(lambda share: progress(f"downloading {repo}", 0.1 + 0.9 * share))
        return download(allow_patterns=needed_files(repo, names), tqdm_class=bar)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError) as error:
        raise ModelError(
            f"the hub has no model {model_id!r} that you may read",
            "check the spelling; for a gated model, accept its terms and log in with `hf auth login`",
        ) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{model_id!r} is not a hub id: {error}") from error
    except (*_network_errors(), errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        if is_local(error):
            message, hint = cause(error)
            raise ModelError(f"cannot store {model_id!r} in the hub's cache: {message}", hint) from error
        try:
            folder = download(local_files_only=True)
            if any(folder.glob("*.safetensors")) or (folder / IR_FILES[0]).is_file():
                return folder
        except (OSError, errors.LocalEntryNotFoundError):
            pass
        raise ModelError(
            f"the hub cannot be reached to fetch {model_id!r}",
            "check the network, or give a local folder or .gguf file; the default model needs no hub",
        ) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what a failed connection raises: from huggingface-hub 1 on, errors of httpx beside OSError."""
    try:
        import httpx
    except ImportError:
        return OSError, TimeoutError
    return OSError, TimeoutError, httpx.HTTPError


def reporting_bar(report: Callable[[float], None]) -> type[Any]:
    """Return a tqdm class that draws nothing and reports the share of files done."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def display(self, *args: Any, **options: Any) -> bool:
            report(min(self.n / self.total, 1.0) if self.total else 0.0)
            return True

    return Bar


def needed_files(repo: str, names: set[str]) -> list[str]:
    """Return patterns of the files to download: IR where available, else safetensors. Never pickles."""
    if set(IR_FILES) <= names:
        return [*SMALL_FILES, *IR_FILES]
    if any(name.endswith(".safetensors") and "/" not in name for name in names):
        return [*SMALL_FILES, "*.safetensors"]
    if any(name.endswith(".gguf") for name in names):
        raise ModelError(f"{repo} holds GGUF files", "download one of them and give its path with --model")
    raise ModelError(f"{repo} has no safetensors weights", "choose a model with .safetensors files")


def _within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of `work`, or raise TimeoutError. A name look-up has no time limit of its own."""
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]
