"""Run a tuning: measure what the plan says, choose, and keep the choice."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from specport.bench.summary import Figures
from specport.calibration import calibrate
from specport.calibration.methods import PLAIN
from specport.calibration.other_load import OtherLoad
from specport.drafters.registry import MTP
from specport.drafters.spec import parse
from specport.errors import SpecportError
from specport.models.shipped import is_head, is_mtp_head
from specport.progress import Progress, part, silent
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.stored import tuned
from specport.tune import build, hand, plan, promise, weights
from specport.tune.budget import written
from specport.tune.choose import Tried, Verdict, choose, finalists, spelled
from specport.tune.facts import base_precision, facts, facts_unseen, open_loader, open_track
from specport.tune.lock import alone
from specport.tune.options import Options
from specport.tune.plan import Step
from specport.tune.report import Report
from specport.tune.weights import Weights


def look(options: Options, progress: Progress = silent) -> list[Step]:
    """Return the steps that `tune` would take. Measures, downloads and converts nothing."""
    loader = open_loader(options, progress)
    precision = base_precision(options, loader)
    if hand.is_ready(options.model, precision, loader.backend.weights):
        return plan.make(facts(options, loader, open_track(options, loader, precision)), options.budget_s)
    first = Step("load", "download and convert the model")
    return [first, *plan.make(facts_unseen(options, loader), options.budget_s)]


def tune(options: Options, progress: Progress = silent) -> Report:
    """Measure the candidates within the budget, choose the best, and keep the choice.

    All results are kept as they come: the same call goes on where an earlier one was stopped. Raises
    SpecportError.
    """
    with alone():
        return _Run(options, progress).run()


class _Run:
    """One tuning: its track, its clock, and what it has found so far."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options, self._progress = options, progress
        self._began = time.perf_counter()
        self._loader = open_loader(options, part(progress, 0.0, 0.05))
        precision = base_precision(options, self._loader)
        self._track = open_track(options, self._loader, precision)
        self._tried: dict[str, Tried] = {}
        self._untried: dict[str, str] = {}
        self._weights: list[Weights] = []
        self._plain: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._models: dict[str, str] = {}
        self._steps: list[Step] = []
        self._other_cores = 0.0

    def run(self) -> Report:
        options = self._options
        self._calibrate_target(part(self._progress, 0.05, 0.1))
        self._facts = facts(options, self._loader, self._track)
        self._names = {each.alias: each.name for each in self._facts.siblings}
        self._steps = plan.make(self._facts, options.budget_s)
        rest = part(self._progress, 0.1, 1.0)
        for number, step in enumerate(self._steps):  # ranking puts those behind it into another order
            bar = part(rest, number / len(self._steps), (number + 1) / len(self._steps))
            why = step.skip or self._no_time(step)
            if why:
                self._untried[step.what] = why
                continue
            try:
                self._do(step, number, bar)
            except SpecportError as error:  # of one candidate; the others go on
                if step.methods == self._facts.retrieval and not self._tried:  # it needs the target only
                    raise
                self._untried[step.what] = error.message
        return self._finish(choose([*self._tried.values()], options.exact))

    def _do(self, step: Step, number: int, progress: Progress) -> None:
        progress(step.what, 0.0)
        if step.kind == plan.FORMATS:
            self._choose_weights(progress)
        elif step.kind == plan.CALIBRATE:
            beside = self._track.beside(part(progress, 0.0, 0.3))
            bar = part(progress, 0.3, 1.0)
            if step.methods == (MTP,):
                calibrate.calibrate_mtp(parse(MTP), beside, bar)
                self._track.release()  # it is loaded again with the chosen head
            elif not step.models:
                calibrate.calibrate_exit(0, beside, bar)
            self._track.take_head({})
            for model in step.models.values():
                calibrate.calibrate_draft(model, parse(model), beside, self._options.draft_precision, bar)
        elif step.kind == plan.RANK:
            self._rank(number, progress)
        elif step.kind == plan.HEAT:
            self._heat(step, number, progress)
        elif step.kind == plan.BUILD:
            self._build(step, number, progress)
        else:
            self._final(progress)

    def _rank(self, number: int, progress: Progress) -> None:
        found = promise.measure(self._facts.unranked, self._track, progress)
        self._facts = replace(self._facts, promises={**self._facts.promises, **found})
        last = [step for step in self._steps[number:] if step.kind in (plan.BUILD, plan.FINAL)]
        self._steps[number + 1 :] = [*plan.trials(self._facts), *last]

    def _heat(self, step: Step, number: int, progress: Progress) -> None:
        left = sum(each.kind in (plan.HEAT, plan.CALIBRATE) for each in self._steps[number:])
        deadline = time.perf_counter() + self._left(final=False) / max(1, left)
        load = OtherLoad()
        heat = self._track.run(step.methods, step.models, plan.HEAT_PROMPTS, deadline, progress)
        self._other_cores = max(self._other_cores, load.cores())
        self._models |= step.models
        self._note_plain(heat.figures)
        for method in step.methods:
            remark = f"far behind after {heat.figures[method].prompts} prompts" * (method in heat.dropped)
            self._tried[method] = Tried(
                self._shown(method), self._spelled(method), method, heat.figures[method], remark=remark
            )

    def _final(self, progress: Progress) -> None:
        best = self._one_head(finalists([*self._tried.values()], plan.FINALISTS, self._options.exact))
        if not best:
            self._untried["the final"] = "no candidate was faster than plain decoding"
            return
        methods = [each.method for each in best]
        used = {name for method in methods for name in parse(method).models}
        models = {alias: model for alias, model in self._models.items() if alias in used}
        deadline = time.perf_counter() + self._left(final=True)
        load = OtherLoad()
        heat = self._track.run(methods, models, len(self._track.prompts), deadline, progress)
        self._other_cores = max(self._other_cores, load.cores())
        self._note_plain(heat.figures)
        for method in methods:
            self._tried[method] = replace(self._tried[method], final=heat.figures[method])

    def _one_head(self, best: list[Tried]) -> list[Tried]:
        """Return the finalists without those of a second draft head: a target is loaded with one."""
        named = [model for each in best for model in parse(each.draft).models]
        heads = [model for model in named if is_head(Path(model)) or is_mtp_head(Path(model))]
        others = {*heads[1:]} - {*heads[:1]}
        return [each for each in best if not others & {*parse(each.draft).models}]

    def _build(self, step: Step, number: int, progress: Progress) -> None:
        assert step.training is not None
        tokens = max(step.training.least, step.training.tokens(self._facts.costs, self._left(final=False)))
        files = self._track.files
        self._track.release()
        folder = build.train(
            step.training, self._options, files, self._facts.source, tokens, part(progress, 0.0, 0.8)
        )
        made = hand.sibling(str(folder), folder.name, hand.BUILT)
        self._names[made.alias] = made.name
        methods = plan.with_model(made.alias, self._track.target.model.capabilities.tree and not made.head)
        heat = Step(plan.HEAT, step.what, None, methods=methods, models={made.alias: made.model})
        self._heat(heat, number, part(progress, 0.8, 1.0))

    def _choose_weights(self, progress: Progress) -> None:
        options, loader = self._options, self._loader
        formats = hand.formats(options.model, loader.profile, loader.backend.weights)
        self._track.release()  # two models are loaded at a time
        texts = [prompt.text for prompt in self._track.prompts]
        bar = part(progress, 0.0, 0.9)
        self._weights = weights.measure(
            options.model, formats, texts, loader, options.device, options.exact, bar
        )
        best = weights.best(self._weights, formats[0])
        if best.precision != self._track.files.precision:
            self._track = open_track(options, loader, best.precision)
            self._calibrate_target(part(progress, 0.9, 1.0))
            self._facts = replace(self._facts, costs=self._track.costs)

    def _calibrate_target(self, progress: Progress) -> None:
        if self._track.costs is None:
            progress("measuring the target's steps", 0.0)
            budget, track = self._options.budget_s, self._track
            calibrate.report(
                "target", track.files, track.target, self._loader, progress, plan.calibration_s(budget),
                plan.contexts(budget),
            )  # fmt: skip

    def _left(self, *, final: bool) -> float:
        """Return the seconds that are left, without those kept for the final."""
        left = self._options.budget_s - (time.perf_counter() - self._began)
        return left if final else left - plan.reserve_s(self._steps[-1], self._options.budget_s)

    def _no_time(self, step: Step) -> str:
        """Return why a step cannot be begun any more, or nothing. The first heat always is."""
        if not self._tried and step.kind == plan.HEAT:
            return ""
        needed, left = plan.least_s(step, self._facts), self._left(final=step.kind == plan.FINAL)
        if needed <= left and left > 0:
            return ""
        return f"no time: it takes about {written(needed)}, and {written(max(0.0, left))} are left"

    def _note_plain(self, figures: Mapping[str, Figures]) -> None:
        plain = figures[PLAIN]
        self._plain = {
            "ttft_ms": plain.ttft_ms, "tpot_ms": plain.tpot_ms, "drift": plain.end_to_end - 1.0,
        }  # fmt: skip

    def _shown(self, method: str) -> str:
        return spelled(method, self._names, self._layer(method))

    def _spelled(self, method: str) -> str:
        return spelled(method, self._models, self._layer(method))

    def _layer(self, method: str) -> int:
        return self._loader.exit_layer(parse(method), self._track.files)

    def _finish(self, verdict: Verdict) -> Report:
        options, track = self._options, self._track
        path = tuned.keep(
            options.model,
            self._loader.profile.name,
            track.files.precision,
            tuned.Choice(
                verdict.draft,
                track.files.fingerprint,
                verdict.speed_up,
                {
                    "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "processor": cpu_name(),
                    "threads": options.threads,
                    "exact": options.exact,
                    "prompts": len(track.prompts),
                    "max_new_tokens": options.max_new_tokens,
                    "reason": verdict.reason,
                },
            ),
            weights_too=bool(self._weights),
        )
        return Report(
            model=track.files.name,
            device=self._loader.profile.name,
            processor=cpu_name(),
            exact=options.exact,
            precision=track.files.precision,
            weights=tuple(self._weights),
            promises={self._names[alias]: each for alias, each in self._facts.promises.items()},
            verdict=verdict,
            plain=self._plain,
            untried=self._untried,
            prompts=len(track.prompts),
            max_new_tokens=options.max_new_tokens,
            seconds=time.perf_counter() - self._began,
            other_cores=self._other_cores,
            path=path,
        )
