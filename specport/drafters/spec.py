"""Draft expressions: convert the value of `--draft` to data and back.

none | auto | PART | PART|PART ...

PART is a kind of drafter (`registry`) with its argument:

    KIND            ngram, suffix, recycle, mtp
    KIND(MODEL)     universal(MODEL), graft(MODEL); MODEL as for --model
    MODEL           a draft model; also model:MODEL or model(MODEL), for a name that has another meaning,
                    and "MODEL" for a path with | or the like in it
    KIND:E          early-exit:12, the target's first 12 layers; without a number, the calibrated one

Under the policy "planned" the planner chooses among the parts. Under other policies the first part with a
proposal wins.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

from specport.drafters.registry import AUTO, MODEL, NONE, SUFFIX, Registry, registry
from specport.errors import InvalidInput

_WINDOWS = os.name == "nt"  # its shells support double quotes only
_PART = re.compile(r'\s*((?:[\w-]+[(:]\s*)*"[^"]*"\s*\)?|[^|]*)\s*(\||$)', re.DOTALL)  # and what ends it


@dataclass(frozen=True)
class PartSpec:
    """Hold one drafter of a draft expression.

    kind:  its name in the registry.
    model: as named by the user, for kinds that take one.
    layer: of the target, for kinds that take one; 0 = the calibrated one.
    """

    kind: str
    model: str | None = None
    layer: int | None = None

    def __str__(self) -> str:
        if self.layer is not None:
            return f"{self.kind}:{self.layer}" if self.layer else self.kind
        if self.model is None:
            return self.kind
        forms = (self.model, f"{MODEL}:{self.model}", f'"{self.model}"')
        texts = [form if self.kind == MODEL else f"{self.kind}({form})" for form in forms]
        return next((text for text in texts if _says(text, self)), texts[0])


@dataclass(frozen=True)
class DraftSpec:
    """Hold a draft expression. Without parts it means plain decoding, and is False as a condition.

    auto: whether the parts are the default, to which a draft built for the target is added (`with_model`).
    """

    parts: tuple[PartSpec, ...] = ()
    auto: bool = False

    def __bool__(self) -> bool:
        return bool(self.parts)

    def __str__(self) -> str:
        """Return the text that `parse` converts to this expression."""
        if self.auto:
            return AUTO
        return "|".join(map(str, self.parts)) or NONE

    @property
    def models(self) -> list[str]:
        """Return the models to load, without duplicates, as named by the user."""
        return [*dict.fromkeys(part.model for part in self.parts if part.model is not None)]

    @property
    def exit_layer(self) -> int | None:
        """Return how many of the target's layers draft: 0 = the calibrated number, None = no early exit."""
        return next((part.layer for part in self.parts if part.layer is not None), None)

    @property
    def kinds(self) -> list[str]:
        """Return the kind of each part."""
        return [part.kind for part in self.parts]

    @property
    def option(self) -> str:
        """Return the command-line option with this expression, quoted for the shell."""
        text = str(self)
        return f'--draft "{text}"' if _WINDOWS else f"--draft {shlex.quote(text)}"

    def with_model(self, model: str) -> DraftSpec:
        """Return an expression of these parts and a draft model."""
        return DraftSpec((*self.parts, PartSpec(MODEL, model)))

    def with_models(self, names: Mapping[str, str]) -> DraftSpec:
        """Return the expression with other names for some of its models."""
        return replace(
            self,
            parts=tuple(replace(p, model=names.get(p.model, p.model)) if p.model else p for p in self.parts),
        )

    def with_part(self, kind: str) -> DraftSpec:
        """Return an expression of these parts and a drafter without an argument."""
        return DraftSpec((*self.parts, PartSpec(kind)))

    def with_kind(self, part: PartSpec, kind: str) -> DraftSpec:
        """Return the expression with another kind for one part."""
        return DraftSpec(tuple(replace(p, kind=kind) if p == part else p for p in self.parts))


def parse(text: str) -> DraftSpec:
    """Parse a draft expression.

    Raises InvalidInput for an empty part, for auto or none inside a longer expression, for a kind without its
    argument, for two exits, and for a kind whose package is broken.
    """
    text = text.strip()
    if text == NONE:
        return DraftSpec()
    if text == AUTO:
        return DraftSpec((PartSpec(SUFFIX),), auto=True)
    known = registry()
    try:
        parts = tuple(_part(part, known) for part in _split(text))
    except ValueError as error:
        raise InvalidInput(
            f"cannot read the draft expression {text!r}: {error}", f"use {known.usages}"
        ) from error
    if sum(part.layer is not None for part in parts) > 1:
        raise InvalidInput(f"two exits in {text!r}", "a target is loaded with one exit: name one")
    return DraftSpec(parts)


def _split(text: str) -> list[str]:
    """Return the parts of an expression; a bar in quotes ends none."""
    parts, end, more = [], 0, "|"
    while more:
        found = _PART.match(text, end)
        assert found is not None  # any text without a bar is a part
        parts.append(found[1].strip())
        end, more = found.end(), found[2]
    return parts


def _part(text: str, known: Registry) -> PartSpec:
    """Parse one part. Raises ValueError for an invalid part, and InvalidInput where its package is broken."""
    name, bracket, inside = text.partition("(")
    if bracket and inside.endswith(")") and (kind := known.kinds.get(name)) and kind.takes == "model":
        return PartSpec(name, _model(inside[:-1].strip(), known))
    name, colon, value = text.partition(":")
    kind = known.kinds.get(name)
    if kind is not None and kind.takes == "layer":
        if colon and not (value.isascii() and value.isdigit() and int(value) > 0):
            raise ValueError(f"{value!r} is no number of layers")
        return PartSpec(name, layer=int(value or 0))
    if kind is not None and kind.takes == "nothing" and not colon:
        return PartSpec(name)
    for name, why in known.broken.items():
        if text == name or text.startswith((f"{name}(", f"{name}:")):
            raise InvalidInput(f"the drafter {name} cannot be loaded: {why}", "mend or uninstall its package")
    return PartSpec(MODEL, _model(text, known))


def _model(text: str, known: Registry) -> str:
    """Return a model's name without its prefix. Raises ValueError for an unmarked name of another meaning."""
    marked = text.startswith(f"{MODEL}:")
    text = text.removeprefix(f"{MODEL}:").strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        marked, text = True, text[1:-1]
    if not text:
        raise ValueError("a model's name is missing")
    if not marked and text in (AUTO, NONE):
        raise ValueError(f"{text!r} stands alone")
    if not marked and text in known.kinds:
        usage = known.kinds[text].usage
        raise ValueError(f"{text!r} names the drafter {usage}; a model of that name is {MODEL}:{text}")
    return text


def _says(text: str, part: PartSpec) -> bool:
    """Return whether `parse` takes this text as that part."""
    try:
        return parse(text).parts == (part,)
    except InvalidInput:
        return False
