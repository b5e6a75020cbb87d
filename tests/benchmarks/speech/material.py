"""Make talks, conversations and an hour of speech from Debian's telephone prompts, which people recorded.

    apt-get download asterisk-core-sounds-{en,es,fr,it,ru} asterisk-core-sounds-{en,es,fr,it,ru}-wav
    apt-get download asterisk-prompt-it-menardi-wav
    for package in *.deb; do dpkg-deb -x $package prompts; done
    python tests/benchmarks/speech/material.py prompts --out material

It fetches nothing. Five voices: Allison Smith (English and Spanish), June Wallack (French), Carlo Flora and
Menardi (Italian), Maxim Topal (Russian); licences are in the packages. Prompts with less than four words are
left out: Whisper hears a lone digit as anything. Every fifth prompt of a language is held out. Some prompts
resemble each other, so that the talks held out are of the same kind as the talks to learn from.

    learn/LANGUAGE-N.wav        talks to learn from, at most --learn minutes a language
    held-out/LANGUAGE-N.wav     and clips.jsonl with what is said in them
    short/, long/               clips of about 8 s and 60 s of the English prompts held out, with clips.jsonl
    conversations/NAME.wav      who speaks when is in NAME.rttm, and clips.jsonl names both
    hour.wav                    all that is said in English, again and again up to an hour
"""

from __future__ import annotations

import argparse
import gzip
import json
import wave
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE = 8000  # samples a second, of all prompts
LANGUAGES = ("en", "es", "fr", "it", "ru")
LEAST_WORDS, TALK_S, HELD_OUT = 4, 120.0, 5
LOUD = 0.02  # of the loudest sample: where speech begins and ends
MENARDI = "it_IT_f_Menardi"

Samples = NDArray[np.int16]


@dataclass(frozen=True)
class Prompt:
    """Hold a recording without the silence around it, and what is said."""

    language: str
    text: str
    samples: Samples

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


def wording(file: Path) -> dict[str, str]:
    """Return name -> text. Remarks on sounds, which stand in brackets, are left out."""
    lines = gzip.decompress(file.read_bytes()).decode("utf-8-sig").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line and not line.startswith(";"))
    return {name.strip(): text.strip() for name, text in pairs if not set(text) & set("[]<>()")}


def recorded(path: Path) -> Samples:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2), path
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > LOUD * np.abs(samples.astype(np.int32)).max())
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples[:0]


def prompts(root: Path, language: str, voice: Path | None = None) -> list[Prompt]:
    """Return the prompts of a language in the order of their names. voice: folder of another speaker."""
    name = f"asterisk-core-sounds-{language}"
    texts = wording(root / "usr/share/doc" / name / f"core-sounds-{language}.txt.gz")
    folder = voice or next(
        path
        for path in sorted((root / "usr/share/asterisk/sounds").glob(f"{language}_*"))
        if path.name != MENARDI
    )
    found = []
    for path in sorted(folder.rglob("*.wav")):
        text = texts.get(path.relative_to(folder).with_suffix("").as_posix(), "")
        if len(text.split()) >= LEAST_WORDS:
            found.append(Prompt(language, text if text[-1] in ".!?" else f"{text}.", recorded(path)))
    return found


def write(path: Path, samples: Samples) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.astype("<i2").tobytes())


def pause(seconds: float) -> Samples:
    return np.zeros(round(seconds * RATE), np.int16)


def joined(found: Iterable[Prompt], between: float = 0.5) -> Samples:
    return np.concatenate([part for prompt in found for part in (prompt.samples, pause(between))])


def talks(found: Sequence[Prompt], most: float) -> list[list[Prompt]]:
    """Return prompts in groups of about `most` seconds."""
    groups: list[list[Prompt]] = [[]]
    for prompt in found:
        if groups[-1] and sum(each.seconds + 0.5 for each in groups[-1]) + prompt.seconds > most:
            groups.append([])
        groups[-1].append(prompt)
    return groups


def clips(folder: Path, named: dict[str, list[Prompt]]) -> None:
    """Write talks, and clips.jsonl with their texts."""
    lines = []
    for name, group in named.items():
        write(folder / f"{name}.wav", joined(group))
        text = " ".join(prompt.text for prompt in group)
        lines.append({"id": name, "audio": f"{name}.wav", "text": text, "language": group[0].language})
    jsonl(folder / "clips.jsonl", lines)


def jsonl(path: Path, lines: Iterable[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def conversation(folder: Path, name: str, speakers: dict[str, list[Prompt]], seed: int) -> None:
    """Let speakers take turns of one to three prompts; one turn in six begins before the last one ends."""
    rng = np.random.default_rng(seed)
    left = {speaker: [*found] for speaker, found in speakers.items()}
    length, end, last = 180.0, 0.5, ""
    sound = np.zeros(round((length + 60) * RATE), np.int32)
    turns = []
    while end < length:
        speaker = str(rng.choice([each for each in left if each != last]))
        last = speaker
        place = end + (-0.6 if turns and rng.random() < 1 / 6 else float(rng.uniform(0.1, 0.9)))
        for _ in range(int(rng.integers(1, 4))):
            prompt = left[speaker].pop(int(rng.integers(len(left[speaker]))))
            start = round(place * RATE)
            loudness = 8000 / max(1.0, float(np.abs(prompt.samples.astype(np.int32)).max()))
            sound[start : start + len(prompt.samples)] += (prompt.samples * loudness).astype(np.int32)
            turns.append((place, prompt.seconds, speaker))
            place += prompt.seconds + 0.25
        end = place - 0.25
    write(folder / f"{name}.wav", np.clip(sound[: round((end + 0.5) * RATE)], -32768, 32767).astype(np.int16))
    rows = [f"SPEAKER {name} 1 {start:.3f} {s:.3f} <NA> <NA> {who} <NA> <NA>\n" for start, s, who in turns]
    (folder / f"{name}.rttm").write_text("".join(rows), encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description="Make speech material from Debian's telephone prompts.")
    parser.add_argument("prompts", type=Path, metavar="FOLDER", help="the unpacked packages")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--learn", type=float, default=12.0, metavar="MINUTES", help="a language (12)")
    given = parser.parse_args()
    out: Path = given.out
    found = {language: prompts(given.prompts, language) for language in LANGUAGES}
    kept = {language: each[HELD_OUT - 1 :: HELD_OUT] for language, each in found.items()}
    for language, each in found.items():
        learn, length = [], 0.0
        for place, prompt in enumerate(each):
            if (place + 1) % HELD_OUT and length < 60 * given.learn:
                learn.append(prompt)
                length += prompt.seconds
        for number, talk in enumerate(talks(learn, TALK_S)):
            write(out / "learn" / f"{language}-{number}.wav", joined(talk))
        print(f"{language}: {len(each)} prompts, {length / 60:.1f} minutes to learn from")
    clips(
        out / "held-out",
        {f"{lang}-{i}": talk for lang, each in kept.items() for i, talk in enumerate(talks(each, TALK_S))},
    )
    for name, seconds in (("short", 8.0), ("long", 60.0)):
        cut = talks(kept["en"], seconds)
        full = [each for each in cut if 0.6 < sum(p.seconds for p in each) / seconds < 1.1]
        clips(out / name, {f"en-{name}-{i}": talk for i, talk in enumerate(full)})
    menardi = prompts(given.prompts, "it", given.prompts / "usr/share/asterisk/sounds" / MENARDI)
    folder = out / "conversations"
    folder.mkdir(parents=True, exist_ok=True)
    conversation(folder, "two-italian", {"Carlo": found["it"], "Menardi": menardi}, 1)
    four = {"Allison": "en", "June": "fr", "Carlo": "it", "Maxim": "ru"}
    conversation(folder, "four", {who: found[language] for who, language in four.items()}, 2)
    jsonl(
        folder / "clips.jsonl",
        [
            {
                "id": name,
                "audio": f"{name}.wav",
                "rttm": f"{name}.rttm",
                "speakers": count,
                "language": language,
            }
            for name, count, language in (("two-italian", 2, "it"), ("four", 4, "en"))
        ],
    )
    once = joined(found["en"])
    write(out / "hour.wav", np.tile(once, -(-3600 * RATE // len(once)))[: 3600 * RATE])


if __name__ == "__main__":
    main()
