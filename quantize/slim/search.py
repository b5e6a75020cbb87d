"""The search for a layer mask: random proposals, and in turn with them Bayesian ones (DIMR of VIA-SD).

A proposal is a score for each layer that may be skipped; those with the smallest scores are. Optuna's TPE
sees all trials, random ones included. Each finished trial is written down, so that a search goes on where it
was stopped. (arXiv 2606.12243, Eq. 13; TPE: Bergstra et al., NeurIPS 2011)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from specport.errors import InvalidInput
from specport.models.atomic import write_json
from specport.outside import Format
from specport.progress import Progress

if TYPE_CHECKING:
    import optuna

STARTUP, TURN = 8, 2  # random trials before the first Bayesian one; then every second is one
Cost = Callable[[tuple[int, ...]], tuple[float, float]]


@dataclass(frozen=True)
class Trial:
    """Hold one finished trial: its proposal by layer, the layers skipped, and what `MaskCost` returned."""

    scores: tuple[float, ...]
    skipped: tuple[int, ...]
    cost: float
    agreement: float


@dataclass(frozen=True)
class Trials:
    """Hold the finished trials of a search, in order."""

    trials: tuple[Trial, ...] = ()


_TRIALS = Format(Trials, "the trials of a mask search")


def check_installed() -> None:
    """Raise InvalidInput where Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InvalidInput(
            "the search for layers needs Optuna, which is not installed", "pip install 'specport[verifier]'"
        ) from error


def number_skipped(num_layers: int, share: float) -> int:
    """Return how many of a model's layers are skipped. Raises InvalidInput where that is none or too many."""
    count = round(share * num_layers)
    if not 1 <= count <= num_layers - 2:
        raise InvalidInput(
            f"skipping {share:g} of {num_layers} layers would skip {count}; the first and the last stay",
            "choose another --skip, as in --skip 0.45",
        )
    return count


def search(
    cost: Cost, num_layers: int, count: int, num_trials: int, seed: int, known: Path, progress: Progress
) -> list[Trial]:
    """Return the trials, the best first.

    count: number of layers to skip. known: file with finished trials, which is kept up to date.
    """
    found = _TRIALS.find(known) or Trials()
    done = [trial for trial in found.trials if _fits(trial, num_layers, count)][:num_trials]
    study = _study()
    names = [f"layer {layer}" for layer in range(1, num_layers - 1)]
    for trial in done:
        _tell(study, names, trial)
    while len(done) < num_trials:
        best = min((trial.cost for trial in done), default=None)
        so_far = "" if best is None else f", best cost {best:.3f}"
        progress(f"mask {len(done) + 1} of {num_trials}{so_far}", len(done) / num_trials)
        bayesian = len(done) >= STARTUP and (len(done) - STARTUP) % TURN == 0
        study.sampler = _sampler(bayesian, seed + len(done))
        asked = study.ask()
        scores = tuple(asked.suggest_float(name, 0.0, 1.0) for name in names)
        order = sorted(range(len(scores)), key=scores.__getitem__)
        skipped = tuple(sorted(1 + layer for layer in order[:count]))
        trial = Trial(scores, skipped, *cost(skipped))
        study.tell(asked, trial.cost)
        done.append(trial)
        write_json(known, {"trials": [vars(each) for each in done]})
    return sorted(done, key=lambda trial: trial.cost)


def _fits(trial: Trial, num_layers: int, count: int) -> bool:
    """Return whether a stored trial is one of this search."""
    right = len(trial.scores) == num_layers - 2 and all(0 <= score <= 1 for score in trial.scores)
    return right and len({*trial.skipped} & {*range(1, num_layers - 1)}) == count == len(trial.skipped)


def _study() -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="minimize", sampler=_sampler(False, 0))


def _sampler(bayesian: bool, seed: int) -> optuna.samplers.BaseSampler:
    """Return what proposes one trial. A seed for each trial: a search that goes on gives the same masks."""
    import optuna

    if not bayesian:
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(n_startup_trials=0, multivariate=True, seed=seed)


def _tell(study: optuna.Study, names: Sequence[str], trial: Trial) -> None:
    import optuna

    spread = optuna.distributions.FloatDistribution(0.0, 1.0)
    study.add_trial(
        optuna.trial.create_trial(
            params=dict(zip(names, trial.scores, strict=True)),
            distributions=dict.fromkeys(names, spread),
            value=trial.cost,
        )
    )
