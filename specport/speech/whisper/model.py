"""A Whisper model with its drafters: windows in, ids out. Implements `speech.ports.SpeechModel`."""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from specport.core.arrays import to_host
from specport.core.engine import Engine
from specport.core.ports import Block, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation, KeptCache
from specport.core.verify.rules import rule_for
from specport.drafters.retrieval.history import History
from specport.errors import DeviceError, InvalidInput
from specport.models.kinds.whisper import WhisperShape
from specport.runtime.devices.registry import CrossAttention
from specport.speech.ports import Decoded, Window
from specport.speech.whisper.heard import Features, Heard, checked
from specport.speech.whisper.logprobs import LogprobSums
from specport.speech.whisper.rules import processors
from specport.speech.whisper.tokens import WhisperTokens

MAX_PROMPT = 223  # ids of previous text, as in OpenAI's decoder: half the context, less <|startofprev|>


@dataclass
class _Running:
    """Hold a window while it is decoded."""

    index: int
    generation: Generation
    heard: Heard
    no_speech: float
    seconds: float = 0.0


class WhisperModel:
    """Decode windows on one engine. Not thread-safe.

    engine:    its target is opened with `Heard`, and its verifier watches for `sums`.
    attention: reads cross-attention from an encoder's output.
    encode:    returns a window's encoder output.
    batch:     windows that are decoded together, at most.
    identity:  what must be the same for the same words.
    history:   texts of earlier windows, which `suffix` drafts from.
    """

    def __init__(
        self,
        engine: Engine,
        tokens: WhisperTokens,
        shape: WhisperShape,
        sums: LogprobSums,
        *,
        attention: CrossAttention,
        encode: Callable[[Heard], NDArray[np.float32]],
        batch: int = 8,
        model_name: str = "",
        device_name: str = "",
        notes: Sequence[str] = (),
        identity: Mapping[str, Any] | None = None,
        history: History | None = None,
    ) -> None:
        self._engine: Engine | None = engine
        self.tokens, self._shape, self._sums = tokens, shape, sums
        self._attention, self._encode, self._batch = attention, encode, batch
        self.model_name, self.device_name, self.notes = model_name, device_name, list(notes)
        self.identity = dict(identity or {})
        self._history = history
        self.draft_name = engine.policy.name if engine.policy else "none"
        self.exact = engine.model.capabilities.exact
        self.mel_bins = shape.mel_bins
        self.max_prompt = min(MAX_PROMPT, shape.context // 2 - 1)
        # A window is heard once, though it is asked for its language, its text, perhaps at several
        # temperatures, and the times of its words.
        self._lately: OrderedDict[bytes, Heard] = OrderedDict()  # by digest of the features

    @property
    def engine(self) -> Engine:
        """The engine. Raises InvalidInput when the model is closed."""
        return self._engine or _closed()

    def close(self) -> None:
        """Free the models. Closing twice is harmless."""
        engine, self._engine = self._engine, None
        self._lately.clear()
        if engine is not None:
            engine.tidy()
            self._attention = self._encode = _closed  # they hold the models, too

    def forget(self) -> None:
        """Drop what was kept of the windows heard until now."""
        self._lately.clear()
        if self._history is not None:
            self._history.forget()

    def decode(self, windows: Sequence[Window]) -> list[Decoded]:
        """Decode all windows together, in continuous batches. Raises InvalidInput for a bad window."""
        for window in windows:
            self._check(window)
        engine, waiting = self.engine, deque(enumerate(windows))
        running: list[_Running] = []
        found: dict[int, Decoded] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._batch and self._has_room(running):
                    index, window = waiting.popleft()
                    running.append(self._begin(index, window))
                # A draft's own encoder runs inside of a step, and is counted apart.
                began, heard = time.perf_counter(), _heard_seconds(running)
                engine.step()
                encoding = _heard_seconds(running) - heard
                share = (time.perf_counter() - began - encoding) / len(running)
                for each in running:
                    each.seconds += share
                for each in [each for each in running if each.generation.ended]:
                    running.remove(each)
                    found[each.index] = self._decoded(each)
        finally:
            for each in running:
                each.generation.cancel()
                if each.generation.kept is not None:  # a cache that no round has taken yet
                    engine.release(each.generation.kept)
            engine.tidy()
            self._sums.clear()
        return [found[index] for index in range(len(windows))]

    def language(self, features: Features) -> dict[str, float]:
        """Return the probability of each language. Raises InvalidInput for an English-only model."""
        languages = self.tokens.languages
        if not languages:
            raise InvalidInput("this model knows English only", "name the language: en")
        logits = self._first_logits(self._heard(features), (self.tokens.sot,))[1]
        chosen = logits[[*languages.values()]]
        weights = np.exp(chosen - chosen.max())
        return dict(zip(languages, (weights / weights.sum()).tolist(), strict=True))

    def align(self, features: Features, prompt: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
        """Return [heads, ids, frames] what the model attended to when it chose each of these ids.

        That is where the token before each was read. A frame is 0.02 s.
        """
        if not prompt:
            raise InvalidInput("the prompt is empty", "begin it with <|startoftranscript|>")
        tokens = [*prompt, *ids][:-1] if ids else [*prompt]
        heads = self.tokens.alignment_heads(self._shape.decoder_layers, self._shape.decoder_heads)
        weights = self._attention(self._encode(self._heard(features)), tokens, heads)
        return weights[:, len(prompt) - 1 :][:, : len(ids)]

    def chosen_from(
        self, features: Features, prompt: Sequence[int], ids: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what a draft can learn of a window: the encoder's states, and the logits of each id.

        That is states [frames, width], and the logits [ids, vocab] that each of these ids was chosen from,
        before Whisper's rules. The prompt must not be empty.
        """
        heard, model = self._heard(features), self.engine.model
        states, tokens = self._encode(heard), [*prompt, *ids][:-1]
        widest = max(model.capabilities.buckets, default=len(tokens))
        handle = model.open(len(tokens), heard)
        found = []
        try:
            for start in range(0, len(tokens), widest):
                chunk = tokens[start : start + widest]
                output = model.step([Row(handle, Block.chain(chunk))])
                if output.refused:
                    raise DeviceError("there is no memory for a window of speech", "free some memory")
                skipped = max(0, min(len(chunk), len(prompt) - 1 - start))
                found.append(np.array(to_host(output.logits_of(0)[skipped:, :]), np.float32))
                model.commit(handle, range(len(chunk)))
        finally:
            model.close(handle)
        return states, np.concatenate(found)

    def _check(self, window: Window) -> None:
        if not window.prompt or min(window.prompt) < 0 or max(window.prompt) >= self.tokens.vocab:
            raise InvalidInput("a prompt is ids of the model, beginning with <|startoftranscript|>")
        if len(window.prompt) >= self._shape.context:
            raise InvalidInput(f"a prompt of {len(window.prompt)} ids; the model reads {self._shape.context}")
        if window.max_new_tokens < 1:
            raise InvalidInput(f"max_new_tokens is {window.max_new_tokens}; it must be 1 or more")

    def _heard(self, features: Features) -> Heard:
        features = checked(features, self.mel_bins, 2 * self._shape.frames)
        key = hashlib.blake2b(features.tobytes()).digest()
        heard = self._lately.pop(key, None) or Heard(features.copy())
        self._lately[key] = heard
        if len(self._lately) > 2 * self._batch:
            self._lately.popitem(last=False)
        return heard

    def _has_room(self, running: Sequence[_Running]) -> bool:
        if self.engine.model.room() > 0:
            return True
        if not running:
            raise DeviceError("there is no memory for a window of speech", "free some memory")
        return False

    def _begin(self, index: int, window: Window) -> _Running:
        heard = self._heard(window.features)
        prompt, sot = window.prompt, self.tokens.sot
        no_speech, seconds = math.nan, 0.0
        params = SamplingParams(temperature=window.temperature, seed=window.seed)
        generation = Generation(
            [*prompt],
            params,
            min(window.max_new_tokens, self._shape.context - len(prompt)),
            frozenset({self.tokens.eot}),
            processors=processors(self.tokens, len(prompt), timestamps=window.timestamps),
            rule=rule_for(params, "match"),  # drawn words, too, are those of plain decoding
            conditioning=heard,
        )
        if self.tokens.no_speech is not None and sot in prompt:
            start = prompt[: len(prompt) - prompt[::-1].index(sot)]
            self._encode(heard)
            began = time.perf_counter()
            generation.kept, logits = self._first_logits(heard, start, keep=True)
            no_speech = _probability(logits, self.tokens.no_speech)
            seconds = time.perf_counter() - began
        self._sums.add(generation)
        self.engine.add(generation)
        return _Running(index, generation, heard, no_speech, seconds)

    def _first_logits(
        self, heard: Heard, tokens: Sequence[int], *, keep: bool = False
    ) -> tuple[KeptCache | None, NDArray[np.float32]]:
        """Return the logits behind these first tokens, and their cache for a sequence that begins so."""
        model = self.engine.model
        handle = model.open(len(tokens), heard)
        try:
            output = model.step([Row(handle, Block.chain(tokens), logits="last")])
            if output.refused:
                raise DeviceError("there is no memory for a window of speech", "free some memory")
            logits = to_host(output.logits_of(0)[-1, :]).astype(np.float32)
            model.commit(handle, range(len(tokens)))
        except BaseException:
            model.close(handle)
            raise
        if keep:
            return KeptCache(handle, [*tokens], released=True), logits
        model.close(handle)
        return None, logits

    def _decoded(self, done: _Running) -> Decoded:
        generation, metrics = done.generation, done.generation.metrics
        ids = generation.tokens[generation.num_prompt_tokens :]
        if ids and ids[-1] == self.tokens.eot:
            ids = ids[:-1]
        return Decoded(
            tuple(ids),
            self._sums.pop(generation),
            done.no_speech,
            rounds=metrics.num_steps,
            drafted=metrics.num_draft_tokens,
            accepted=metrics.num_accepted_tokens,
            encoder_seconds=done.heard.told(),
            decoder_seconds=max(0.0, done.seconds),
            drafted_per_depth=(*metrics.drafted_per_depth,),
            accepted_per_depth=(*metrics.accepted_per_depth,),
        )


def _closed(*_: Any, **__: Any) -> NoReturn:
    raise InvalidInput("this speech model is closed", "load it again")


def _heard_seconds(running: Sequence[_Running]) -> float:
    return sum(heard.seconds for heard in {id(each.heard): each.heard for each in running}.values())


def _probability(logits: NDArray[np.float32], token: int) -> float:
    row = logits.astype(np.float64)
    top = row.max()
    return float(np.exp(row[token] - top) / np.exp(row - top).sum())
