"""`specport quantize`: from a target, and a smaller sibling of it, to a draft that is worth its cost.

What takes long is kept in `OUT.partial` while it is done: text, search, training. The same command goes on
there; the bundle appears at once, when all of it is there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from specport.quantize import choose, proof, teacher, worker
from specport.quantize.prompts import CHOOSING, HELD_OUT

from specport.calibration import heads, store, texts
from specport.calibration.measure import measure
from specport.core.costs import StepCosts
from specport.errors import InvalidInput, ModelError
from specport.loading import Loader
from specport.models import bundle
from specport.models.bundle import Bundle
from specport.models.progress import Progress, part, silent
from specport.models.source import ModelFiles, ir_fingerprint, original
from specport.models.tokenizer import Tokenizer, load_tokenizer
from specport.registry import Loaded
from specport.versions import installed

PACKAGES = ("specport", "openvino", "nncf", "optimum-intel", "transformers", "torch")
_CHOOSING_TOKENS = 64
_HELD_OUT_SHARE = 0.05  # of the shards; one at least


@dataclass(frozen=True)
class Request:
    """What to build. Raises InvalidInput for wishes that contradict each other.

    layers, speed_up: how many layers to keep, or how much faster a draft step is to be; neither: as many as
                   make the most tokens a second.
    head_tokens:   size of the head; 0 keeps it whole, None takes the best size.
    distil_tokens: tokens that the target writes for the draft to learn from; 0 = no healing.
    prompts:       the user's own turns, to write answers to, choose and measure by.
    """

    layers: int | None = None
    speed_up: float | None = None
    head_tokens: int | None = None
    distil_tokens: int = 0
    prompts: tuple[str, ...] = ()
    loss: str = "kl"
    epochs: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layers is not None and self.speed_up is not None:
            raise InvalidInput("layers and speed_up are two ways to say one thing", "give one of them")
        if self.layers is not None and self.layers < 1:
            raise InvalidInput(f"layers is {self.layers}; it must be 1 or more")
        if self.speed_up is not None and not 1.0 <= self.speed_up <= 20.0:
            raise InvalidInput(f"speed_up is {self.speed_up}; it must be from 1 to 20")
        if self.head_tokens is not None and self.head_tokens < 0:
            raise InvalidInput(f"head_tokens is {self.head_tokens}; it must be 0 or more")
        if self.distil_tokens < 0:
            raise InvalidInput(f"distil_tokens is {self.distil_tokens}; it must be 0 or more")
        if self.prompts and len(self.prompts) < 4:
            raise InvalidInput("fewer than four prompts cannot be chosen and measured by", "give more")


@dataclass(frozen=True)
class Built:
    """heads: sizes tried. choice: the layers, and what was expected. folder: of the bundle."""

    bundle: Bundle
    folder: Path
    heads: tuple[heads.Head, ...] = ()
    choice: choose.Choice | None = None


def build(
    target: str | None,
    out: Path,
    request: Request,
    *,
    source: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    draft_precision: str | None = None,
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Built:
    """Build a draft for `target` from `source` (None = the target itself) and write it to the folder `out`.

    Other arguments as for `specport.load`. Raises SpecportError; what was done until then is kept.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInput(f"{out} is there already", "choose another --out, or remove it first")
    loader = Loader.on(device, threads, None, trust_remote_code, part(progress, 0.0, 0.05))
    spec = source if source is not None else (target or "default")
    beside, loaded = loader.target(target, precision, exact=True)
    files = loader.draft_files(spec, draft_precision, beside)
    if files.bundle:
        raise InvalidInput(f"{spec} is a draft bundle already", "give the model that it was made from")
    tokenizer = load_tokenizer(beside.folder)
    if wrong := load_tokenizer(files.folder).mismatch(tokenizer):
        raise ModelError(f"{files.name} has another tokenizer than the target: {wrong}")
    # Known now, before anything takes long: healing needs weights that can be trained.
    trainable = original(spec) if request.distil_tokens else None
    work = out.with_name(out.name + ".partial")
    with _workplace(work, {**asdict(request), "target": beside.fingerprint, "source": files.fingerprint}):
        job = _Job(loader, request, beside, loaded, files, tokenizer, work, trainable, progress)
        return job.run(out)


@dataclass
class _Job:
    """One build: the stages in their order."""

    loader: Loader
    request: Request
    beside: ModelFiles
    target: Loaded
    files: ModelFiles
    tokenizer: Tokenizer
    work: Path
    trainable: Path | None
    progress: Progress
    shards: list[Path] = field(default_factory=list)

    def run(self, out: Path) -> Built:
        own = self.request.prompts
        choosing, held_out = (own[::2], own[1::2]) if own else (CHOOSING, HELD_OUT)
        costs = self._costs(self.target, part(self.progress, 0.05, 0.1))
        bar = part(self.progress, 0.1, 0.15)
        written = texts.write(self.target.model, self.tokenizer, choosing, _CHOOSING_TOKENS, bar)
        if self.trainable:
            bar = part(self.progress, 0.15, 0.4)
            count, seed = self.request.distil_tokens, self.request.seed
            folder = self.work / "text"
            self.shards = teacher.write_shards(
                self.target.model, self.tokenizer, folder, count, seed, own, bar
            )
        tried, head = self._head(written, costs, part(self.progress, 0.4, 0.45))
        choice = self._choose(written, head, costs, part(self.progress, 0.45, 0.55))
        folder = self.work / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        distilled = self._weights(choice, head, folder, part(self.progress, 0.55, 0.9))
        files = ModelFiles(folder, self.files.name, self.files.precision, str(out), ir_fingerprint(folder))
        draft = self.loader.draft_with(files, head)
        draft_costs = self._costs(draft, part(self.progress, 0.9, 0.92))
        pair = proof.Pair(self.target, draft, self.tokenizer, files.name, costs, draft_costs)
        measured = proof.measure(pair, held_out, part(self.progress, 0.92, 1.0))
        made = Bundle(
            target=self.beside.name,
            target_shape=bundle.shape(self.beside.folder),
            target_fingerprint=self.beside.fingerprint,
            tokenizer=self.tokenizer.fingerprint,
            source=self.files.name,
            precision=self.files.precision,
            layers=choice.kept,
            num_layers=choice.num_layers,
            head=None if head is None else bundle.ranges(head),
            distilled=distilled,
            measured={"device": self.loader.profile.name, **measured},
            provenance={
                "command": " ".join(["specport", *sys.argv[1:]]) if sys.argv[0].endswith("specport") else "",
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": installed(PACKAGES),
                "layer_order": list(choice.order),
                "agreements": [round(a, 4) for a in choice.agreements],
            },
        )
        bundle.write(folder, made)
        if out.exists():
            out.rmdir()  # empty, as was checked
        os.replace(folder, out)
        bundle.register(out, self.beside.fingerprint)
        self.progress("done", 1.0)
        return Built(made, out, tried, choice)

    def _costs(self, loaded: Loaded, progress: Progress) -> StepCosts:
        """What calibration found, else a quick look."""
        found = store.find(loaded.key)
        if found:
            return found.costs
        return measure(loaded.model, contexts=(64,), budget_s=8.0, progress=progress).costs

    def _head(
        self, written: Sequence[texts.Text], costs: StepCosts, progress: Progress
    ) -> tuple[tuple[heads.Head, ...], tuple[int, ...] | None]:
        """The ids that the head keeps: the first ones, special ones, and those that the target writes."""
        size = self.request.head_tokens
        if size == 0:
            return (), None
        seen = Counter(t for path in self.shards for d in teacher.read_shard(path) for t in d.tokens.tolist())
        always = {*self.tokenizer.special_ids, *self.tokenizer.eos_ids, *seen}
        whole = self.loader.draft_with(self.files, None)
        if size is not None:
            tokens = heads.kept_ids(size, whole.model.vocab_size, always)
            return (), None if len(tokens) == whole.model.vocab_size else tokens
        cut = partial(self.loader.draft_with, self.files)
        tried = heads.compare(cut, whole.model, written, costs, always, progress)
        return tried, heads.best(tried).tokens

    def _choose(
        self,
        written: Sequence[texts.Text],
        head: tuple[int, ...] | None,
        costs: StepCosts,
        progress: Progress,
    ) -> choose.Choice:
        known = self.work / "layers.json"
        search = choose.Search(self.files.folder, self.loader, self.files, head, self.work / "half")
        return search.run(written, costs, self.request, known, progress)

    def _weights(
        self, choice: choose.Choice, head: tuple[int, ...] | None, folder: Path, progress: Progress
    ) -> dict[str, Any]:
        """Write the draft's IR to `folder`; returns how it was healed."""
        from specport.quantize import ir

        if self.trainable is None:
            ir.drop_layers(self.files.folder, folder, choice.dropped)
            return {}
        from specport.quantize import heal

        healed = heal.heal(
            self.trainable, choice, head, self.shards, self.request, self.work, _HELD_OUT_SHARE,
            self.loader.trust_remote_code, part(progress, 0.0, 0.85),
        )  # fmt: skip
        folder.mkdir()
        worker.convert(
            self.work / heal.FOLDER, folder, self.files.precision,
            progress=part(progress, 0.85, 1.0), trust_remote_code=self.loader.trust_remote_code,
        )  # fmt: skip
        return {**healed, "tokens_written": self.request.distil_tokens, "loss": self.request.loss}


@contextmanager
def _workplace(work: Path, identity: dict[str, Any]) -> Iterator[None]:
    """The folder of what is half done; another request's is thrown away, a finished one's removed."""
    text = json.dumps(identity, sort_keys=True)
    path = work / "request.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _held(work):
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                for old in work.iterdir():
                    if old.name != "lock":
                        shutil.rmtree(old) if old.is_dir() else old.unlink()
                path.write_text(text, encoding="utf-8")
            yield
        shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ModelError(
            f"cannot write to {work}: {error.strerror or error}",
            "free some space and run the same command: it goes on where it was",
        ) from error
    except MemoryError as error:
        raise ModelError(
            "there is not enough memory to build this draft", "close other programs, or take a smaller --from"
        ) from error


@contextmanager
def _held(work: Path) -> Iterator[None]:
    lock = FileLock(str(work / "lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InvalidInput(
            f"another process is building in {work}", "wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
