"""Measure a draft for speech on windows that it was not trained on: acceptance, word errors, step costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from specport.quantize.evaluate.ranking import speed_up
from specport.quantize.evaluate.step_times import Plan, Timing
from specport.quantize.evaluate.step_times import measure as timed
from specport.quantize.speech import recordings
from specport.quantize.speech.about import Measured
from specport.quantize.speech.material import Material
from specport.quantize.text.dialogues import Dialogue

from specport.bench.speech import word_error_rate
from specport.core.ports import conditioned
from specport.errors import SpecportError
from specport.models.kinds.whisper import find_head_tokens, find_parallel, read_shape
from specport.progress import Progress, part
from specport.runtime.loading import Loader
from specport.speech.ports import Decoded, Window
from specport.speech.whisper.load import load, precision_of_draft
from specport.speech.whisper.model import WhisperModel

DEPTH = 8
_MOST = 48  # windows; more would say little more
_WIDTHS, _CONTEXT = (1, 2, 4, 8, 16), 48


@dataclass(frozen=True)
class Pair:
    """A target and a draft, and where they run: arguments of `specport.speech.whisper.load.load`."""

    target: str
    draft: Path
    device: str = "auto"
    precision: str | None = None
    threads: int | None = None

    def model(self, name: str, draft: str, precision: str | None, progress: Progress) -> WhisperModel:
        """Return one of the two, loaded with a draft of DEPTH tokens a round or "none"."""
        drafts = draft != "none"
        return load(
            name, draft=draft, device=self.device, precision=precision, threads=self.threads,
            exact=drafts, policy="fixed" if drafts else None,
            num_draft_tokens=DEPTH if drafts else None, progress=progress,
        )  # fmt: skip

    def used(self, draft: str, progress: Progress) -> WhisperModel:
        """Return the target as it is used, with planned drafts or "none"."""
        return load(
            self.target, draft=draft, device=self.device, precision=self.precision, threads=self.threads,
            progress=progress,
        )  # fmt: skip


def measure(
    pair: Pair,
    material: Material,
    files: Sequence[Path],
    held_out: Sequence[int],
    context: int,
    progress: Progress,
) -> Measured:
    """Measure a draft on held-out windows, at most _MOST of them, spread evenly.

    files: the recordings. context: most tokens of the target's decoder.
    """
    step = max(1.0, len(held_out) / _MOST)
    numbers = [held_out[int(step * i)] for i in range(min(_MOST, len(held_out)))]
    texts = material.texts()
    chosen = [texts[i] for i in numbers]
    languages = [material.windows[i][2] for i in numbers]
    greedy = [material.greedy[i] for i in numbers]
    with closing(pair.model(pair.target, str(pair.draft), pair.precision, part(progress, 0.0, 0.1))) as model:
        windows = [
            Window(features, tuple(text.tokens[: text.start].tolist()), True)
            for text, features in zip(
                chosen, _features(material, files, numbers, model.mel_bins), strict=True
            )
        ]
        both = _decoded(model, windows, "measuring acceptance", part(progress, 0.1, 0.4))
        states, _ = model.chosen_from(windows[0].features, windows[0].prompt, ())
        truths = [model.tokens.decode(each.ids) for each in both]
        eot = model.tokens.eot
    loader = Loader.on(pair.device, pair.threads, None, False, part(progress, 0.4, 0.45), speech=True)
    asked = precision_of_draft(loader)
    with closing(pair.model(str(pair.draft), "none", asked, part(progress, 0.4, 0.45))) as alone:
        said = _decoded(alone, windows, "measuring word errors", part(progress, 0.45, 0.7))
        pairs = [
            (alone.tokens.decode(each.ids), truth, language)
            for each, truth, language in zip(said, truths, languages, strict=True)
        ]
    plain_s, drafted_s = _decoder_seconds(pair, windows, part(progress, 0.7, 0.85))
    target, draft = _times(pair, loader, asked, chosen[0], states, context, part(progress, 0.85, 1.0))
    rounds, survival = _survival(both)
    shape = read_shape(pair.draft)
    parallel = find_parallel(pair.draft, shape.vocab) is not None
    best = speed_up(survival, draft.medians, target.medians, parallel=parallel)
    tokens = sum(len(each.ids) + 1 for each in both)
    encoder_ms = 1e3 * float(np.mean([each.encoder_seconds for each in both]))
    plain_ms = target.medians[1] * tokens / len(both)
    whole = (encoder_ms + plain_ms) / (encoder_ms + plain_ms / best.factor) if best.factor else 1.0
    return Measured(
        windows=len(both),
        tokens=tokens,
        greedy=sum(greedy),
        same=sum(
            known and _ids(text, eot) == each.ids
            for known, text, each in zip(greedy, chosen, both, strict=True)
        ),
        survival=survival,
        rounds=rounds,
        wer=_wer(pairs),
        draft_ms=draft.medians[1],
        target_ms=target.medians[1],
        encoder_ms=encoder_ms,
        speed_up=best.factor,
        speed_up_whole=whole,
        length=best.length,
        decoder_speed_up=plain_s / drafted_s,
    )


def _features(
    material: Material, files: Sequence[Path], numbers: Sequence[int], bins: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the features of windows by reading their recordings again."""
    places = [material.windows[i][:2] for i in numbers]
    for file, group in groupby(places, key=lambda place: place[0]):
        yield from recordings.windows(files[file], [position for _, position in group], bins)


def _decoded(model: WhisperModel, windows: Sequence[Window], stage: str, progress: Progress) -> list[Decoded]:
    """Decode windows one by one: rounds of several would share their time."""
    found = []
    for i, window in enumerate(windows):
        progress(stage, i / len(windows))
        found += model.decode([window])
    return found


def _decoder_seconds(pair: Pair, windows: Sequence[Window], progress: Progress) -> tuple[float, float]:
    """Return the decoder's seconds without the draft and with it, window by window in turns.

    In a text the models take each other's weights out of the processor's caches, so that both are slower than
    when one is timed alone.
    """
    with (
        closing(pair.used("none", part(progress, 0.0, 0.1))) as plain,
        closing(pair.used(str(pair.draft), part(progress, 0.1, 0.2))) as drafted,
    ):
        seconds = [0.0, 0.0]
        for model in (plain, drafted):
            model.decode(windows[:1])  # warm-up
        for i, window in enumerate(windows):
            progress("measuring the decoder", 0.2 + 0.8 * i / len(windows))
            for which, model in enumerate((plain, drafted)):
                (found,) = model.decode([window])
                seconds[which] += found.decoder_seconds
    return seconds[0], seconds[1]


def _ids(text: Dialogue, eot: int) -> tuple[int, ...]:
    """Return the ids that the target wrote, without the end."""
    return tuple(i for i in text.tokens[text.start :].tolist() if i != eot)


def _survival(found: Sequence[Decoded]) -> tuple[int, tuple[float, ...]]:
    """Return the number of rounds, and the share of them that accepted the tokens of each depth."""
    drafted, accepted = np.zeros(DEPTH), np.zeros(DEPTH)
    for each in found:
        drafted[: len(each.drafted_per_depth)] += each.drafted_per_depth
        accepted[: len(each.accepted_per_depth)] += each.accepted_per_depth
    shares = [float(a / d) for a, d in zip(accepted, drafted, strict=True) if d]
    return sum(each.rounds for each in found), tuple(np.minimum.accumulate(shares).tolist())


def _wer(pairs: Sequence[tuple[str, str, str]]) -> float | None:
    try:
        return word_error_rate(pairs)
    except SpecportError:  # the package jiwer is missing
        return None


def _times(
    pair: Pair,
    loader: Loader,
    precision: str,
    text: Dialogue,
    states: NDArray[np.float32],
    context: int,
    progress: Progress,
) -> tuple[Timing, Timing]:
    """Time steps of target and draft in turns, on one window's states."""
    _, target = loader.target(pair.target, pair.precision, True)
    files = loader.files(str(pair.draft), precision)
    head = find_head_tokens(files.folder, read_shape(files.folder).vocab)
    draft = loader.draft_with(files, head)
    loads = [lambda loaded=loaded: conditioned(loaded.model, lambda _: states) for loaded in (target, draft)]
    length = min(_CONTEXT, context // 2)
    plan = Plan(text.tokens[:length].tolist(), length, _WIDTHS)
    own, its = timed(loads, plan, True, progress)
    return own, its
