"""`specport quantize diffusion`: make a block-diffusion language model from an autoregressive one.

Slow stages keep their results: training in `OUT.partial`, the target's text in the cache, where builds of
drafts find it too. The trained folder is moved to OUT when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from specport.quantize.text import shards as text
from specport.quantize.text.on_ray import writer_on
from specport.quantize.train.diffusion import about
from specport.quantize.train.diffusion.about import About
from specport.quantize.train.diffusion.recipe import Recipe

from specport.errors import InvalidInput, ModelError
from specport.jobs import ray_cluster, workdir, worker
from specport.models.source import original
from specport.outside.places import expanded
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.text.tokenizer import load_tokenizer

MAKE = worker.Job("specport.quantize.train.diffusion.training:make", grace_s=120.0)
_PACKAGES = ("specport", "transformers", "torch")


def build(
    target: str | None,
    out: Path,
    recipe: Recipe,
    *,
    tokens: int,
    start: str | None = None,
    layers: int | None = None,
    prompts: Sequence[str] = (),
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    processes: int = 1,
    trust_remote_code: bool = False,
    cluster: str | None = None,
    progress: Progress = silent,
) -> About:
    """Make a diffusion model that writes as `target` does, in the new Hugging Face folder `out`.

    tokens:  of answers to learn from.
    start:   model that the training begins with: the target itself (None), a decoder with its tokenizer, or a
             diffusion model that was made before.
    layers:  number of its layers to keep; None = all.
    prompts: the user's own turns, answered beside made-up ones.
    cluster: where the text is written, see `RayWriter`; None = in this process.
    Other arguments as for `specport.load`. Raises SpecportError; finished stages are kept.
    """
    workdir.check_new(out)
    if cluster is not None:
        ray_cluster.check()
    if tokens < 1 or processes < 1:
        raise InvalidInput("tokens and processes must be 1 or more")
    source = original(start or target)  # an error for lack of trainable weights comes before anything slow
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.05))
    files = loader.files(target, precision or loader.profile.precision)
    tokenizer = load_tokenizer(files.folder)
    if start is not None and source.is_dir():
        mismatch = load_tokenizer(source).mismatch(tokenizer)
        if mismatch:
            raise ModelError(f"{start} has another tokenizer than the target: {mismatch}")
    work = workdir.path_for(out)
    request = {
        "diffusion": asdict(recipe),
        "tokens": tokens,
        "start": str(source),
        "layers": layers,
        "prompts": [*prompts],
        "target": files.fingerprint,
    }
    with workdir.hold_workdir(work, request):
        elsewhere = writer_on(
            cluster, target, files.fingerprint, threads, device=device, precision=precision,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        shards = text.write_shards(
            lambda: loader.target_with(files, exact=False).model, tokenizer,
            text.folder_for(files.fingerprint, tuple(prompts), recipe.seed), tokens, recipe.seed, prompts,
            part(progress, 0.05, 0.4), least=2, elsewhere=elsewhere,
        )  # fmt: skip
        folder = work / "trained"
        shutil.rmtree(folder, ignore_errors=True)
        arguments = {
            "source": str(source),
            "work": str(work),
            "out": str(folder),
            "shards": [str(path) for path in shards],
            "recipe": asdict(recipe),
            "layers": layers,
            "vocab": tokenizer.vocab_size,
            "ends": [*tokenizer.eos_ids],
            "trust_remote_code": trust_remote_code,
        }
        result = worker.run(
            MAKE, arguments, "the model cannot be trained",
            processes=processes, progress=part(progress, 0.4, 1.0),
        )  # fmt: skip
        facts = {
            "target": files.name,
            "start": files.name if start is None else name_of(start, source),
            "recipe": asdict(recipe),
            **result,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": installed(_PACKAGES),
        }
        about.write(folder, facts)
        workdir.publish(folder, out)
    progress("done", 1.0)
    return about.read(out)


def name_of(given: str, source: Path) -> str:
    """Return the name of a model that a user names, whose weights are at `source`: a hub id's last part."""
    if source.is_file():
        return source.stem
    return (source.resolve() if expanded(given).is_dir() else Path(given.partition("@")[0])).name
