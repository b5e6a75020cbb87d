"""The plan of a draft: the head and the layers that were chosen for it.

The plan is stored, since it depends on measured times: a resumed build must not choose differently.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from specport.quantize.prune.choose import Choice

from specport.calibration.heads import Head
from specport.models import bundle
from specport.models.atomic import write_json
from specport.outside import Format
from specport.outside.numbers import Amount, Count


@dataclass(frozen=True)
class Plan:
    """heads: sizes that were measured. head: ids that the draft's head keeps; None = all.

    choice: of layers.
    """

    heads: tuple[Head, ...]
    head: tuple[int, ...] | None
    choice: Choice

    def save(self, path: Path) -> None:
        """Write the plan atomically."""
        content = {
            "heads": [{**asdict(head), "tokens": _ranges(head.tokens)} for head in self.heads],
            "head": _ranges(self.head),
            "choice": asdict(self.choice),
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: Path) -> Plan | None:
        """Read a plan; None where there is none that can be used: then the build chooses again."""
        stored = _PLAN.find(path)
        if stored is None:
            return None
        heads = [
            Head(_ids(h.tokens), h.size, h.seconds, h.agreement, h.tokens_per_second) for h in stored.heads
        ]
        return cls((*heads,), _ids(stored.head), stored.choice)


@dataclass(frozen=True)
class _Head:
    tokens: bundle.Ranges | None
    size: Count
    seconds: Amount
    agreement: Amount
    tokens_per_second: Amount


@dataclass(frozen=True)
class _Stored:
    heads: tuple[_Head, ...]
    head: bundle.Ranges | None
    choice: Choice

    def __post_init__(self) -> None:
        for head in (self.head, *(each.tokens for each in self.heads)):
            bundle.check_head(head)


_PLAN = Format(_Stored, "the plan of a draft")


def _ranges(tokens: tuple[int, ...] | None) -> bundle.Ranges | None:
    return None if tokens is None else bundle.ranges(tokens)


def _ids(ranges: bundle.Ranges | None) -> tuple[int, ...] | None:
    return None if ranges is None else bundle.expand(ranges)
