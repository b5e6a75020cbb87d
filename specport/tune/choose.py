"""Choose the winner among measured drafters, and say why it won."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specport.bench.summary import Figures
from specport.drafters.spec import DraftSpec, parse

LEAST_GAIN = 0.02  # over plain decoding, from which on drafting is worth it
FEW = 4  # prompts, below which a verdict says that it rests on few
TIE = 0.02  # candidates that are this close to the best count as equal: the simplest wins


@dataclass(frozen=True)
class Tried:
    """Hold one candidate.

    name:    for people. draft: expression for `--draft`, models by their lasting names.
    method:  its name in heats.
    heat:    figures of its heat; final: of the final. None = not measured there.
    remark:  what became of it.
    """

    name: str
    draft: str
    method: str
    heat: Figures | None = None
    final: Figures | None = None
    remark: str = ""

    @property
    def figures(self) -> Figures | None:
        """The figures of the final, else those of the heat."""
        return self.final or self.heat

    @property
    def changed(self) -> bool:
        """Whether it changed the text of a prompt in any measurement."""
        return any(each.same < each.prompts for each in (self.heat, self.final) if each is not None)

    @property
    def simplicity(self) -> tuple[int, int]:
        """How much it needs: models, then drafters. Less is simpler."""
        spec = parse(self.method)
        return len(spec.models), len(spec.parts)


@dataclass(frozen=True)
class Verdict:
    """Hold the winner. draft: its expression, "none" for plain decoding. reason: in one sentence."""

    draft: str
    name: str
    speed_up: float
    reason: str
    tried: tuple[Tried, ...]


def finalists(tried: Sequence[Tried], most: int, exact: bool) -> list[Tried]:
    """Return the best candidates of the heats, the best first."""
    fit = [each for each in tried if each.heat is not None and not (exact and each.changed)]
    fit = [each for each in fit if each.heat is not None and each.heat.end_to_end > 1.0 - TIE]
    return sorted(fit, key=_speed, reverse=True)[:most]


def choose(tried: Sequence[Tried], exact: bool) -> Verdict:
    """Return the winner by end-to-end speed: of those in the final where there was one, else of the heats."""
    finals = any(each.final is not None for each in tried)
    fit = [
        each
        for each in tried
        if (each.final if finals else each.heat) is not None and not (exact and each.changed)
    ]
    best = max(fit, key=_speed, default=None)
    if best is None or _speed(best) < 1.0 + LEAST_GAIN:
        shown = (
            "nothing could be measured" if best is None else f"the best was {best.name} ({_speed(best):.2f})"
        )
        reason = f"no drafter was faster than plain decoding by more than {LEAST_GAIN:.0%}; {shown}"
        return Verdict("none", "plain decoding", 1.0, reason, _marked(tried, None, exact))
    close = [each for each in fit if _speed(each) >= _speed(best) - TIE]
    winner = min(close, key=lambda each: (each.simplicity, -_speed(each)))
    rest = sorted((each for each in fit if each is not winner), key=_speed, reverse=True)
    reason = f"{winner.name} is {_speed(winner):.2f} times as fast as plain decoding, end to end"
    if winner is not best:
        reason += f"; {best.name} is as fast ({_speed(best):.2f}) and needs more"
    elif rest:
        reason += f"; the next is {rest[0].name} ({_speed(rest[0]):.2f})"
    assert winner.figures is not None  # it has a speed
    if winner.figures.prompts < FEW:
        reason += f"; by {winner.figures.prompts} of the prompts only: more --budget makes it surer"
    return Verdict(winner.draft, winner.name, _speed(winner), reason, _marked(tried, winner, exact))


def spelled(method: str, models: dict[str, str], layer: int = 0) -> str:
    """Return a method as a draft expression: aliases replaced by models, an early exit by its layer."""
    spec = parse(method)
    parts = []
    for each in spec.parts:
        part = replace(each, model=models.get(each.model, each.model)) if each.model is not None else each
        parts.append(replace(part, layer=layer) if part.layer == 0 and layer else part)
    return str(DraftSpec(tuple(parts)))


def _speed(each: Tried) -> float:
    return each.figures.end_to_end if each.figures is not None else 0.0


def _marked(tried: Sequence[Tried], winner: Tried | None, exact: bool) -> tuple[Tried, ...]:
    """Return the candidates with remarks, the fastest first."""
    found = []
    for each in sorted(tried, key=lambda each: (each.final is None, -_speed(each))):
        remark = each.remark
        if each is winner:
            remark = "chosen"
        elif exact and each.changed:
            remark = "changed the text"
        elif not remark and each.final is not None:
            remark = "in the final"
        found.append(replace(each, remark=remark))
    return tuple(found)
