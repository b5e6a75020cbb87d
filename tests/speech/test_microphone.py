"""The microphone, with a stand-in for PortAudio."""

from __future__ import annotations

import sys
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import pytest
from support.toys.scripted_speech import ScriptedModel, said

from specport.speech.audio import microphone
from specport.speech.audio.read import RATE
from specport.speech.transcriber import Transcriber

BLOCK = RATE // 10


class Device:
    """Give all blocks at once when it is opened, as where nobody read for long."""

    blocks = 80

    def __init__(self, *, callback: Any, blocksize: int, **options: Any) -> None:
        self.callback, self.size = callback, blocksize

    def __enter__(self) -> Device:
        for number in range(self.blocks):
            self.callback(np.full((self.size, 1), number, np.float32), self.size, None, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@pytest.fixture(autouse=True)
def _portaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("sounddevice")
    module.__dict__.update(InputStream=Device, PortAudioError=OSError)
    monkeypatch.setitem(sys.modules, "sounddevice", module)
    monkeypatch.setattr(microphone, "_MOST_S", 6)


def test_what_waits_is_bounded() -> None:
    heard = microphone.Microphone()
    blocks = heard.blocks()
    first = next(blocks)
    heard.stop()
    found = [float(block[0]) for block in (first, *blocks)]
    assert found == [float(number) for number in range(60)]  # the earliest six seconds
    assert heard.lost == pytest.approx(2.0)


def test_a_loss_is_told() -> None:
    running = Transcriber(ScriptedModel([said(0.0, "ask", 3.0)])).stream("microphone")
    for _ in running.steps():
        running.cancel()
    (note,) = running.transcript.notes
    assert note.startswith("2 s of sound were lost")
