"""The made-up traffic of `adapt_days.py`: varied, other tasks on the second day, the same each time."""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
agent_days: Any = importlib.import_module("agent_days")
adapt_days: Any = importlib.import_module("adapt_days")
sys.path.pop(0)


def test_the_second_day_has_other_tasks_of_the_same_kinds() -> None:
    first, second = agent_days.tasks(1, 300), agent_days.tasks(2, 300)
    assert len({task.text for task in (*first, *second)}) == 600
    assert first[:50] == agent_days.tasks(1, 50)
    assert Counter(t.kind for t in first) == Counter(t.kind for t in second)
    assert {t.text.splitlines()[0] for t in (*first, *second)} == {agent_days.TOOLS.splitlines()[0]}
    for slot, (one, two) in agent_days.SLOTS.items():
        assert not {*one} & {*two}, slot
        # Of a path the text has the parts.
        assert any(word.split(".")[-1] in task.text for task in second for word in two), slot
    names = agent_days.SLOTS["last"][0]
    assert not any(name in task.text for task in second for name in names)


def test_the_summary_by_hand() -> None:
    def row(task: int, method: str, ms: float, accepted: int) -> dict[str, Any]:
        counts = {"num_drafts": 10 * (accepted > 0), "num_accepted_tokens": accepted}
        return {
            "task": task,
            "method": method,
            "ms_per_token": ms,
            "total_s": ms,
            "same_text": True,
            **counts,
        }

    rows = [row(0, "plain", 40, 0), row(0, "d", 20, 15), row(1, "plain", 30, 0), row(1, "d", 30, 5)]
    found = adapt_days.summary(rows)
    assert found["plain"]["decode"] == 1.0 and found["plain"]["tokens_per_drafted_step"] == 1.0
    assert found["d"]["decode"] == 1.414 and found["d"]["tokens_per_drafted_step"] == 2.0
    assert found["d"]["same_text"] == "2/2"
