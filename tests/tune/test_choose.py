"""The winner, the finalists, and races: arithmetic without models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specport.bench.prompts import Prompt
from specport.bench.record import Job, Record
from specport.bench.summary import Figures
from specport.errors import InvalidInput
from specport.runtime.devices.profiles import load_profile
from specport.tune.budget import parse, written
from specport.tune.choose import Tried, choose, finalists, spelled
from specport.tune.heats import Race, method_name, spread


def figures(speed: float, same: int = 8) -> Figures:
    return Figures(8, speed, speed, speed, speed, speed, 1.0, 1.0, 2.0, (0.5,), 0.1, 0.9, same, None)


def tried(method: str, heat: float | None, final: float | None = None, same: int = 8) -> Tried:
    made = [None if speed is None else figures(speed, same) for speed in (heat, final)]
    return Tried(method, method, method, *made)


def test_the_fastest_of_the_final_wins() -> None:
    verdict = choose([tried("ngram", 1.5, 1.2), tried("suffix", 1.4, 1.3), tried("recycle", 1.6)], exact=True)
    assert (verdict.draft, verdict.speed_up) == ("suffix", 1.3)
    assert "the next is ngram (1.20)" in verdict.reason
    assert [each.remark for each in verdict.tried] == ["chosen", "in the final", ""]


def test_of_equal_ones_the_simplest_wins() -> None:
    verdict = choose(
        [tried("ngram|small", 1.41), tried("suffix|recycle", 1.405), tried("ngram", 1.40)], exact=True
    )
    assert verdict.draft == "ngram" and "ngram|small is as fast (1.41) and needs more" in verdict.reason


def test_what_changes_the_text_cannot_win_in_exact_mode() -> None:
    both = [tried("ngram", 1.9, same=7), tried("suffix", 1.2)]
    verdict = choose(both, exact=True)
    assert verdict.draft == "suffix" and {each.remark for each in verdict.tried} == {
        "changed the text",
        "chosen",
    }
    assert choose(both, exact=False).draft == "ngram"
    assert [each.name for each in finalists(both, 3, exact=True)] == ["suffix"]


def test_where_nothing_pays_plain_decoding_is_chosen() -> None:
    verdict = choose([tried("ngram", 1.01), tried("suffix", 0.8)], exact=True)
    assert (verdict.draft, verdict.speed_up) == (
        "none",
        1.0,
    ) and "the best was ngram (1.01)" in verdict.reason
    assert choose([], exact=True).draft == "none"


def test_few_prompts_are_said() -> None:
    one = Tried("ngram", "ngram", "ngram", replace(figures(1.5), prompts=1, same=1))
    assert "by 1 of the prompts only" in choose([one], exact=True).reason
    assert "only" not in choose([tried("ngram", 1.5)], exact=True).reason


def test_finalists_are_the_best_that_may_pay() -> None:
    all_of_them = [tried("a", 0.9), tried("b", 1.2), tried("c", 0.99), tried("d", 1.4), tried("e", 1.1)]
    assert [each.name for each in finalists(all_of_them, 3, exact=True)] == ["d", "b", "e"]


def test_methods_are_spelled_with_models_and_layers() -> None:
    assert spelled("ngram|draft-1", {"draft-1": "org/small"}) == "ngram|org/small"
    assert spelled("graft(draft-1)", {"draft-1": "/a b/c"}) == "graft(/a b/c)"
    assert spelled("ngram|early-exit", {}, 12) == "ngram|early-exit:12"


def test_budgets() -> None:
    texts = ("30m", "90s", "1h", "1h30m", "5", " 1.5 H ")
    assert [parse(text) for text in texts] == [1800, 90, 3600, 5400, 300, 5400]
    for wrong in ("", "m", "soon", "3d", "-5m", "1m30", "5s"):
        with pytest.raises(InvalidInput):
            parse(wrong)
    assert [written(s) for s in (45, 150, 4800, 7200, 9000)] == [
        "45 s",
        "2 min",
        "80 min",
        "2 h",
        "2 h 30 min",
    ]


def test_prompts_are_taken_in_turns_of_their_categories() -> None:
    prompts = [Prompt(str(i), category, "x") for i, category in enumerate("aaabc")]
    assert [prompt.id for prompt in spread(prompts)] == ["0", "3", "4", "1", "2"]


def test_a_device_with_another_policy_is_measured_with_it() -> None:
    xeon = load_profile("xeon")
    assert method_name("ngram", xeon) == "ngram"
    assert method_name("ngram", replace(xeon, policy="fixed", num_draft_tokens=4)) == "ngram@fixed=4"
    assert method_name("ngram", replace(xeon, policy="heuristic")) == "ngram@heuristic"


def row(prompt: str, method: str, n: int, seconds: float) -> dict[str, Any]:
    return {
        "id": prompt, "category": "qa", "method": method, "n": n, "tokens": [1] * 10, "ttft_s": 0.1,
        "total_s": seconds, "metrics": {},
    }  # fmt: skip


def test_a_race_drops_what_is_far_behind_and_remembers_it(tmp_path: Path) -> None:
    record = Record(tmp_path, {})
    for prompt in "12":
        record.rows += [
            row(prompt, "plain", 0, 2.0),
            row(prompt, "fast", 0, 1.0),
            row(prompt, "slow", 0, 1.9),
        ]
        record.rows += [row(prompt, "plain", 1, 2.0)]
    race = Race(record, deadline=100.0, clock=lambda: 0.0)
    jobs = {name: Job(Prompt("3", "qa", "x"), name, 0) for name in ("plain", "fast", "slow")}
    assert {name for name, job in jobs.items() if race.wanted(job)} == {"plain", "fast"}
    record.rows += [row("3", "plain", 0, 2.0), row("3", "fast", 0, 1.0), row("3", "plain", 1, 2.0)]
    later = Race(record, deadline=100.0, clock=lambda: 0.0)
    later.drop()
    assert later.dropped == {"slow"}


def test_a_race_ends_between_prompts(tmp_path: Path) -> None:
    now = [0.0]
    race = Race(Record(tmp_path, {}), deadline=10.0, clock=lambda: now[0])
    order = []
    for prompt in "123":
        for method in ("plain", "a"):
            if race.wanted(Job(Prompt(prompt, "qa", "x"), method, 0)):
                order.append(prompt + method)
                now[0] += 2.0
    assert order == ["1plain", "1a", "2plain", "2a"]  # a third one would end at 12
    late = Race(Record(tmp_path, {}), deadline=-1.0, clock=lambda: now[0])
    assert late.wanted(Job(Prompt("1", "qa", "x"), "plain", 0))  # one always runs
