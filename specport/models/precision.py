"""Parse weight formats as users write them: `int8`, `int4:128`, `int4:channel,asym,awq`.

The only place that knows this grammar. Help, errors, caches and bundles use its table and its text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from specport.errors import InvalidInput

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")
TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # as torch names them
# What a backend loads (`registry.Backend.weights`) -> its precisions.
STORED = {"ir": ("fp32", "fp16", "int8", "int4"), "huggingface": tuple(TORCH_DTYPES)}
CHANNEL = -1  # one group per output channel
INT4_GROUP = 64
# option name -> (precisions that support it, description); `form` has how each is written
OPTIONS = {
    "group": (
        ("int4",),
        f"weights per scale (default {INT4_GROUP}); a power of two "
        "is reduced for layers that it does not divide",
    ),
    "channel": (("int4",), "one scale per output channel, which is the whole row of a weight"),
    "asym": (("int4",), "one zero point per scale"),
    "sym": (("int8", "int4"), "no zero points, embeddings and head included; required by an NPU"),
    "ratio": (("int4",), "share of the layers in int4 (default 1); the most sensitive stay int8"),
    "awq": (("int4",), "activation-aware scaling of weights (AWQ); needs calibration text"),
    "scale-estimation": (("int4",), "scales fitted to each layer's output; needs calibration text"),
    "gptq": (("int4",), "rounding fitted to each layer's output (GPTQ); needs calibration text, slow"),
    "activations": (("int8",), "activations in int8 too, smoothed (SmoothQuant); needs calibration text"),
}
# At most three digits of a ratio, so that parsing and printing agree. A share of 0 (int8) is not valid.
_NUMBER = {"group": re.compile(r"[1-9]\d{0,4}"), "ratio": re.compile(r"0?\.(?!0+$)\d{1,3}|1(\.0+)?")}
_EARLIER = {"group=-1": "channel"}  # as bundles and recipes of earlier versions have it


@dataclass(frozen=True)
class Precision:
    """Hold a weight format.

    base:    one of PRECISIONS.
    options: the options after the colon, in the order of OPTIONS.
    Equal precisions have equal text, which names them in the cache and in a bundle.
    """

    base: str
    options: tuple[str, ...] = ()
    group: int = INT4_GROUP
    ratio: float = 1.0

    def __str__(self) -> str:
        told = {"group": f"{self.group}", "ratio": f"ratio={self.ratio:g}"}
        return self.base + ":" * bool(self.options) + ",".join(told.get(name, name) for name in self.options)

    @property
    def symmetric(self) -> bool:
        """Whether no weight has a zero point."""
        return not self.base.startswith("int") or "sym" in self.options

    @property
    def needs_text(self) -> bool:
        """Whether it is fitted to calibration text."""
        return bool({"awq", "scale-estimation", "gptq", "activations"} & {*self.options})


def stored(text: str, weights: str) -> Precision:
    """Return the parsed precision of weights that a device loads as "ir" or "huggingface" files.

    Raises InvalidInput, also for one that such files cannot have.
    """
    wanted = parse(text)
    if wanted.base not in STORED[weights]:
        kinds = ", ".join(STORED[weights])
        raise InvalidInput(f"this device does not run {wanted} weights", f"choose one of {kinds}")
    return wanted


@cache
def parse(text: str) -> Precision:
    """Return the parsed precision. Raises InvalidInput."""
    base, colon, rest = text.partition(":")
    if base not in PRECISIONS or (colon and not rest):
        raise InvalidInput(f"unknown precision {text!r}", f"choose one of {', '.join(PRECISIONS)}")
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = _long(part).partition("=")
        allowed = OPTIONS.get(name, ((), ""))[0]
        pattern = _NUMBER.get(name)
        if base not in allowed or name in given:
            what = "stands twice" if name in given else f"is not an option of {base}"
            raise InvalidInput(f"precision {text!r}: {name!r} {what}", _more(base))
        if not (pattern.fullmatch(value) if pattern else not equals):
            hint = f"write it as {form(name)}: {OPTIONS[name][1]}" if pattern else f"write it as {name}"
            raise InvalidInput(f"precision {text!r}: {part!r} cannot be read", hint)
        given[name] = value
    for one, other in (("asym", "sym"), ("group", "channel")):
        if one in given and other in given:
            raise InvalidInput(f"precision {text!r}: {one} and {other} exclude each other", "choose one")
    group = CHANNEL if "channel" in given else int(given.get("group", INT4_GROUP))
    ratio = float(given.get("ratio", 1.0))
    if group == INT4_GROUP:
        given.pop("group", None)
    if ratio == 1.0:
        given.pop("ratio", None)
    return Precision(base, tuple(name for name in OPTIONS if name in given), group, ratio)


def form(name: str) -> str:
    """Return how an option is written, for help texts: `N` for a group, `ratio=R`, else its name."""
    return {"group": "N", "ratio": "ratio=R"}.get(name, name)


def options_of(base: str) -> list[str]:
    """Return how each option of a precision is written."""
    return [form(name) for name, (bases, _) in OPTIONS.items() if base in bases]


def with_zero_points(text: str) -> str:
    """Return the precision, with `asym` added to INT4 that states neither. Raises InvalidInput."""
    given = parse(text)
    if given.base != "int4" or {"sym", "asym"} & {*given.options}:
        return text
    return str(parse(f"{text}{',' if given.options else ':'}asym"))


def _long(part: str) -> str:
    """Return an option in the form NAME or NAME=VALUE."""
    return f"group={part}" if part.isascii() and part.isdigit() else _EARLIER.get(part, part)


def _more(base: str) -> str:
    names = options_of(base)
    return f"options of {base} are {', '.join(names)}" if names else f"{base} has no options"
