"""The plan of a draft: the head and the layers that were chosen for it.

The plan is stored, since it depends on measured times: a resumed build must not choose differently.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specport.quantize.prune.choose import Choice

from specport.calibration.heads import Head
from specport.models import bundle
from specport.models.atomic import write_json


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
        """Read a plan; None where there is no file."""
        if not path.is_file():
            return None
        stored = json.loads(path.read_text(encoding="utf-8"))
        choice: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in stored["choice"].items()
        }
        choice["dropped_by_count"] = tuple(map(tuple, choice["dropped_by_count"]))
        heads = tuple(Head(**{**head, "tokens": _ids(head["tokens"])}) for head in stored["heads"])
        return cls(heads, _ids(stored["head"]), Choice(**choice))


def _ranges(tokens: tuple[int, ...] | None) -> tuple[tuple[int, int], ...] | None:
    return None if tokens is None else bundle.ranges(tokens)


def _ids(ranges: list[list[int]] | None) -> tuple[int, ...] | None:
    return None if ranges is None else bundle.expand(ranges)
