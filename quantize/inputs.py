"""The inputs of a build: the target, the model that the draft is made from, and a device."""

from __future__ import annotations

from dataclasses import dataclass

from specport.errors import InvalidInput, ModelError
from specport.models.bundle import check_is_model
from specport.models.source import ModelFiles
from specport.progress import Progress, silent
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader
from specport.text.tokenizer import Tokenizer, load_tokenizer


@dataclass
class Inputs:
    """The models of a build.

    source_files: IR of the model that the draft is made from, with all its layers; or a bundle.
    """

    loader: Loader
    target_files: ModelFiles
    source_files: ModelFiles
    tokenizer: Tokenizer
    _target: Loaded | None = None

    @property
    def target(self) -> Loaded:
        """The target in exact mode; loaded when it is needed."""
        if self._target is None:
            self._target = self.loader.target_with(self.target_files, exact=True)
        return self._target

    def release(self) -> None:
        """Free the target's memory until it is needed again."""
        self._target = None

    @classmethod
    def load(
        cls,
        target: str | None,
        source: str | None = None,
        *,
        device: str = "auto",
        precision: str | None = None,
        draft_precision: str | None = None,
        threads: int | None = None,
        trust_remote_code: bool = False,
        progress: Progress = silent,
        bundles: bool = False,
    ) -> Inputs:
        """Load the target and resolve the source.

        source: None = the target itself. bundles: whether the source may be a draft bundle. Other arguments
                as for `specport.load`. Raises SpecportError.
        """
        loader = Loader.on(device, threads, None, trust_remote_code, progress)
        if loader.backend.weights != "ir":
            raise InvalidInput(
                f"drafts are built with OpenVINO, which {loader.profile.name} does not run",
                "build with --device xeon; specport quantize export DIR --to hf then converts the draft for "
                f"{loader.profile.name}",
            )
        spec = source if source is not None else (target or "default")
        target_files, loaded = loader.target(target, precision, exact=True)
        tokenizer = load_tokenizer(target_files.folder)
        found = loader.draft_files(spec, draft_precision, target_files, tokenizer)
        files = found.files
        if files.bundle:
            check_is_model(files.bundle, files.folder)
        if files.bundle and not bundles:
            raise InvalidInput(
                f"{spec} is a draft bundle already",
                "name the model that it was made from, or train the draft further with --parallel 6",
            )
        if found.mismatch:
            raise ModelError(f"{files.name} has another tokenizer than the target: {found.mismatch}")
        return cls(loader, target_files, files, tokenizer, loaded)
