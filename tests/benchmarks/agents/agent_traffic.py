"""Repeated agent-like traffic: the same tasks asked twice with small edits; what a suffix history brings.

    python tests/benchmarks/agents/agent_traffic.py --model MODEL --out results.json

An agent's loop hands a model a file and asks for it back with a change; a while later it asks nearly the same
again. Each task is a small module and an instruction; the second round names other things. All of round one
comes before round two, in one pipeline whose history begins empty. Every answer is decoded plainly as well,
just before: exact mode must give the same text. Reported is decode speed, tokens a second behind the first.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import specport
from specport.pipeline import Pipeline
from specport.runtime.devices.profiles import cpu_name
from specport.stream import Result

# Twenty modules (name of a record, its fields), and what is asked for: the second round's words replace the
# first's.
RECORDS = (
    ("Invoice", "number total customer due_date"), ("Sensor", "serial reading unit taken_at"),
    ("Booking", "guest room nights price"), ("Shipment", "parcel weight sender receiver"),
    ("Player", "nickname score level joined"), ("Recipe", "title servings minutes steps"),
    ("Ticket", "subject priority owner opened"), ("Account", "holder balance currency branch"),
    ("Vehicle", "plate model mileage driver"), ("Patient", "surname birthday ward doctor"),
    ("Course", "subject teacher credits hall"), ("Album", "artist tracks label year"),
    ("Server", "host cores memory region"), ("Order", "item quantity price buyer"),
    ("Flight", "carrier origin target departure"), ("Book", "author isbn pages shelf"),
    ("Meter", "household usage tariff month"), ("Camera", "lens sensor weight mount"),
    ("Contract", "party start end value"), ("Plant", "species height soil water"),
)  # fmt: skip
CHANGES = (
    ("a method `to_dict` that returns all fields as a dictionary", "`to_dict`", "`as_dict`"),
    ("a method `copy` that returns a new object with the same fields", "`copy`", "`clone`"),
    ("type hints for every field in `__init__`", "every field", "each field"),
    ("a docstring for the class and for each method", "a docstring", "a short docstring"),
)


def module(record: str, fields: str) -> str:
    """The file that the task is about."""
    names = fields.split()
    lines = [f"class {record}:", f"    def __init__(self, {', '.join(names)}):"]
    lines += [f"        self.{name} = {name}" for name in names]
    lines += ["", "    def describe(self):", f'        return "{record}: " + ", ".join([']
    lines += [f'            "{name}=" + str(self.{name}),' for name in names]
    lines += ["        ])", "", "    def same_as(self, other):"]
    lines += ["        return (", *(f"            self.{name} == other.{name} and" for name in names)]
    return "\n".join([*lines, "            True", "        )"])


def tasks(num: int) -> list[tuple[str, str]]:
    """The prompts of each task: of the first round and, edited, of the second."""
    found = []
    for i, (record, fields) in enumerate(RECORDS[:num]):
        change, before, after = CHANGES[i % len(CHANGES)]
        file = f"```python\n{module(record, fields)}\n```"
        ask = "Here is the file {name}.py:\n\n{file}\n\nAdd {change}. Answer with the whole file only."
        first = ask.format(name=record.lower(), file=file, change=change)
        second = ask.format(name=f"{record.lower()}s", file=file, change=change.replace(before, after))
        found.append((first, second))
    return found


def decode(pipeline: Pipeline, prompt: str, num: int) -> tuple[Result, float]:
    """An answer, and how many tokens a second came behind the first."""
    result = pipeline.generate(prompt, max_new_tokens=num)
    metrics = result.metrics
    return result, (metrics.num_output_tokens - 1) / metrics.decode_s if metrics.decode_s else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for specport run (default: the embedded one)")
    parser.add_argument("--precision")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--draft", default="suffix")
    parser.add_argument("--tasks", type=int, default=len(RECORDS))
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--out", type=Path, help="every answer's figures as JSON")
    args = parser.parse_args()

    common = {"precision": args.precision, "device": args.device}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain = specport.load(args.model, draft="none", **common)
        ours = specport.load(args.model, draft=args.draft, history=folder, **common)
        decode(plain, "Hello", 8)
        for number in (1, 2):
            for i, prompts in enumerate(tasks(args.tasks)):
                without, plain_speed = decode(plain, prompts[number - 1], args.max_new_tokens)
                drafted, speed = decode(ours, prompts[number - 1], args.max_new_tokens)
                rows.append(
                    {
                        "round": number,
                        "task": i,
                        "tokens": drafted.metrics.num_output_tokens,
                        "plain_tokens_per_s": plain_speed,
                        "tokens_per_s": speed,
                        "steps": drafted.metrics.num_steps,
                        "draft_s": drafted.metrics.draft_s,
                        "same_text": drafted.token_ids == without.token_ids,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    print(json.dumps(summary(rows, args.draft, ours)))
    if args.out:
        args.out.write_text(json.dumps({"about": summary(rows, args.draft, ours), "rows": rows}, indent=1))


def summary(rows: list[dict[str, float]], draft: str, pipeline: Pipeline) -> dict[str, object]:
    """Both rounds by total time, so that a long answer counts as what it is."""
    speeds = {}
    for name in ("plain_tokens_per_s", "tokens_per_s"):
        for number in (1, 2):
            mine = [row for row in rows if row["round"] == number and row[name]]
            tokens = sum(row["tokens"] - 1 for row in mine)
            speeds[name, number] = tokens / sum((row["tokens"] - 1) / row[name] for row in mine)
    return {
        "device": f"{pipeline.device_name}, {cpu_name()}",
        "model": pipeline.model_name,
        "draft": draft,
        "exact": pipeline.exact,
        "python": platform.python_version(),
        "plain, tokens a second": round(speeds["plain_tokens_per_s", 1], 2),
        "first round over plain": round(speeds["tokens_per_s", 1] / speeds["plain_tokens_per_s", 1], 3),
        "second round over plain": round(speeds["tokens_per_s", 2] / speeds["plain_tokens_per_s", 2], 3),
        "second round over first": round(speeds["tokens_per_s", 2] / speeds["tokens_per_s", 1], 3),
        "same text": f"{sum(bool(row['same_text']) for row in rows)}/{len(rows)}",
    }


if __name__ == "__main__":
    main()
