"""Trainings of whole models on text that a target writes: what `layerskip`, `diffusion` and `pipo` share.

Slow stages keep their results: training in `OUT.partial`, the target's text in the cache, where builds of
drafts find it too. The trained folder is moved to OUT when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specport.quantize.convert.from_gguf import config as gguf_config
from specport.quantize.provenance import provenance
from specport.quantize.text import training_text
from specport.quantize.text.on_ray import writer_on

from specport.errors import InvalidInput
from specport.jobs import ray_cluster, workdir, worker
from specport.models.gguf import split as gguf_split
from specport.models.json_file import text_config
from specport.models.source import ModelFiles, original
from specport.progress import Progress, part
from specport.runtime.loading import Loader
from specport.text.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Settings:
    """Say what is written to learn from, and where all runs.

    tokens:  of answers to learn from.
    prompts: the user's own turns, answered beside made-up ones.
    cluster: where the text is written, see `RayWriter`; None = in this process.
    Others as for `specport.load`.
    """

    tokens: int
    prompts: Sequence[str] = ()
    device: str = "auto"
    precision: str | None = None
    threads: int | None = None
    processes: int = 1
    trust_remote_code: bool = False
    cluster: str | None = None


@dataclass(frozen=True)
class Training:
    """Hold a training whose arguments were checked, before anything slow.

    source: trainable weights that it begins with. files: of the target, which writes the text.
    """

    target: str | None
    out: Path
    settings: Settings
    source: Path
    loader: Loader
    files: ModelFiles
    tokenizer: Tokenizer
    progress: Progress

    @staticmethod
    def of(
        target: str | None,
        out: Path,
        settings: Settings,
        progress: Progress,
        start: str | None = None,
        check: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> Training:
        """Check all arguments, and convert the target where needed. Raises SpecportError.

        start: what the training begins with; None = the target.
        check: raises SpecportError for the configuration of a model that cannot be trained.
        """
        workdir.check_new(out)
        if settings.cluster is not None:
            ray_cluster.check()
        if settings.tokens < 1 or settings.processes < 1:
            raise InvalidInput("tokens and processes must be 1 or more")
        # An error for lack of trainable weights comes before anything slow.
        source = original(start or target)
        if check is not None:
            check(config_of(source))
        loader = Loader.on(
            settings.device, settings.threads, None, settings.trust_remote_code, part(progress, 0.0, 0.05)
        )
        files = loader.files(target, settings.precision or loader.profile.precision)
        return Training(target, out, settings, source, loader, files, load_tokenizer(files.folder), progress)

    def run(
        self,
        kind: str,
        job: worker.Job,
        recipe: Any,
        write: Callable[[Path, Mapping[str, Any]], None],
        names: Mapping[str, str],
        *,
        written: float = 0.4,
        request: Mapping[str, Any] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the text, train, and publish the folder `out`.

        Raises SpecportError; finished stages are kept.

        kind:      names the training in its request.
        recipe:    a dataclass with `seed`.
        write:     writes the record of the training into a folder.
        names:     of models, in the record.
        written:   share of the progress at which the text is complete.
        request:   what else decides the result. arguments: what else the job gets.
        """
        settings, files, work = self.settings, self.files, workdir.path_for(self.out)
        asked = {
            kind: asdict(recipe), "tokens": settings.tokens, **(request or {}),
            "prompts": [*settings.prompts], "target": files.fingerprint,
        }  # fmt: skip
        with workdir.hold_workdir(work, asked):
            paths = self._text(recipe.seed, part(self.progress, 0.05, written))
            folder = work / "trained"
            shutil.rmtree(folder, ignore_errors=True)
            given = {
                "source": str(self.source),
                "work": str(work),
                "out": str(folder),
                "shards": [str(path) for path in paths],
                "recipe": asdict(recipe),
                **(arguments or {}),
                "trust_remote_code": settings.trust_remote_code,
            }
            result = worker.run(
                job, given, "the model cannot be trained",
                processes=settings.processes, progress=part(self.progress, written, 1.0),
            )  # fmt: skip
            facts = {
                **names,
                "recipe": asdict(recipe),
                **result,
                **provenance(),
            }
            write(folder, facts)
            workdir.publish(folder, self.out)
        self.progress("done", 1.0)

    def _text(self, seed: int, progress: Progress) -> list[Path]:
        """Return the shards to learn from."""
        settings, files = self.settings, self.files
        elsewhere = writer_on(
            settings.cluster, self.target, files.fingerprint, settings.threads, device=settings.device,
            precision=settings.precision, trust_remote_code=settings.trust_remote_code,
        )  # fmt: skip
        return training_text.write(
            self.loader, files, self.tokenizer, settings.tokens, seed, settings.prompts, progress, elsewhere
        )


def config_of(source: Path) -> Mapping[str, Any]:
    """Return the config.json of a folder, or as a GGUF file implies. Raises ModelError."""
    if source.is_file():
        return gguf_config.entries(gguf_split.read(source))
    return text_config(source)
