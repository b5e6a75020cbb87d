"""`specport quantize layerskip`: from a target to the same model, trained to exit early.

What takes long is kept while it is done: training in `OUT.partial`, the text that the target writes in the
cache, where drafts for it find it as well. The folder appears at once, when all of it is there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from specport.quantize.text import teacher
from specport.quantize.train.layerskip.recipe import Recipe, Sweep

from specport.errors import InvalidInput, ModelError
from specport.jobs import worker
from specport.jobs.workdir import workplace
from specport.models.atomic import write_json
from specport.models.source import original
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.text.tokenizer import load_tokenizer, read_json

ABOUT = "layerskip.json"
FORMAT = 1
_PACKAGES = ("specport", "transformers", "torch")


@dataclass(frozen=True)
class About:
    """What was trained, how, and what came of it; kept beside the weights, for people.

    source: the model's name; before, after: on text that it was not trained on.
    """

    source: str
    recipe: Mapping[str, Any]
    before: Sweep
    after: Sweep
    tokens_read: int
    seconds: float
    date: str
    versions: Mapping[str, str]


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
    progress: Progress = silent,
) -> About:
    """Train `target` on what it writes and write it to the new Hugging Face folder `out`.

    tokens: of answers that it writes to learn from. prompts: the user's own turns, beside its own.
    Other arguments as for `specport.load`. Raises SpecportError; what was done until then is kept.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} is there already", "choose another --out, or remove it first")
    if tokens < 1 or processes < 1:
        raise InvalidInput("tokens and processes must be 1 or more")
    source = original(target)  # weights that can be trained: known now, before anything takes long
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.05))
    files = loader.files(target, precision or loader.profile.precision)
    work = out.with_name(out.name + ".partial")
    asked = {
        "layerskip": asdict(recipe),
        "tokens": tokens,
        "prompts": [*prompts],
        "target": files.fingerprint,
    }
    with workplace(work, asked):
        shards = teacher.write_shards(
            lambda: loader.target_with(files, exact=False).model, load_tokenizer(files.folder),
            teacher.folder_for(files.fingerprint, tuple(prompts), recipe.seed), tokens, recipe.seed, prompts,
            part(progress, 0.05, 0.4), least=2,
        )  # fmt: skip
        folder = work / "trained"
        shutil.rmtree(folder, ignore_errors=True)
        arguments = {
            "source": str(source),
            "work": str(work),
            "out": str(folder),
            "shards": [str(path) for path in shards],
            "recipe": asdict(recipe),
            "trust_remote_code": trust_remote_code,
        }
        found = worker.run(
            "layerskip", arguments, "the model cannot be trained",
            processes=processes, progress=part(progress, 0.4, 1.0),
        )  # fmt: skip
        about = {
            "format": FORMAT,
            "source": files.name,
            "recipe": asdict(recipe),
            **found,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": installed(_PACKAGES),
        }
        write_json(folder / ABOUT, about)
        if out.exists():
            out.rmdir()  # empty, as was checked
        os.replace(folder, out)
    progress("done", 1.0)
    return read(out)


def read(folder: Path) -> About:
    """What is kept beside a trained model's weights. Raises ModelError where it cannot be read."""
    path = folder / ABOUT
    try:
        stored = read_json(path)
        if stored["format"] != FORMAT:
            raise ModelError(f"{path} has format {stored['format']}, this version reads {FORMAT}")
        before, after = (
            Sweep(tuple(map(float, stored[name]["agreement"])), float(stored[name]["perplexity"]))
            for name in ("before", "after")
        )
        if len(before.agreement) != len(after.agreement):
            raise ValueError("exits before and after")
        return About(
            str(stored["source"]), dict(stored["recipe"]), before, after, int(stored["tokens_read"]),
            float(stored["seconds"]), str(stored["date"]), dict(stored["versions"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} is damaged: {error}", "run specport quantize layerskip anew") from error
