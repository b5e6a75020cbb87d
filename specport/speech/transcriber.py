"""Transcribe audio of any length with a speech model: the Python API of speech."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from specport.errors import InvalidInput
from specport.progress import Progress, silent
from specport.speech.audio.buffer import AudioBuffer
from specport.speech.audio.features import WINDOW, log_mel
from specport.speech.audio.read import RATE
from specport.speech.audio.source import AudioLike, Interrupted, Source
from specport.speech.audio.vad import SileroVad, Span, speech_spans
from specport.speech.checkpoint import Checkpoint
from specport.speech.decoding.batched import batched, windows
from specport.speech.decoding.options import TranscribeOptions
from specport.speech.decoding.recognizer import Recognizer, choose_language
from specport.speech.decoding.sequential import State, Step, past_silence, sequential
from specport.speech.ports import SpeechModel
from specport.speech.shared_model import SharedModel
from specport.speech.speakers.diarize import Diarizer, GivenTurns
from specport.speech.speakers.merge import MERGES
from specport.speech.transcript import Counts, Segment, Transcript, Turn

OPTIONS = tuple(f.name for f in fields(TranscribeOptions))


class Transcriber:
    """Transcribe with one model. Thread-safe: the windows of several transcriptions take turns.

    model_name, device_name, draft_name, notes: of what was loaded, for messages.
    identity: what must be the same for the same words: plain values by name.
    """

    def __init__(
        self,
        model: SpeechModel,
        *,
        model_name: str = "",
        device_name: str = "",
        draft_name: str = "none",
        notes: Sequence[str] = (),
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.model: SpeechModel = SharedModel(model)
        self.model_name, self.device_name, self.draft_name = model_name, device_name, draft_name
        self.notes = tuple(notes)
        self.identity = dict(identity or {})

    def transcribe(self, audio: AudioLike, **options: Any) -> Transcript:
        """Return what was said in an audio. audio, options: as for `stream`. Raises SpecportError."""
        talk = self.stream(audio, **options)
        for _ in talk:
            pass
        return talk.transcript

    def stream(
        self,
        audio: AudioLike,
        *,
        raw: str | None = None,
        diarize: bool = False,
        speakers: int | None = None,
        max_speakers: int = 8,
        merge: str = "words",
        rttm: str | Path | None = None,
        progress: Progress = silent,
        checkpoint: Checkpoint | None = None,
        resume: bool = False,
        **options: Any,
    ) -> Talk:
        """Return a transcription that runs while its segments are read. Raises SpecportError.

        audio:   path of a file of any format, its bytes, a binary stream, samples at 16 kHz, "-" for standard
                 input, or "microphone".
        raw:     format of samples without a header, as in "s16le:16000:1".
        diarize: whether to say who speaks. speakers: how many there are; None = estimated, at most
                 `max_speakers`. merge: how speakers and text are brought together, see
                 `specport.speech.speakers.merge`. rttm: file that says who speaks when, as from pyannote.
        checkpoint, resume: where the state is kept, and whether to go on from what is there. It is kept
                 at the end, too: its owner removes it when what was said is safe.
        options: the fields of `TranscribeOptions`.
        """
        unknown = sorted({*options} - {*OPTIONS})
        if unknown:
            raise InvalidInput(f"unknown option: {unknown[0]}", f"options: {', '.join(OPTIONS)}")
        chosen = TranscribeOptions(**options)
        source = Source(audio, raw)
        if merge not in MERGES:
            raise InvalidInput(f"merge is {merge!r}; it must be one of {', '.join(MERGES)}")
        if ((diarize and rttm is None) or chosen.batch > 1) and not source.again:
            what = "diarizing" if diarize else "batches of windows"
            raise InvalidInput(f"{what} needs a file: {source.name} can be read only once")
        diarizer: Diarizer | GivenTurns | None = Diarizer(speakers, max_speakers) if diarize else None
        if rttm is not None:
            diarizer = GivenTurns(Path(rttm))
        return Talk(self, source, chosen, diarizer, merge, progress, checkpoint, resume)

    def close(self) -> None:
        """Free the model. Closing twice is harmless."""
        self.model.close()

    def __enter__(self) -> Transcriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Talk:
    """A running transcription. Iterate over its segments, or over its `steps` for partial texts, too.

    transcript: what was said; complete after the last segment, what is known until then.
    """

    def __init__(
        self,
        transcriber: Transcriber,
        source: Source,
        options: TranscribeOptions,
        diarizer: Diarizer | GivenTurns | None,
        merge: str,
        progress: Progress,
        checkpoint: Checkpoint | None,
        resume: bool,
    ) -> None:
        self._transcriber, self._source, self._options = transcriber, source, options
        self._diarizer, self._merge, self._progress = diarizer, merge, progress
        self._checkpoint, self._resume = checkpoint, resume
        self._cancelled = threading.Event()
        self._segments: list[Segment] = []
        self._buffer: AudioBuffer | None = None
        self._words_if_can = diarizer is not None and merge == "words" and not options.word_timestamps
        if self._words_if_can:
            self._options = replace(options, word_timestamps=True)
        self.transcript = Transcript("", 0.0, (), task=options.task, complete=False)
        self._steps = self._transcribed()

    def __iter__(self) -> Iterator[Segment]:
        for step in self._steps:
            yield from step.segments

    def steps(self) -> Generator[Step, None, None]:
        """Yield what each window gave, and texts of windows that still grow, in live audio."""
        return self._steps

    def cancel(self) -> None:
        """Stop after the current window; what was understood until then is kept. Live audio ends here.

        Who speaks is then not said; the transcript is not complete.
        """
        if self._source.stop():
            return
        if self._source.live and self._buffer is not None:
            self._buffer.stop()
        else:
            self._cancelled.set()

    def _transcribed(self) -> Generator[Step, None, None]:
        try:
            yield from self._windows()
        finally:  # also where the caller reads no further
            self._source.stop()
            if self._buffer is not None:
                self._buffer.close()

    def _windows(self) -> Iterator[Step]:
        earlier = self._checkpoint.read() if self._resume and self._checkpoint is not None else None
        began = time.perf_counter()
        model, source = self._transcriber.model, self._source
        try:
            spans = self._spans() if self._options.batch > 1 else None
        except Interrupted:
            if earlier is not None:
                self.transcript = replace(
                    self.transcript, language=earlier[0], segments=tuple(earlier[2]), counts=earlier[3]
                )
            return
        buffer = self._buffer = AudioBuffer(source.blocks(), live=source.live)
        if source.duration is not None and not source.live:
            self._progress("transcribing", 0.0)
        language, state, counts = "", State(), Counts()
        if earlier is not None:
            language, state, self._segments, counts = earlier
            buffer.skip(state.position)
            self._progress(f"going on from {state.position / RATE:.0f} s", 0.0)
            yield Step([*self._segments], state)
        else:
            while not buffer.fill(WINDOW) and not self._cancelled.is_set() and buffer.end < 5 * RATE:
                pass  # the language is found in what there is of a live audio
            state = past_silence(buffer, replace(state, context=self._initial()))
        wanted = replace(self._options, language=language or self._options.language)
        start = state.position
        language, options = choose_language(
            model, wanted, lambda: log_mel(buffer.window(start, WINDOW), model.mel_bins)
        )
        recognizer = Recognizer(model, options, language)
        recognizer.counts, recognizer.words_if_can = counts, self._words_if_can
        steps = (
            sequential(recognizer, buffer, state)
            if spans is None
            else batched(recognizer, buffer, spans, state)
        )
        complete = False
        try:
            for step in steps:
                state = step.state
                self._segments += step.segments
                self._keep(language, state, recognizer.counts)
                self._report(recognizer, began, False)
                yield step
                if self._cancelled.is_set():
                    break
            else:
                complete = True
        finally:
            self._keep(language, state, recognizer.counts, now=True)
        if complete:
            buffer.finish()  # of silence at the end no window was made
        self._report(recognizer, began, complete)
        if complete and self._diarizer is not None:
            self._diarize(self._diarizer)
        self.transcript = replace(self.transcript, seconds=time.perf_counter() - began)

    def _initial(self) -> tuple[int, ...]:
        given = self._options.initial_prompt
        return self._transcriber.model.tokens.encode(" " + given.strip()) if given else ()

    def _keep(self, language: str, state: State, counts: Counts, *, now: bool = False) -> None:
        if self._checkpoint is not None:
            self._checkpoint.write(language, state, self._segments, counts, now=now)

    def _report(self, recognizer: Recognizer, began: float, complete: bool) -> None:
        assert self._buffer is not None
        heard, source = self._buffer.seconds, self._source
        notes = []
        if complete and source.skipped:
            notes.append(f"{source.skipped} damaged parts of {source.name} were left out")
        if source.lost:
            notes.append(
                f"{source.lost:.0f} s of sound were lost, since this machine is slower than speech; "
                "later times are too early by that"
            )
        if complete and source.duration and not source.live and abs(source.duration - heard) > 1 + heard / 50:
            notes.append(f"the header says {source.duration:.0f} s of audio, there are {heard:.0f} s")
        self.transcript = Transcript(
            recognizer.language, heard, tuple(self._segments), counts=recognizer.counts, notes=tuple(notes),
            seconds=time.perf_counter() - began, complete=complete, task=self._options.task,
        )  # fmt: skip
        if source.duration and not source.live:
            self._progress("transcribing", heard / max(source.duration, heard))

    def _spans(self) -> list[Span]:
        """Return the windows of a batched transcription. Raises Interrupted."""
        self._progress("looking for speech", 0.0)
        vad = SileroVad(progress=self._progress)
        blocks = self._source.blocks_unless(self._cancelled.is_set)
        return windows(speech_spans(vad.probabilities(blocks)))

    def _diarize(self, diarizer: Diarizer | GivenTurns) -> None:
        """Say who said what; stopped meanwhile, the transcript has no speakers and is not complete."""
        self._progress("telling speakers apart", 0.0)
        try:
            turns: list[Turn] = diarizer.turns(self._source, self._progress, self._cancelled.is_set)
        except Interrupted:
            self.transcript = replace(self.transcript, complete=False)
            return
        segments = MERGES[self._merge](self.transcript.segments, turns)
        self.transcript = self.transcript.with_segments(segments, turns)
