"""Two days of made-up but realistic traffic of an agent: other tasks each day, of the same kinds.

The agent reads a message and answers with one JSON tool call and a sentence. Three kinds: it files tickets
from e-mails, edits settings of services, and looks up orders. People, products, faults, services and values
of the second day are others than those of the first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TOOLS = """\
You are the operations agent of a shop. Answer with one tool call as JSON on one line, then one short sentence
that says what you did. Tools:
create_ticket(title, customer, product, severity: low|medium|high|critical, component, steps: list, due_days)
update_config(service, environment: staging|production, path, old_value, new_value, reason, restart: bool)
search_orders(customer, status: open|shipped|returned|any, since, until, min_total, max_total, sort_by, limit)
Give every argument; use null where the message says nothing."""


@dataclass(frozen=True)
class Task:
    """A task of the agent. kind: "ticket", "config" or "orders". text: the whole prompt."""

    kind: str
    text: str


# Each slot has words for the first and for the second day.
Slots = Mapping[str, tuple[Sequence[str], Sequence[str]]]
SLOTS: Slots = {
    "first": (
        ("Maria", "Jonas", "Aisha", "Tom", "Ingrid", "Pedro", "Yuki", "Lena", "Omar", "Grace"),
        ("Sofia", "Ben", "Fatima", "Lukas", "Chloe", "Mateo", "Hana", "Nils", "Zeynep", "Arthur"),
    ),
    "last": (
        ("Keller", "Okafor", "Lindqvist", "Moreau", "Tanaka", "Russo", "Novak", "Silva", "Haas", "Byrne"),
        ("Weber", "Adeyemi", "Eriksen", "Dubois", "Sato", "Conti", "Horvat", "Costa", "Vogel", "Doyle"),
    ),
    "product": (
        ("TrailLamp 300", "AquaFilter Mini", "HomeHub 2", "GlideDesk Pro", "SoundPebble", "ThermoCup S"),
        ("TrailLamp 500", "AquaFilter Max", "HomeHub 3", "GlideChair Air", "SoundBoulder", "ThermoFlask L"),
    ),
    "fault": (
        (
            "turns itself off after two minutes",
            "does not charge any more",
            "shows error E12 at every start",
            "leaks at the bottom seal",
            "loses its Wi-Fi connection every evening",
            "arrived with a bent hinge",
        ),
        (
            "blinks red and does nothing",
            "gets hot while charging",
            "shows error E31 after the update",
            "drips from the lid",
            "no longer pairs with a phone",
            "arrived without the power supply",
        ),
    ),
    "tried": (
        (
            "charged it over night",
            "reset it twice",
            "tried another cable",
            "updated the app",
            "cleaned the contacts",
        ),
        (
            "left it unplugged for a day",
            "reinstalled the firmware",
            "used another outlet",
            "removed the batteries",
            "checked the manual",
        ),
    ),
    "service": (
        ("checkout", "search", "inventory", "mailer", "recommendations"),
        ("payments", "catalog", "shipping", "notifications", "reviews"),
    ),
    "path": (
        ("http.timeout_ms", "cache.ttl_seconds", "db.pool.max_size", "retry.max_attempts", "log.level"),
        ("http.keepalive_ms", "cache.max_entries", "db.pool.min_size", "retry.backoff_ms", "log.format"),
    ),
    "why": (
        ("customers see time-outs at noon", "the cache serves stale prices", "we ran out of connections"),
        ("the nightly import is too slow", "the disk fills up with logs", "the partner asked for it"),
    ),
}
SEVERITIES = (
    "It is urgent, our whole team depends on it.", "There is no hurry.", "Please look at it this week.",
    "Nobody can work here at the moment!",
)  # fmt: skip
STATUSES = ("open", "shipped", "returned", "any")
SORTS = ("date", "total", "customer")
LEVELS = {"log.level": ("info", "debug", "warning"), "log.format": ("text", "json", "logfmt")}


def tasks(day: int, count: int) -> list[Task]:
    """Return different tasks of the first or second day, of all kinds in turn."""
    rng = random.Random(day)
    found: dict[str, Task] = {}
    while len(found) < count:
        kind = [*KINDS][len(found) % len(KINDS)]
        text = KINDS[kind](rng, lambda slot: rng.choice(SLOTS[slot][day - 1]))
        found.setdefault(text, Task(kind, f"{TOOLS}\n\n{text}"))
    return [*found.values()]


Pick = Callable[[str], str]


def _ticket(rng: random.Random, pick: Pick) -> str:
    name = f"{pick('first')} {pick('last')}"
    greeting = rng.choice(("Hello,", "Hi there,", "Good morning,", "To whom it may concern,"))
    bought = f"I bought the {pick('product')} on {_date(rng)} (order {rng.randint(10_000, 99_999)})."
    return (
        f"File a ticket for this e-mail.\n\n{greeting}\n{bought} It {pick('fault')}. I have already "
        f"{pick('tried')} and {pick('tried')}. {rng.choice(SEVERITIES)}\nRegards,\n{name}"
    )


def _config(rng: random.Random, pick: Pick) -> str:
    path = pick("path")
    old, new = rng.sample(LEVELS.get(path, [str(n) for n in (5, 10, 20, 50, 100, 250, 500, 1500, 3000)]), 2)
    section, *keys = path.split(".")
    lines = [f"{section}:", *(f"{'  ' * (i + 1)}{key}:" for i, key in enumerate(keys))]
    snippet = "\n".join(lines) + f" {old}"
    when = rng.choice(("Restart it afterwards.", "Do not restart it.", "It reloads by itself."))
    return (
        f"Change a setting of the service {pick('service')} in {rng.choice(('staging', 'production'))}, "
        f"because {pick('why')}. Its file says now:\n\n{snippet}\n\n"
        f"{path.rpartition('.')[2]} should be {new}. {when}"
    )


def _orders(rng: random.Random, pick: Pick) -> str:
    low = rng.choice((10, 20, 50, 100, 200))
    parts = [
        f"Find the {rng.choice(STATUSES)} orders of {pick('first')} {pick('last')}",
        f"between {_date(rng)} and {_date(rng)}",
        rng.choice((f"over {low} euros", f"from {low} to {low * 4} euros", "of any amount")),
        f"sorted by {rng.choice(SORTS)}",
    ]
    return f"{' '.join(parts)}. {rng.randint(3, 30)} are enough."


def _date(rng: random.Random) -> str:
    return f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"


KINDS = {"ticket": _ticket, "config": _config, "orders": _orders}
