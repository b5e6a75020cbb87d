"""Parse weight formats as users write them: `int8`, `int4`, `int4:asym,group=128,awq`."""

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
# option name -> (precisions that support it, description)
OPTIONS = {
    "asym": (("int4",), "one zero point per group"),
    "sym": (("int8", "int4"), "no zero points, embeddings and head included; required by an NPU"),
    "group": (
        ("int4",),
        f"group=N: weights per scale (default {INT4_GROUP}), -1 = one channel; a power of two "
        "is reduced for layers that it does not divide",
    ),
    "ratio": (("int4",), "ratio=R: share of the layers in int4 (default 1), the others int8"),
    "awq": (("int4",), "activation-aware scaling of weights (AWQ); needs calibration text"),
    "scale-estimation": (("int4",), "scales fitted to each layer's output; needs calibration text"),
    "gptq": (("int4",), "rounding fitted to each layer's output (GPTQ); needs calibration text, slow"),
    "activations": (("int8",), "activations in int8 too, smoothed (SmoothQuant); needs calibration text"),
}
# At most three digits, so that parsing and printing agree. A share of 0 (int8) is not valid.
_NUMBER = {"group": re.compile(r"-1|[1-9]\d{0,4}"), "ratio": re.compile(r"0?\.(?!0+$)\d{1,3}|1(\.0+)?")}


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
        told = {"group": f"group={self.group}", "ratio": f"ratio={self.ratio:g}"}
        return self.base + ":" * bool(self.options) + ",".join(told.get(name, name) for name in self.options)

    @property
    def symmetric(self) -> bool:
        """Whether no weight has a zero point."""
        return not self.base.startswith("int") or "sym" in self.options

    @property
    def needs_text(self) -> bool:
        """Whether it is fitted to calibration text."""
        return bool({"awq", "scale-estimation", "gptq", "activations"} & {*self.options})


@cache
def parse(text: str) -> Precision:
    """Return the parsed precision. Raises InvalidInput."""
    base, colon, rest = text.partition(":")
    if base not in PRECISIONS or (colon and not rest):
        raise InvalidInput(f"unknown precision {text!r}", f"choose one of {', '.join(PRECISIONS)}")
    given: dict[str, str] = {}
    for part in rest.split(",") if rest else ():
        name, equals, value = part.partition("=")
        allowed = OPTIONS.get(name, ((), ""))[0]
        pattern = _NUMBER.get(name)
        if base not in allowed or name in given:
            what = "stands twice" if name in given else f"is not an option of {base}"
            raise InvalidInput(f"precision {text!r}: {name!r} {what}", _more(base))
        if not (pattern.fullmatch(value) if pattern else not equals):
            hint = OPTIONS[name][1] if pattern else f"write it as {name}"
            raise InvalidInput(f"precision {text!r}: {part!r} cannot be read", hint)
        given[name] = value
    if "asym" in given and "sym" in given:
        raise InvalidInput(f"precision {text!r}: asym and sym exclude each other", "choose one")
    group, ratio = int(given.get("group", INT4_GROUP)), float(given.get("ratio", 1.0))
    if group == INT4_GROUP:
        given.pop("group", None)
    if ratio == 1.0:
        given.pop("ratio", None)
    return Precision(base, tuple(name for name in OPTIONS if name in given), group, ratio)


def with_zero_points(text: str) -> str:
    """Return the precision, with `asym` added to INT4 that states neither. Raises InvalidInput."""
    given = parse(text)
    if given.base != "int4" or {"sym", "asym"} & {*given.options}:
        return text
    return str(parse(f"{text}{',' if given.options else ':'}asym"))


def _more(base: str) -> str:
    names = [name for name, (bases, _) in OPTIONS.items() if base in bases]
    return f"options of {base} are {', '.join(names)}" if names else f"{base} has no options"
