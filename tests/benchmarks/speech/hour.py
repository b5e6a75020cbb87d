"""Transcribe an hour: memory is bounded, Ctrl-C keeps what is done, --resume goes on, the words are the same.

    python tests/benchmarks/speech/hour.py hour.wav --out out --model tiny.en

`specport transcribe` runs four times in processes of its own, and their memory is sampled: plain on the first
minute, plain on the whole, then with a draft until Ctrl-C comes in the middle, and again with --resume. The
same command goes on from where it was stopped. Exit code 1 = other words or times than plain decoding, or
more memory than the minute took and a tenth.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from specport.speech.audio.read import RATE
from specport.speech.audio.source import Source

MINUTE_S, GROWTH, EVERY_S = 60.0, 1.1, 0.25
STATE = ".specport-state.json"


def minute(audio: Path, out: Path) -> Path:
    """Return a file with the first minute of an audio."""
    import wave

    import numpy as np

    path = out / "minute.wav"
    if not path.exists():
        blocks, length = [], 0
        for block in Source(audio).blocks():
            blocks.append(block)
            length += len(block)
            if length >= MINUTE_S * RATE:
                break
        samples = np.concatenate(blocks)[: round(MINUTE_S * RATE)]
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((32767 * samples).clip(-32768, 32767).astype("<i2").tobytes())
    return path


def position(out: Path, audio: Path) -> float:
    """Return the seconds of audio that the state of a running transcription has behind it."""
    try:
        state = json.loads((out / f".{audio.stem}{STATE}").read_text(encoding="utf-8"))
        return float(state["position"]) / RATE
    except (OSError, ValueError, KeyError):  # there is none yet
        return 0.0


def transcribed(
    audio: Path, out: Path, options: list[str], stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Run the command; return its exit code, seconds, and the most memory that it took."""
    command = [sys.executable, "-m", "specport", "transcribe", str(audio), "--output", str(out)]
    process = subprocess.Popen([*command, "--format", "json", "--quiet", *options])
    watched, began, most, told = psutil.Process(process.pid), time.perf_counter(), 0, False
    while process.poll() is None:
        try:
            most = max(most, watched.memory_info().rss)
        except psutil.Error:  # it has ended
            break
        if not told and stop():
            process.send_signal(signal.SIGINT)
            told = True
        time.sleep(EVERY_S)
    code = process.wait()
    return {"code": code, "seconds": time.perf_counter() - began, "rss_mb": most / 2**20}


def segments(folder: Path, audio: Path) -> list[list[Any]]:
    """Return start, end and text of what was written."""
    found = json.loads((folder / f"{audio.stem}.json").read_text(encoding="utf-8"))
    return [[each["start"], each["end"], each["text"]] for each in found["segments"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="An hour of speech: memory, Ctrl-C, --resume.")
    parser.add_argument("audio", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model", default="base")
    parser.add_argument("--draft", default="suffix")
    parser.add_argument("--language", default="en")
    parser.add_argument("--threads")
    given = parser.parse_args()
    # A shell that starts this in the background has it ignore Ctrl-C, which the runs would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    same = ["--model", given.model, "--language", given.language]
    same += ["--threads", given.threads] if given.threads else []
    plain, drafted = [*same, "--draft", "none"], [*same, "--draft", given.draft]

    def step(name: str, run: Callable[[], dict[str, Any]], code: int) -> None:
        if name in done:
            return
        found = run()
        if found["code"] != code:
            sys.exit(f"{name}: exit code {found['code']}, not {code}")
        done[name] = found
        path.write_text(json.dumps(done, indent=1), encoding="utf-8")
        print(f"{name}: {found['rss_mb']:.0f} MB, {found['seconds']:.0f} s", file=sys.stderr, flush=True)

    audio, short = given.audio, minute(given.audio, out)
    source = Source(audio)
    for _ in source.blocks():
        break
    half = (source.duration or 0.0) / 2
    step("minute", lambda: transcribed(short, out / "minute", plain), 0)
    # With --resume from the start, so that a benchmark that is stopped in here loses nothing.
    step("plain", lambda: transcribed(audio, out / "plain", [*plain, "--resume"]), 0)
    drafted_out = out / "drafted"
    in_middle = lambda: position(drafted_out, audio) > half  # noqa: E731
    step("stopped", lambda: transcribed(audio, drafted_out, [*drafted, "--resume"], in_middle), 130)
    if "kept" not in done:
        done["kept"] = {"seconds_of_audio": position(drafted_out, audio)}
        done["kept"]["segments"] = len(segments(drafted_out, audio))
    step("resumed", lambda: transcribed(audio, drafted_out, [*drafted, "--resume"]), 0)
    expected, found = segments(out / "plain", audio), segments(drafted_out, audio)
    most = max(done[name]["rss_mb"] for name in ("plain", "stopped", "resumed"))
    done["result"] = {
        "segments": len(found),
        "same": found == expected,
        "rss_mb": most,
        "minute_mb": done["minute"]["rss_mb"],
    }
    path.write_text(json.dumps(done, indent=1), encoding="utf-8")
    print(json.dumps(done["result"]))
    if found != expected or most > GROWTH * done["minute"]["rss_mb"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
