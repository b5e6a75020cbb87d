"""Record the token ids of every drafter's texts before a change, and compare them with those after it.

    python tests/benchmarks/decoding/record_texts.py record OUT.json --models DIR [--device xeon] \\
        [--drafters NAME ...]
    python tests/benchmarks/decoding/record_texts.py compare BEFORE.json AFTER.json

24 prompts (`record_prompts.json`) are answered with each setting of `SETTINGS` on each device: greedily, and
sampled with a seed. Neither text may depend on the clock, so the token ids and the finish reasons of two
recordings are equal, or `compare` lists what differs and exits with 1. The number of drafted tokens is kept
for information: the policy "planned" drafts what pays at the moment.

`record` only uses `specport.load`, `generate` and `stream`, so that one file runs before and after a change.
It goes on with an OUT.json of the same revision: recorded settings are skipped. It has a cache of its own
(`--cache`), since a calibration in the user's cache would decide how much a seeded text drafts. Two
recordings may share it.

DIR holds the draft models, made once:

    specport quantize --layers 15 --by angle --head-tokens 16384 --device xeon --out DIR/smollm2-draft
    specport quantize export DIR/smollm2-draft --to hf --out DIR/smollm2-draft-hf
    DIR/gemma3-270m/gemma3-270m.gguf        any model of another tokenizer
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

PROMPTS = Path(__file__).with_name("record_prompts.json")
NUM_TOKENS = 48
TEMPERATURE, SEED = 0.8, 20_240  # the seed of the first prompt; the next one has the next seed
MAX_CONTEXT = 2048
PACKAGES = ("specport", "numpy", "openvino", "torch", "transformers", "tokenizers")
SHOWN = 20  # most differences that `compare` lists

Answer = dict[str, Any]  # "ids", "finish", and counts of the drafting


@dataclass(frozen=True)
class Setting:
    """One way to draft.

    draft:   expression with {model} for the draft model and {other} for the one of another tokenizer.
    options: of `specport.load`.
    batch:   all prompts that are plain strings go into one call of `generate`.
    """

    draft: str
    options: dict[str, Any] = field(default_factory=dict)
    batch: bool = False


SETTINGS = {
    "none": Setting("none"),
    "ngram": Setting("ngram"),
    "suffix": Setting("suffix"),
    "recycle": Setting("recycle"),
    "model": Setting("{model}"),
    "ngram|model": Setting("ngram|{model}"),
    "graft": Setting("graft({model})"),
    "universal": Setting("universal({other})"),
    "early-exit": Setting("early-exit:10"),
    "ngram fixed": Setting("ngram", {"policy": "fixed", "num_draft_tokens": 4}),
    "recycle fixed": Setting("recycle", {"policy": "fixed", "num_draft_tokens": 4}),
    "model fixed": Setting("{model}", {"policy": "fixed", "num_draft_tokens": 4}),
    "model tree": Setting("{model}", {"policy": "fixed", "num_draft_tokens": 3, "branches": (2, 2)}),
    "model block": Setting("{model}", {"policy": "fixed", "num_draft_tokens": 4, "acceptance": "block"}),
    "model heuristic": Setting("{model}", {"policy": "heuristic"}),
    "model confidence": Setting("{model}", {"policy": "confidence"}),
    "ngram|model fixed": Setting("ngram|{model}", {"policy": "fixed", "num_draft_tokens": 4}),
    "graft fixed": Setting("graft({model})", {"policy": "fixed", "num_draft_tokens": 4}),
    "universal fixed": Setting("universal({other})", {"policy": "fixed", "num_draft_tokens": 4}),
    "early-exit fixed": Setting("early-exit:10", {"policy": "fixed", "num_draft_tokens": 4}),
    "batch": Setting("none", batch=True),
    "batch ngram|model": Setting("ngram|{model}", batch=True),
    "batch model fixed": Setting("{model}", {"policy": "fixed", "num_draft_tokens": 4}, batch=True),
}
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": {"temperature": TEMPERATURE}}
# Draft models by device: openvino reads the bundle with its cut head, torch the Hugging Face folder.
DRAFTS = {"xeon": "smollm2-draft", "torch-cpu": "smollm2-draft-hf"}
OTHER = "gemma3-270m/gemma3-270m.gguf"


def record(args: argparse.Namespace) -> int:
    """Record the settings that OUT.json does not hold yet; write it after each of them."""
    os.environ["SPECPORT_CACHE"] = str((args.cache or args.out.parent / "cache").resolve())
    prompts = json.loads(PROMPTS.read_text(encoding="utf-8"))
    held = _begun(args.out)
    for device in args.device or ["xeon", "torch-cpu"]:
        about = held["devices"].setdefault(device, {"threads": args.threads, "settings": {}})
        if about["threads"] != args.threads:
            sys.exit(f"{device} was recorded with --threads {about['threads']}: products may round otherwise")
        settings = about["settings"]
        for name in args.drafters or SETTINGS:
            if name in settings:
                continue
            began = time.perf_counter()
            settings[name] = dict(_answers(SETTINGS[name], device, args.models, prompts, about))
            plain = settings.get("none", settings[name])
            equal = sum(
                a["ids"] == plain["greedy"][key]["ids"] for key, a in settings[name]["greedy"].items()
            )
            drafted = [sum(a["drafted"] for a in settings[name][way].values()) for way in WAYS]
            print(
                f"{device:10} {name:18} {time.perf_counter() - began:6.1f} s, "
                f"{equal}/{len(settings[name]['greedy'])} greedy texts as plain, drafted {drafted}",
                flush=True,
            )
            _write(args.out, held)
    return 0


def _answers(
    setting: Setting, device: str, models: Path, prompts: list[dict[str, Any]], about: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Answer]]]:
    """Yield each way to choose tokens with its answers by prompt. Adds what was loaded to `about`."""
    import specport

    draft = setting.draft.format(model=models / DRAFTS.get(device, DRAFTS["torch-cpu"]), other=models / OTHER)
    with specport.load(
        device=device, draft=draft, max_context=MAX_CONTEXT, threads=about["threads"], **setting.options
    ) as pipeline:
        about.update(model=pipeline.model_name, device=pipeline.device_name, exact=pipeline.exact)
        for way, options in WAYS.items():
            shared = {"max_new_tokens": NUM_TOKENS, **options}
            if setting.batch:
                asked = [
                    prompt for prompt in prompts if isinstance(prompt["prompt"], str) and not prompt["raw"]
                ]
                results = pipeline.generate([prompt["prompt"] for prompt in asked], seed=SEED, **shared)
                yield way, {p["id"]: _answer(r) for p, r in zip(asked, results, strict=True)}
                continue
            found = {}
            for number, prompt in enumerate(prompts):
                stream = pipeline.stream(prompt["prompt"], seed=SEED + number, raw=prompt["raw"], **shared)
                text = "".join(chunk.text for chunk in stream)
                if text != stream.result.text:
                    sys.exit(f"{prompt['id']}: the chunks of the stream are not the text of its result")
                found[prompt["id"]] = _answer(stream.result)
            yield way, found


def _answer(result: Any) -> Answer:
    """Return what is kept of a `specport` result."""
    metrics = result.metrics
    return {
        "ids": result.token_ids,
        "finish": result.finish_reason,
        "steps": metrics.num_steps,
        "drafted": metrics.num_draft_tokens,
        "accepted": metrics.num_accepted_tokens,
    }


def _begun(out: Path) -> dict[str, Any]:
    """Return the recording in `out`, or a new one. Exits where it is of another revision."""
    about = {
        "revision": _revision(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
        "python": platform.python_version(),
        "processor": _processor(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "tokens": NUM_TOKENS,
    }
    if not out.exists():
        return {"about": about, "devices": {}}
    held: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    if held["about"]["revision"] != about["revision"]:
        sys.exit(
            f"{out} is of revision {held['about']['revision']}, not {about['revision']}: name another file"
        )
    return held


def _revision() -> str:
    """Return the commit of the installed specport, with "+" where files differ from it."""
    import specport

    def git(*words: str) -> str:
        folder = Path(specport.__file__).parent
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """Return the processor's name and its number of logical cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} logical cores"


def _write(out: Path, held: dict[str, Any]) -> None:
    """Replace `out` in one move, so that an interrupted recording stays readable."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".part")
    temporary.write_text(json.dumps(held), encoding="utf-8")
    os.replace(temporary, out)


def compare(args: argparse.Namespace) -> int:
    """Return 1, behind a table of what differs or is missing in AFTER.json; else 0."""
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (args.before, args.after))
    for name, held in (("before", before), ("after", after)):
        about = held["about"]
        print(f"{name:6} {about['revision'][:12]} on {about['processor']}, {json.dumps(about['versions'])}")
    total, rows = 0, []
    for device, setting, way, prompt, answer in _each(before):
        total += 1
        other = (
            after["devices"]
            .get(device, {"settings": {}})["settings"]
            .get(setting, {})
            .get(way, {})
            .get(prompt)
        )
        if difference := _difference(answer, other):
            rows.append((device, setting, way, prompt, difference))
    for row in rows[:SHOWN]:
        print("{:10} {:18} {:8} {:18} {}".format(*row))
    if len(rows) > SHOWN:
        print(f"and {len(rows) - SHOWN} more")
    print(f"{total - len(rows)} of {total} texts are the same")
    return 1 if rows or not total else 0


def _each(held: dict[str, Any]) -> Iterator[tuple[str, str, str, str, Answer]]:
    """Yield device, setting, way, prompt and answer of each recorded text."""
    for device, found in held["devices"].items():
        for setting, ways in found["settings"].items():
            for way, answers in ways.items():
                for prompt, answer in answers.items():
                    yield device, setting, way, prompt, answer


def _difference(before: Answer, after: Answer | None) -> str:
    """Return in words how a text differs from the one before; "" where it is the same."""
    if after is None:
        return "is missing"
    old, new = before["ids"], after["ids"]
    if old != new:
        at = next(
            (i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]),
            min(len(old), len(new)),
        )
        return f"token {at}: {old[at : at + 3]} -> {new[at : at + 3]}; {len(old)} -> {len(new)} tokens"
    if before["finish"] != after["finish"]:
        return f"finish reason {before['finish']} -> {after['finish']}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(required=True)
    recording = actions.add_parser("record", help="answer all prompts and write their token ids")
    recording.set_defaults(action=record)
    recording.add_argument("out", type=Path, metavar="OUT.json")
    recording.add_argument("--models", type=Path, default=Path("models"), help="folder of the draft models")
    recording.add_argument("--device", action="append", help="may be given several times (default: both)")
    recording.add_argument(
        "--drafters", nargs="+", choices=SETTINGS, metavar="NAME", help="of SETTINGS (default: all)"
    )
    recording.add_argument("--threads", type=int, help="of the runtime; 1 is quicker on a busy machine")
    recording.add_argument(
        "--cache", type=Path, help="specport's cache (default: the folder cache beside OUT.json)"
    )
    comparing = actions.add_parser("compare", help="exit with 1 where token ids differ")
    comparing.set_defaults(action=compare)
    comparing.add_argument("before", type=Path, metavar="BEFORE.json")
    comparing.add_argument("after", type=Path, metavar="AFTER.json")
    args = parser.parse_args()
    code: int = args.action(args)
    return code


if __name__ == "__main__":
    sys.exit(main())
