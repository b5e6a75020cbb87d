"""Options that several commands share, and what the user set of them.

Defaults and ranges belong to the library: an option that is not given is not passed on. The help names
the defaults; a test compares them with the library's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from specport.errors import InvalidInput

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction["Parser"]


class _Help(argparse.RawDescriptionHelpFormatter):
    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        # argparse forgets that subcommands are indented, and breaks the line behind the longest name.
        if isinstance(action, argparse._SubParsersAction):
            longest = max(map(len, action.choices), default=0)
            self._action_max_length = max(self._action_max_length, longest + 2 * self._indent_increment)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like all others of specport."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", _Help)
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(message, f"see {self.prog} --help")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What to run and where: the arguments of `specport.load`."""
    model = add_target_options(parser)
    _adder(model)(
        "--max-context", type=int, metavar="N", help="most tokens, prompt and answer (default: the model's)"
    )
    draft = parser.add_argument_group("drafting")
    add_draft_options(draft)
    _adder(draft)(
        "--draft-device", metavar="DEVICE", help="where the draft model runs (default: where the target does)"
    )
    add_retrieval_options(draft)
    add = _adder(draft)
    add(
        "--policy",
        metavar="{planned,fixed,heuristic,confidence,classifier}",
        help="how the number of draft tokens is chosen (default: the device's; planned = as many as pay)",
    )
    add(
        "--num-draft-tokens", type=int, metavar="N",
        help="draft tokens a round: always (fixed), at first (heuristic), at most (all others)",
    )  # fmt: skip
    add(
        "--branches", type=_branches, metavar="N,N,...",
        help="draft a tree: children of each node at depth 1, 2, ... as in 3,2,1 (needs --policy fixed)",
    )  # fmt: skip
    add("--acceptance", metavar="{rejection,block}", help="rule for sampled text (default: rejection)")


def add_target_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The target and its device; returns the group they are in."""
    model = parser.add_argument_group("model and device")
    add = _adder(model)
    add(
        "--model", metavar="MODEL",
        help="hub id (org/name), Hugging Face folder, folder with OpenVINO IR, or .gguf file "
        "(default: SmolLM2-135M-Instruct, fetched and converted once)",
    )  # fmt: skip
    add_precision(model, "--precision", "weights of a converted model (default: the device's)")
    add(
        "--device", metavar="DEVICE", help="a name from `specport devices`, or a profile file (default: auto)"
    )
    add("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    exactness = model.add_mutually_exclusive_group()
    exactness.add_argument(
        "--exact", action="store_true", default=None,
        help="the text is the one that plain decoding gives, token for token (default)",
    )  # fmt: skip
    exactness.add_argument(
        "--fast", action="store_false", dest="exact", default=None,
        help="kernels and caches that may decide near-ties differently",
    )  # fmt: skip
    add_trust_option(model)
    return model


def add_draft_options(parser: argparse._ActionsContainer) -> None:
    """The drafters, and the weights of a draft model."""
    add = _adder(parser)
    add(
        "--draft", metavar="DRAFT",
        help="auto, none, ngram (repeats what the text said before), suffix (what most often followed, here "
        "and in earlier texts), recycle (what the target found likely before), a model as for --model, "
        "universal(MODEL) for one of another tokenizer, graft(MODEL), early-exit:E (the model's own first E "
        "layers), or several like 'suffix|MODEL': whichever pays better (default: auto)",
    )  # fmt: skip
    add_precision(parser, "--draft-precision", "weights of the draft model (default: the device's)")


def add_retrieval_options(parser: argparse._ActionsContainer) -> None:
    """What the drafter suffix looks into beside the text itself."""
    add = _adder(parser)
    add(
        "--history", metavar="DIR",
        help="where --draft suffix keeps what was written, for later runs; delete it as you like",
    )  # fmt: skip
    add(
        "--datastore", metavar="DIR",
        help="your own files for --draft suffix, from `specport datastore build`",
    )  # fmt: skip


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """A target, and what a draft for it is made from."""
    group = parser.add_argument_group("model and device")
    add = _adder(group)
    add("--target", metavar="MODEL", help="the model to draft for, as for specport run --model")
    add("--from", dest="source", metavar="MODEL", help="what the draft is made from (default: the target)")
    add_precision(group, "--precision", "the target's weights (default: the device's)")
    add_precision(group, "--draft-precision", "the draft's weights (default: the device's)")
    add_device_options(group)


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Where to work, for commands that build and measure."""
    add = _adder(parser)
    add("--device", metavar="DEVICE", help="a name from `specport devices` (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    add_trust_option(parser)


def add_precision(parser: argparse._ActionsContainer, name: str, help: str) -> None:
    """An option for how weights are stored. What may stand behind a colon is listed by `quantize compare`."""
    _adder(parser)(
        name,
        metavar="{fp32,bf16,fp16,int8,int4}",
        help=f"{help}; int4:asym,awq and more: specport quantize compare --help",
    )


def add_trust_option(parser: argparse._ActionsContainer) -> None:
    _adder(parser)(
        "--trust-remote-code", action="store_true",
        help="let a Hugging Face model run its own Python code while it is converted",
    )  # fmt: skip


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """How to generate: the fields of `specport.api.GenerationOptions`."""
    add = _adder(parser.add_argument_group("generation (names as in transformers' GenerationConfig)"))
    add("--max-new-tokens", type=int, metavar="N", help="length limit of the answer (default: 256)")
    add("--temperature", type=float, metavar="T", help="0 takes the likeliest token always (default: 0.0)")
    add("--top-k", type=int, metavar="K", help="sample from the K likeliest tokens; 0 is off (default: 0)")
    add(
        "--top-p", type=float, metavar="P",
        help="sample from the likeliest tokens that reach probability P together; 1 is off (default: 1.0)",
    )  # fmt: skip
    add(
        "--min-p", type=float, metavar="P",
        help="sample from tokens at least P times as likely as the likeliest; 0 is off (default: 0.0)",
    )  # fmt: skip
    add(
        "--repetition-penalty", type=float, metavar="X",
        help="above 1, tokens that occurred before become less likely (default: 1.0)",
    )  # fmt: skip
    add("--seed", type=int, metavar="N", help="makes sampling repeatable")
    add(
        "--stop", action="append", metavar="TEXT",
        help="end the answer where this text appears; may be given several times",
    )  # fmt: skip
    add("--system", metavar="TEXT", help="system message in front of the prompt")
    add("--raw", action="store_true", help="no chat template: the model continues the prompt as it stands")


PAIR_OPTIONS = ("device", "precision", "draft_precision", "threads", "trust_remote_code")
LOAD_OPTIONS = (
    "draft", "device", "draft_device", "precision", "draft_precision", "exact", "policy", "num_draft_tokens",
    "branches", "acceptance", "history", "datastore", "threads", "max_context", "trust_remote_code",
)  # fmt: skip
GENERATION_OPTIONS = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop",
    "system", "raw",
)  # fmt: skip


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of `names` that the user set."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _adder(group: argparse._ActionsContainer) -> Callable[..., Any]:
    def add(*names: str, **options: Any) -> None:
        # Not given is None; or no entry at all, where a command in front may have set it.
        group.add_argument(*names, default=group.argument_default, **options)

    return add


def _branches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 3,2,1") from None
