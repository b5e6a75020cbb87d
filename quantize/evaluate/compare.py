"""`specport quantize compare`: size, fidelity and speed of a model at several precisions on a device.

The source is the model in fp16, computed in f32. It writes answers; the model at each precision then reads
the same tokens, in exact mode on the device. The best precision depends on the phase, so both are timed:
prompts are bound by computation, single tokens by memory.
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

from specport.quantize.evaluate.fidelity import Fidelity, measure_fidelity, perplexity
from specport.quantize.text.prompts import HELD_OUT

from specport.calibration.target_text import write
from specport.core.engine import Engine
from specport.core.ports import Model
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.errors import InvalidInput, ModelError
from specport.models.precision import parse
from specport.models.source import IR_BIN, IR_XML, ModelFiles
from specport.progress import Progress, part, silent
from specport.runtime.loading import Loader
from specport.runtime.profiles import Profile, cpu_name
from specport.runtime.versions import installed
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer

SOURCE = "fp16"
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
PACKAGES = ("openvino", "nncf", "optimum-intel", "transformers", "torch")
ANSWER_TOKENS = 96
PROMPT_TOKENS = 140  # HumanEval's mean
DECODE_TOKENS = 24
ROUNDS, WARM = 7, 1
_MEMORY_OVER_FILE = 3.0  # memory of a loaded model, with weights repacked for the kernels, over its file size


@dataclass(frozen=True)
class Times:
    """Median and quartiles of a time, in milliseconds."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Return the interquartile range over the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Row:
    """One precision.

    size_mb: of the weights' files, in 10^6 bytes. tpot, ttft: of plain decoding. notes: of the backend.
    """

    precision: str
    size_mb: float
    fidelity: Fidelity
    tpot: Times
    ttft: Times
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """All precisions of one model on one device.

    answers, tokens: number of answers that were compared, and of their tokens.
    source_perplexity: of the source on its own answers.
    interleaved: whether all precisions were timed in turns in each round; else one after another.
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
    """Convert a model to each of `precisions`, measure its fidelity, and time it.

    precisions: none = fp16, int8, int4 and the device's defaults.
    prompts:    for the source to answer; none = `prompts.HELD_OUT`.
    Other arguments as for `specport.load`. At most two models are loaded at a time until the timing. Raises
    SpecportError.
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
    measured: list[tuple[Fidelity, tuple[str, ...]]] = []
    for number, each in enumerate(files):
        bar = _share(part(progress, 0.5, 0.75), each.precision, number, len(files))
        loaded = loader.target_with(each, exact=True)
        measured.append((measure_fidelity(reference, loaded.model, texts, bar), loaded.notes))
        del loaded  # before the next one is loaded
    room = min(PROMPT_TOKENS, reference.max_context - DECODE_TOKENS - 1)
    prompt = encode(tokenizer, " ".join(HELD_OUT))[:room]
    del reference
    interleaved = fit_together(files)
    loads = [partial(_load, loader, each) for each in files]
    timed = times(loads, prompt, interleaved, part(progress, 0.75, 1.0))
    rows = zip(files, measured, timed, strict=True)
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
        rows=tuple(Row(f.precision, size(f) / 1e6, fid, *both, notes) for f, (fid, notes), both in rows),
        versions=installed(PACKAGES),
    )


def defaults(profile: Profile) -> list[str]:
    """Return the precisions to compare by default: the three kinds, and the device's own defaults."""
    kinds = ("fp16", "int8:sym", "int4:sym") if profile.symmetric else ("fp16", "int8", "int4")
    return [*kinds, profile.precision, profile.draft_precision]


def _converted(
    loader: Loader, spec: str | None, names: Sequence[str], progress: Progress
) -> list[ModelFiles]:
    """Return the model's files at each precision. Raises ModelError where it comes in one precision only."""
    converted = []
    for number, name in enumerate(names):
        files = replace(loader, progress=_share(progress, name, number, len(names))).files(spec, name)
        if files.bundle or files.precision != name:
            raise ModelError(
                f"{spec} holds converted weights only",
                "name the GGUF file or Hugging Face folder that it was converted from",
            )
        converted.append(files)
    return converted


def _share(progress: Progress, name: str, number: int, count: int) -> Progress:
    """Return the progress of item `number` of `count`, with its name before each message."""
    bar = part(progress, number / count, (number + 1) / count)
    return lambda what, share: bar(f"{name}: {what}", share)


def _load(loader: Loader, files: ModelFiles) -> Model:
    return loader.target_with(files, exact=True).model


def size(files: ModelFiles) -> int:
    """Return the bytes of the weights and their graph."""
    return sum((files.folder / name).stat().st_size for name in (IR_XML, IR_BIN))


def times(
    loads: Sequence[Callable[[], Model]],
    prompt: Sequence[int],
    together: bool,
    progress: Progress,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[Times, Times]]:
    """Return (TPOT, TTFT) of each model in plain decoding.

    together: all models are loaded at once and timed in turns, forwards and backwards, so that drift of the
              machine affects all of them alike.
    """
    timed: list[tuple[Times, Times]] = []
    for group in [loads] if together else [[load] for load in loads]:
        progress("timing", len(timed) / len(loads))
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
            progress("timing", (len(timed) + done) / len(loads))
        timed += [(quartiles(b), quartiles(a)) for a, b in zip(first, later, strict=True)]
        del models
    return timed


def _decode(model: Model, prompt: Sequence[int], clock: Callable[[], float]) -> tuple[float, list[float]]:
    """Return the seconds to the first token of a plain answer, and those of each later token.

    No token ends the answer.
    """
    engine = Engine(model)
    stamps = [clock()]
    generation = Generation([*prompt], SamplingParams(), 1 + DECODE_TOKENS)
    stamps += [clock() for _ in engine.run([generation])]
    first, *others = (b - a for a, b in pairwise(stamps))
    return first, others


def quartiles(seconds: Sequence[float]) -> Times:
    """Return median and quartiles in milliseconds."""
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4))
    return Times(median, low, high)


def fit_together(files: Sequence[ModelFiles]) -> bool:
    """Return whether all these models may be loaded at once, with half of the free memory left."""
    return _MEMORY_OVER_FILE * sum(map(size, files)) < free_memory() / 2


def free_memory() -> int:
    """Return free memory in bytes.

    0 = unknown, as without psutil (extra `bench`) on systems other than Linux.
    """
    try:
        import psutil
    except ImportError:
        try:
            text = Path("/proc/meminfo").read_text(encoding="ascii")
        except OSError:
            return 0
        match = re.search(r"MemAvailable:\s*(\d+) kB", text)
        return int(match[1]) << 10 if match else 0
    return int(psutil.virtual_memory().available)
