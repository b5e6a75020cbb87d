"""Registry of the kinds of drafters: name, argument, help and builder of each.

The table is the single source of the command line's help, the README's table and the error messages. Other
packages add kinds in the entry-point group `specport.drafters`: an entry point's name is the kind's name, its
object a `DrafterKind`. Nothing heavy is imported before a drafter is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from specport.core.planning.row_plan import Source
    from specport.drafters.context import BuildContext

GROUP = "specport.drafters"
NGRAM, SUFFIX, RECYCLE = "ngram", "suffix", "recycle"
MODEL, UNIVERSAL, GRAFT = "model", "universal", "graft"
EARLY_EXIT, MTP = "early-exit", "mtp"
AUTO, NONE = "auto", "none"  # expressions that are not kinds
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class DrafterKind:
    """Describe a kind of drafter.

    name:      as written in a draft expression.
    takes:     the argument in the expression: nothing, a model as in "name(MODEL)", or a number of the
               target's layers as in "name:E", which may be omitted if it is calibrated.
    proposes, needs, pays_when: cells of its row in the help.
    build:     makes the drafter, with the costs of its steps. Raises SpecportError.
    same_tokenizer: whether the model must have the target's tokenizer.
    """

    name: str
    takes: Literal["nothing", "model", "layer"]
    proposes: str
    needs: str
    pays_when: str
    build: Callable[[BuildContext], Source]
    same_tokenizer: bool = True

    @property
    def usage(self) -> str:
        """Return its syntax in a draft expression."""
        if self.name == MODEL:
            return "MODEL"
        return self.name + {"nothing": "", "model": "(MODEL)", "layer": ":E"}[self.takes]


@dataclass(frozen=True)
class Registry:
    """Hold the available kinds of drafters, built-in ones first. broken: name -> why it was not loaded."""

    kinds: dict[str, DrafterKind]
    broken: dict[str, str]

    @property
    def usages(self) -> str:
        """Return a one-line summary of the syntax of draft expressions."""
        known = ", ".join(kind.usage for kind in self.kinds.values())
        return f"{NONE}, {AUTO}, {known}, or several of them like 'suffix|MODEL'"


def registry() -> Registry:
    """Return all kinds of drafters: the built-in ones and those of installed packages."""
    from importlib.metadata import entry_points

    kinds, broken = dict(BUILT_IN), {}
    for point in entry_points(group=GROUP):
        try:
            if point.name in kinds or point.name in (AUTO, NONE):
                raise ValueError(f"the name {point.name!r} is taken")
            if not _NAME.fullmatch(point.name):
                raise ValueError("a name is made of letters, digits and . _ -")
            kind = point.load()
            if not isinstance(kind, DrafterKind):
                raise TypeError(f"a {type(kind).__name__} is no DrafterKind")
            kinds[point.name] = replace(kind, name=point.name)
        except (Exception, SystemExit) as error:  # third-party code may do anything; other kinds stay usable
            broken[point.name] = f"{type(error).__name__}: {error}"
    return Registry(kinds, broken)


def help_text() -> str:
    """Return the command line's help for a draft expression: built-in kinds, so that nothing is loaded."""
    kinds = "; ".join(f"{kind.usage}: {kind.proposes}" for kind in BUILT_IN.values()).replace("`", "")
    return (
        f"{NONE}, {AUTO} (what tune chose, else suffix and the draft built for this model) or what drafts. "
        f"{kinds}. Several, like 'suffix|MODEL': whichever pays better (default: auto)"
    )


def markdown_table() -> str:
    """Return the README's table: the built-in kinds, and common combinations."""
    rows = [("`--draft`", "proposes", "needs", "pays when"), ("---",) * 4]
    for kind in BUILT_IN.values():
        usage = f"`'{kind.usage}'`" if "(" in kind.usage else f"`{kind.usage}`"
        usage = f"`{AUTO}` (default), {usage}" if kind.name == SUFFIX else usage
        rows.append((usage, kind.proposes, kind.needs, kind.pays_when))
    both = r"`'ngram\|MODEL'`, `'suffix\|MODEL'`"
    rows.append((both, "whichever of the two pays better now", "the same tokenizer", "text partly repeats"))
    rows.append((f"`{NONE}`", "nothing: plain decoding", "", ""))
    return "\n".join(re.sub(" {2,}", " ", f"| {' | '.join(row)} |") for row in rows)


def _build(function: str, context: BuildContext) -> Source:
    """Build a built-in drafter, whose module is imported only now."""
    source: Source = getattr(import_module("specport.drafters.builtin"), function)(context)
    return source


_KINDS = (
    DrafterKind(
        name=NGRAM,
        takes="nothing",
        proposes="what followed the same words before",
        needs="nothing",
        pays_when="the answer repeats its input: summaries, code edits, RAG",
        build=partial(_build, "ngram"),
    ),
    DrafterKind(
        name=SUFFIX,
        takes="nothing",
        proposes="what most often followed the same words: here, in earlier answers (`--history DIR` keeps "
        "them), in your files (`--datastore DIR`)",
        needs="nothing",
        pays_when="tasks resemble each other: agents, repeated questions, code",
        build=partial(_build, "suffix"),
    ),
    DrafterKind(
        name=MODEL,
        takes="model",
        proposes="the greedy or sampled text of a smaller model",
        needs="the same tokenizer",
        pays_when="the draft is ten times cheaper than the target",
        build=partial(_build, "model"),
    ),
    DrafterKind(
        name=RECYCLE,
        takes="nothing",
        proposes="the successors that the target found likely when it last saw a token",
        needs="nothing",
        pays_when="steps are cheap and text is new",
        build=partial(_build, "recycle"),
    ),
    DrafterKind(
        name=UNIVERSAL,
        takes="model",
        proposes="a model of another tokenizer, its draft translated",
        needs="nothing",
        pays_when="no draft of the target's family is at hand",
        build=partial(_build, "universal"),
        same_tokenizer=False,
    ),
    DrafterKind(
        name=GRAFT,
        takes="model",
        proposes="a tree of the model's, pruned where it is unsure, filled with retrieved tokens",
        needs="the same tokenizer, trees",
        pays_when="wide steps are cheap",
        build=partial(_build, "graft"),
    ),
    DrafterKind(
        name=EARLY_EXIT,
        takes="layer",
        proposes="what the model's own first E layers would say; `specport calibrate --draft early-exit` "
        "finds E",
        needs="a model trained for it (`specport quantize layerskip`), OpenVINO's paged path or torch",
        pays_when="memory is short: there is no second model",
        build=partial(_build, "early_exit"),
    ),
    DrafterKind(
        name=MTP,
        takes="nothing",
        proposes="what the model's own weights for multi-token prediction say",
        needs="a Hugging Face folder that has them (Qwen3.5, DeepSeek-V3, GLM-4.5, MiMo), OpenVINO's paged "
        "path or torch",
        pays_when="the model ships with them; for others, `specport quantize mtp` trains a head, which is "
        "named as a MODEL",
        build=partial(_build, "mtp"),
    ),
)
BUILT_IN = {kind.name: kind for kind in _KINDS}
