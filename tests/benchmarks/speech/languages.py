"""Transcribe speech of several languages with every drafter: word errors, and whether the ids are the same.

    python tests/benchmarks/speech/languages.py held-out/clips.jsonl --out out --device xeon \\
        --method ngram --method suffix --method DRAFT --method 'universal(tiny.en)'

The clips are those of `specport bench --speech`; `material.py` makes some from Debian's packages.
Plain decoding comes first. Each device is a run of its own, as torch-cpu for the other runtime. All methods
share what the target's encoder gives, which is computed once: nothing is timed here. The same command goes on
from where it was stopped. Exit code 1 = other ids than plain decoding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from specport import speech
from specport.bench.clips import Clip, read_clips
from specport.bench.speech import word_error_rate
from specport.runtime.devices.registry import Speech
from specport.speech.transcriber import Transcriber
from specport.speech.whisper.heard import Heard

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.resumed import claim

PLAIN = "none"


def share_encoder() -> None:
    """Let all models keep what an encoder gave for a window: that of a draft may be the target's."""
    known: dict[tuple[str, bytes], Any] = {}
    whole = Heard.through

    def through(self: Heard, by: Speech) -> Any:
        key = (by.key, hashlib.blake2b(np.ascontiguousarray(self.features).tobytes()).digest())
        if key not in known:
            known[key] = whole(self, by)
        return known[key]

    Heard.through = through  # type: ignore[method-assign]


def said(transcriber: Transcriber, clip: Clip) -> dict[str, Any]:
    """Return what a method makes of a clip. Ids of windows that were drawn at a temperature count, too."""
    language = clip.language if transcriber.model.tokens.multilingual else None
    found = transcriber.transcribe(clip.audio, language=language)
    return {
        "ids": [list(segment.ids) for segment in found.segments],
        "drawn": sum(segment.temperature > 0 for segment in found.segments),
        "text": found.text,
        "seconds_of_audio": found.duration,
        "counts": asdict(found.counts),
    }


def measure(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each clip and method, from the file where it is known."""
    methods = [PLAIN, *given.methods]
    facts = {"model": given.model, "device": given.device, "precision": given.precision}
    claim(given.out, {**facts, "clips": str(given.clips)})
    path = given.out / "rows.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    known = {(row["clip"], row["method"]) for row in rows}
    clips = read_clips(given.clips)
    wanted = [m for m in methods if any((clip.id, m) not in known for clip in clips)]
    options = {name: value for name, value in facts.items() if value is not None}
    with ExitStack() as stack:
        loaded = {
            m: stack.enter_context(speech.load(draft=m, threads=given.threads, **options)) for m in wanted
        }
        for clip in clips:
            for method, transcriber in loaded.items():
                if (clip.id, method) in known:
                    continue
                row = {
                    "clip": clip.id,
                    "language": clip.language,
                    "method": method,
                    **said(transcriber, clip),
                }
                rows.append(row)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                print(f"{clip.id} {method}: {row['counts']['rounds']} rounds", file=sys.stderr, flush=True)
    return [row for row in rows if row["method"] in methods]


def summary(rows: list[dict[str, Any]], clips: list[Clip]) -> list[dict[str, Any]]:
    """Return a row for each method and language."""
    texts = {clip.id: clip.text for clip in clips}
    plain = {row["clip"]: row for row in rows if row["method"] == PLAIN}
    found = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        for language in (*dict.fromkeys(row["language"] for row in own), None):
            some = [row for row in own if language in (None, row["language"])]
            total = {name: sum(row["counts"][name] for row in some) for name in some[0]["counts"]}
            found.append(
                {
                    "method": method,
                    "language": language or "all",
                    "clips": len(some),
                    "same_ids": sum(row["ids"] == plain[row["clip"]]["ids"] for row in some),
                    "wer": word_error_rate((r["text"], texts[r["clip"]], r["language"]) for r in some),
                    "minutes": sum(row["seconds_of_audio"] for row in some) / 60,
                    "tokens": total["tokens"],
                    "rounds": total["rounds"],
                    "acceptance": total["accepted"] / total["drafted"] if total["drafted"] else None,
                    "fallbacks": total["fallbacks"],
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Word errors and ids by language and drafter.")
    parser.add_argument("clips", type=Path, metavar="FILE", help="as of specport bench --speech")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--model")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--method", action="append", dest="methods", default=[], metavar="DRAFT")
    given = parser.parse_args()
    share_encoder()
    rows = summary(measure(given), read_clips(given.clips))
    (given.out / "report.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print("| draft | language | minutes | WER % | same ids | tokens a step | accepted % | drawn again |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        accepted = "" if row["acceptance"] is None else f"{100 * row['acceptance']:.0f}"
        print(
            f"| `{row['method']}` | {row['language']} | {row['minutes']:.1f} | {100 * row['wer']:.2f} | "
            f"{row['same_ids']}/{row['clips']} | {row['tokens'] / row['rounds']:.2f} | {accepted} | "
            f"{row['fallbacks']} |"
        )
    if any(row["same_ids"] != row["clips"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
