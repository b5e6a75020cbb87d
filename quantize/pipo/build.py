"""`specport quantize pipo`: train a model to read and write pairs of tokens. The result is lossy.

Slow stages keep their results: training in `OUT.partial`, the original's text in the cache, where builds of
drafts find it too. The trained folder is moved to OUT when it is complete.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from specport.quantize.pipo import about
from specport.quantize.pipo.about import About
from specport.quantize.pipo.recipe import Recipe
from specport.quantize.text import shards as text
from specport.quantize.text.on_ray import writer_on

from specport.errors import InvalidInput
from specport.jobs import ray_cluster, workdir, worker
from specport.models.source import original
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.text.tokenizer import load_tokenizer

TRAIN = worker.Job("specport.quantize.pipo.training:pipo", grace_s=120.0)
_PACKAGES = ("specport", "transformers", "torch")


def build(
    target: str | None,
    out: Path,
    recipe: Recipe,
    *,
    tokens: int,
    prompts: Sequence[str] = (),
    device: str = "auto",
    precision: str | None = None,
    threads: int | None = None,
    processes: int = 1,
    trust_remote_code: bool = False,
    cluster: str | None = None,
    progress: Progress = silent,
) -> About:
    """Train `target` on text that it writes, and write the pair model to the new folder `out`.

    tokens:  of answers to learn from.
    prompts: the user's own turns, answered beside made-up ones.
    cluster: where the text is written, see `RayWriter`; None = in this process.
    Other arguments as for `specport.load`. Raises SpecportError; finished stages are kept.
    """
    workdir.check_new(out)
    if cluster is not None:
        ray_cluster.check()
    if tokens < 1 or processes < 1:
        raise InvalidInput("tokens and processes must be 1 or more")
    source = original(target)  # an error for lack of trainable weights comes before anything slow
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.05))
    files = loader.files(target, precision or loader.profile.precision)
    tokenizer = load_tokenizer(files.folder)
    work = workdir.path_for(out)
    request = {
        "pipo": asdict(recipe),
        "tokens": tokens,
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
            part(progress, 0.05, 0.3), least=2, elsewhere=elsewhere,
        )  # fmt: skip
        folder = work / "trained"
        shutil.rmtree(folder, ignore_errors=True)
        arguments = {
            "source": str(source),
            "name": files.name,
            "work": str(work),
            "out": str(folder),
            "shards": [str(path) for path in shards],
            "recipe": asdict(recipe),
            "ends": sorted(tokenizer.eos_ids),
            "trust_remote_code": trust_remote_code,
        }
        result = worker.run(
            TRAIN, arguments, "the model cannot be trained",
            processes=processes, progress=part(progress, 0.3, 1.0),
        )  # fmt: skip
        facts = {
            "source": files.name,
            "recipe": asdict(recipe),
            **result,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": installed(_PACKAGES),
        }
        about.write(folder, facts)
        workdir.publish(folder, out)
    progress("done", 1.0)
    return about.read(out)
