"""`specport quantize compare`: what each way to store a model's weights costs and is worth on a device.

The source is the model in fp16, computed in f32. It writes the answers; every precision then reads the same
tokens, as the device runs it in exact mode. The best precision depends on the phase: a prompt is bound by
computation, a token by memory, so both are timed.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from specport.quantize.evaluate.fidelity import Closeness, closeness, perplexity
from specport.quantize.text.prompts import HELD_OUT

from specport.core.engine import Engine, Generation
from specport.core.planning.policies import Fixed
from specport.core.ports import Model
from specport.core.sampling.sampler import SamplingParams
from specport.errors import InvalidInput, ModelError
from specport.models.precision import parse
from specport.models.source import IR_BIN, IR_XML, ModelFiles
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.runtime.profiles import Profile, cpu_name
from specport.runtime.versions import installed
from specport.text.builtin_prompts import encode, write
from specport.text.tokenizer import load_tokenizer

SOURCE = "fp16"
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
PACKAGES = ("openvino", "nncf", "optimum-intel", "transformers", "torch")
ANSWER_TOKENS = 96
PROMPT_TOKENS = 140  # HumanEval's mean
DECODE_TOKENS = 24
ROUNDS, WARM = 7, 1
_MEMORY_OVER_FILE = 3.0  # of a loaded model, with weights repacked for the kernels


@dataclass(frozen=True)
class Times:
    """Milliseconds: median and quartiles."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Interquartile range over median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Row:
    """size_mb: of the weights' files, 10^6 bytes. tpot: of plain decoding."""

    precision: str
    size_mb: float
    closeness: Closeness
    tpot: Times
    ttft: Times
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """answers, tokens: how many were read. source_perplexity: of what the source itself wrote.

    interleaved: whether the precisions were timed in turns in each of the rounds; else one after another.
    """

    model: str
    device: str
    processor: str
    answers: int
    tokens: int
    source_perplexity: float
    prompt_tokens: int
    rounds: int
    interleaved: bool
    rows: tuple[Row, ...]
    versions: dict[str, str]


def compare(
    model: str | None = None,
    *,
    precisions: Sequence[str] = (),
    prompts: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Comparison:
    """Convert, read and time a model at each of `precisions` (none: fp16, int8, int4 and the device's own).

    prompts: what the source answers; none: `prompts.HELD_OUT`. Other arguments as for `specport.load`.
    At most two models are held at once, until times are measured. Raises SpecportError.
    """
    loader = Loader.on(device, threads, None, trust_remote_code)
    names = [*dict.fromkeys(str(parse(name)) for name in precisions or defaults(loader.profile))]
    for name in names:
        loader.check_precision(name)
    source, *files = _converted(loader, model, [SOURCE, *names], part(progress, 0.0, 0.4))
    tokenizer = load_tokenizer(source.folder)
    reader = replace(loader, profile=replace(loader.profile, device="CPU", fast=F32))
    reference = reader.target_with(source, exact=False).model
    written = write(reference, tokenizer, prompts or HELD_OUT, ANSWER_TOKENS, part(progress, 0.4, 0.5))
    texts = [text for text in written if text.answer]
    if not texts:
        raise InvalidInput("no prompt fits the model's context", "give shorter ones with --prompts")
    source_perplexity = perplexity(reference, texts)
    found: list[tuple[Closeness, tuple[str, ...]]] = []
    for number, each in enumerate(files):
        bar = _share(part(progress, 0.5, 0.75), each.precision, number, len(files))
        loaded = loader.target_with(each, exact=True)
        found.append((closeness(reference, loaded.model, texts, bar), loaded.notes))
        del loaded  # before the next one comes
    room = min(PROMPT_TOKENS, reference.max_context - DECODE_TOKENS - 1)
    prompt = encode(tokenizer, " ".join(HELD_OUT))[:room]
    del reference
    interleaved = fit_together(files)
    loads = [partial(_load, loader, each) for each in files]
    timed = times(loads, prompt, interleaved, part(progress, 0.75, 1.0))
    rows = zip(files, found, timed, strict=True)
    return Comparison(
        model=source.name,
        device=loader.profile.name,
        processor=cpu_name(),
        answers=len(texts),
        tokens=sum(len(text.answer) for text in texts),
        source_perplexity=source_perplexity,
        prompt_tokens=len(prompt),
        rounds=ROUNDS,
        interleaved=interleaved,
        rows=tuple(Row(f.precision, size(f) / 1e6, near, *both, notes) for f, (near, notes), both in rows),
        versions=installed(PACKAGES),
    )


def defaults(profile: Profile) -> list[str]:
    """What is compared where the user names nothing: the three kinds, and what the device would take."""
    kinds = ("fp16", "int8:sym", "int4:sym") if profile.symmetric else ("fp16", "int8", "int4")
    return [*kinds, profile.precision, profile.draft_precision]


def _converted(
    loader: Loader, spec: str | None, names: Sequence[str], progress: Progress
) -> list[ModelFiles]:
    found = []
    for number, name in enumerate(names):
        files = replace(loader, progress=_share(progress, name, number, len(names))).files(spec, name)
        if files.bundle or files.precision != name:
            raise ModelError(
                f"{spec} holds converted weights only",
                "name the GGUF file or Hugging Face folder that it came from",
            )
        found.append(files)
    return found


def _share(progress: Progress, name: str, number: int, count: int) -> Progress:
    bar = part(progress, number / count, (number + 1) / count)
    return lambda what, share: bar(f"{name}: {what}", share)


def _load(loader: Loader, files: ModelFiles) -> Model:
    return loader.target_with(files, exact=True).model


def size(files: ModelFiles) -> int:
    """Bytes of the weights and their graph."""
    return sum((files.folder / name).stat().st_size for name in (IR_XML, IR_BIN))


def times(
    loads: Sequence[Callable[[], Model]],
    prompt: Sequence[int],
    together: bool,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[Times, Times]]:
    """(TPOT, TTFT) of each model in plain decoding.

    together: all are held at once and timed in turns, forwards and backwards, so that the machine's drift
    meets all of them alike.
    """
    found: list[tuple[Times, Times]] = []
    for group in [loads] if together else [[load] for load in loads]:
        progress("timing", len(found) / len(loads))
        models = [load() for load in group]
        first: list[list[float]] = [[] for _ in models]
        later: list[list[float]] = [[] for _ in models]
        for number in range(WARM + ROUNDS):
            for i in sorted(range(len(models)), reverse=bool(number % 2)):
                seconds, others = _decode(models[i], prompt, clock)
                if number >= WARM:
                    first[i].append(seconds)
                    later[i] += others
            done = (number + 1) / (WARM + ROUNDS) * len(models)
            progress("timing", (len(found) + done) / len(loads))
        found += [(_times(b), _times(a)) for a, b in zip(first, later, strict=True)]
        del models
    return found


def _decode(model: Model, prompt: Sequence[int], clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Seconds until the first token of a plain answer, and of each token behind it; no token ends it."""
    engine = Engine(model)
    stamps = [clock()]
    generation = Generation([*prompt], engine.open(), SamplingParams(), Fixed(0), 1 + DECODE_TOKENS)
    try:
        stamps += [clock() for _ in engine.run([generation])]
    finally:
        engine.close(generation.handle)
    first, *others = (b - a for a, b in pairwise(stamps))
    return first, others


def _times(seconds: Sequence[float]) -> Times:
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
    return Times(median, low, high)


def fit_together(files: Sequence[ModelFiles]) -> bool:
    """Whether all these models may be held at once: half of the free memory is to stay free."""
    return _MEMORY_OVER_FILE * sum(map(size, files)) < free_memory() / 2


def free_memory() -> int:
    """Bytes; 0 where the system does not say: only Linux does without psutil (extra `bench`)."""
    try:
        import psutil
    except ImportError:
        try:
            text = Path("/proc/meminfo").read_text(encoding="ascii")
        except OSError:
            return 0
        found = re.search(r"MemAvailable:\s*(\d+) kB", text)
        return int(found[1]) << 10 if found else 0
    return int(psutil.virtual_memory().available)
