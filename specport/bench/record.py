"""Run the methods and store every result at once, so that a stopped benchmark can be resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specport.bench.prompts import Prompt
from specport.bench.row import RESULT, Row
from specport.calibration.methods import PLAIN, Method, Run
from specport.errors import InvalidInput
from specport.models.atomic import write_atomically
from specport.models.os_errors import cause
from specport.outside import Format, Table, plain_values
from specport.progress import Progress, silent

ROWS, ABOUT = "rows.jsonl", "about.json"
_ELSEWHERE = "choose another --out, or remove this folder"
_ABOUT = Format(Table, "what a benchmark says of itself", _ELSEWHERE, InvalidInput)


@dataclass(frozen=True)
class Job:
    """One entry of the plan: decode this prompt with this method, for the n-th time."""

    prompt: Prompt
    method: str
    n: int


def plan(prompts: Sequence[Prompt], methods: Sequence[str], runs: int) -> list[Job]:
    """Return the jobs in order.

    All methods decode a prompt before the next prompt starts, so that machine drift affects them alike. Plain
    decoding comes first and last; the others rotate.
    """
    others = [name for name in methods if name != PLAIN]
    jobs: list[Job] = []
    for i, prompt in enumerate(prompts):
        for n in range(runs):
            shift = (i + n) % len(others) if others else 0
            jobs.append(Job(prompt, PLAIN, 2 * n))
            jobs += [Job(prompt, name, n) for name in others[shift:] + others[:shift]]
            jobs.append(Job(prompt, PLAIN, 2 * n + 1))
    return jobs


class Record:
    """Hold a folder with `about.json` and `rows.jsonl`. Raises InvalidInput where another is in it."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        text = json.dumps(about, indent=1, sort_keys=True)
        path = folder / ABOUT
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / ROWS).is_file() and (before := _ABOUT.read_if_there(path)) is not None:
                changed = [k for k in {*before, *about} if before.get(k) != json.loads(text).get(k)]
                if changed:
                    raise InvalidInput(
                        f"{folder} holds a benchmark with a different {sorted(changed)[0]}", _ELSEWHERE
                    )
            write_atomically(path, text + "\n")
            self.rows: list[Row] = [*_read(folder / ROWS)]
            if self.rows:  # drop a torn last line; its job runs again
                write_atomically(folder / ROWS, "".join(json.dumps(row) + "\n" for row in self.rows))
        except OSError as error:
            message, hint = cause(error)
            raise InvalidInput(f"cannot use the folder {folder}: {message}", hint) from error

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        done = {(row["id"], row["method"], row["n"]) for row in self.rows}
        return [job for job in jobs if (job.prompt.id, job.method, job.n) not in done]

    def add(self, job: Job, run: Run, num_prompt_tokens: int) -> None:
        row: Row = {
            "id": job.prompt.id,
            "category": job.prompt.category,
            "method": job.method,
            "n": job.n,
            "num_prompt_tokens": num_prompt_tokens,
            "tokens": run.tokens,
            "ttft_s": run.ttft_s,
            "total_s": run.total_s,
            "num_first": run.num_first,
            "metrics": dict(run.metrics),
        }
        try:
            with open(self.folder / ROWS, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            message, _ = cause(error)
            hint = "free some space and run the same command again: it goes on from here"
            raise InvalidInput(f"cannot write {self.folder / ROWS}: {message}", hint) from error
        self.rows.append(row)


def _read(path: Path) -> Iterator[Row]:
    """Yield the rows of a file that need not exist, without a torn last line. Raises InvalidInput."""
    lines = [*RESULT.raw_lines(path)] if path.is_file() else []
    for number, line in lines:
        try:
            row = plain_values.from_json(line)
        except ValueError as error:
            if number == lines[-1][0]:  # of a run that was killed while it wrote
                return
            raise InvalidInput(f"{path}, line {number} is damaged: {error}", _ELSEWHERE) from error
        RESULT.of(row, f"{path}, line {number}")
        yield row


def decode_all(
    record: Record,
    jobs: Sequence[Job],
    methods: Mapping[str, Method],
    encoded: Mapping[str, Sequence[int]],
    max_new_tokens: int,
    progress: Progress = silent,
    wanted: Callable[[Job], bool] = lambda job: True,
) -> None:
    """Run the missing jobs. Each method first decodes a few tokens of the first prompt to warm up.

    wanted: asked before each job whether to run it.
    """
    todo = record.missing(jobs)
    if not todo:
        return
    for name in dict.fromkeys(job.method for job in todo):
        progress(f"warming up {name}", 0.0)
        methods[name].run(encoded[todo[0].prompt.id], min(16, max_new_tokens))
    for i, job in enumerate(todo):
        if not wanted(job):
            continue
        progress(f"{job.prompt.category}: {job.method}", i / len(todo))
        ids = encoded[job.prompt.id]
        record.add(job, methods[job.method].run(ids, max_new_tokens), len(ids))
    progress("done", 1.0)
