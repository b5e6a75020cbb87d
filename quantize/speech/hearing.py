"""Let a target transcribe the user's recordings, and keep what a draft can learn from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from specport.quantize.speech.material import Material, Part
from specport.quantize.text.dialogues import Dialogue, likeliest

from specport.errors import InvalidInput
from specport.progress import Progress
from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.features import WINDOW, log_mel
from specport.speech.audio.read import RATE
from specport.speech.audio.source import Source
from specport.speech.decoding.options import TranscribeOptions
from specport.speech.decoding.recognizer import Outcome, Recognizer, choose_language
from specport.speech.decoding.sequential import State, sequential
from specport.speech.whisper.model import WhisperModel

PART = 16  # windows that are written at once: at most these are heard again after a kill

_Heard = tuple[NDArray[np.float32], tuple[int, ...], Outcome]


class _Learnt(NamedTuple):
    """Hold a window that is not written yet. after: where the recording goes on."""

    place: int
    greedy: bool
    text: Dialogue
    states: NDArray[np.float32]
    after: State


class _Recorder(Recognizer):
    """Keep what was decoded last: features, prompt, and the outcome that was used."""

    last: _Heard | None = None

    def decode(
        self, features: Sequence[NDArray[np.float32]], previous: Sequence[int] = (), *, first: int = 0
    ) -> list[Outcome]:
        outcomes = super().decode(features, previous, first=first)
        self.last = features[0], self.prompt(previous), outcomes[0]
        return outcomes


def hear(
    model: WhisperModel,
    recordings: Sequence[tuple[Path, bool]],
    options: TranscribeOptions,
    material: Material,
    context: int,
    progress: Progress,
) -> None:
    """Transcribe recordings in order, from where an earlier run stopped.

    context: most tokens of the model's decoder.
    recordings: files, and whether the user named each; one from a folder that cannot be read is left out.
    Raises InvalidInput for a named file that cannot be read.
    """
    last = material.parts[-1] if material.parts else Part(0)
    for number in range(last.file + last.ended, len(recordings)):
        path, named = recordings[number]
        start = last if last.file == number else Part(number)

        def show(share: float, number: int = number, path: Path = path) -> None:
            progress(f"listening to {path.name}", (number + share) / len(recordings))

        show(0.0)
        try:
            _hear(model, path, options, material, context, start, show)
        except InvalidInput as error:
            if named:
                raise
            material.add(Part(number, ended=True, problem=error.message), (), ())


def _hear(
    model: WhisperModel,
    path: Path,
    options: TranscribeOptions,
    material: Material,
    context: int,
    start: Part,
    show: Callable[[float], None],
) -> None:
    """Add the parts of one recording."""
    source = Source(path)
    buffer = AudioBuffer(source.blocks())
    state = start.state
    buffer.skip(state.position)
    buffer.fill(state.position + WINDOW)
    language, chosen = choose_language(
        model,
        replace(options, language=start.language or options.language),
        lambda: log_mel(buffer.window(state.position, WINDOW), model.mel_bins),
    )
    recorder = _Recorder(model, chosen, language)
    pending: list[_Learnt] = []

    def add(*, ended: bool) -> None:
        after = pending[-1].after if pending else state
        part = Part(
            start.file, language,
            tuple(each.place for each in pending), tuple(each.greedy for each in pending),
            after.position, after.window, after.context, ended,
        )  # fmt: skip
        material.add(part, [each.text for each in pending], [each.states for each in pending])
        pending.clear()

    try:
        for step in sequential(recorder, buffer, state):
            if recorder.last is not None:
                most = min(options.max_new_tokens, context - len(recorder.last[1]))
                text, states = _learnt(model, recorder.last, most)
                greedy = recorder.last[2].temperature == 0
                recorder.last = None
                pending.append(_Learnt(state.position, greedy, text, states, step.state))
            state = step.state
            if source.duration:
                show(min(1.0, state.position / RATE / source.duration))
            if len(pending) >= PART:
                add(ended=False)
    except KeyboardInterrupt:
        add(ended=False)
        raise
    add(ended=True)


def _learnt(model: WhisperModel, heard: _Heard, most: int) -> tuple[Dialogue, NDArray[np.float32]]:
    """Return a window's text with its likeliest tokens, and the encoder's states. most: ids it can have."""
    features, prompt, outcome = heard
    # A text that was cut off has no end to learn.
    end = (model.tokens.eot,) if len(outcome.ids) < most else ()
    ids = (*outcome.ids, *end)
    states, logits = model.chosen_from(features, prompt, ids)
    top = [likeliest(row) for row in logits]
    text = Dialogue(
        np.array([*prompt, *ids], np.int32),
        len(prompt),
        np.stack([each[0] for each in top]),
        np.stack([each[1] for each in top]),
    )
    return text, states
