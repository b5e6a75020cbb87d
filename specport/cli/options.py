"""Options that several commands share, and a filter for those that the user set.

The library owns defaults and ranges: an option that is not given is not passed on. The help texts name the
defaults; a test compares them with the library's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from specport.drafters.registry import help_text

if TYPE_CHECKING:
    from specport.cli.parsing import Parser

    Subparsers = argparse._SubParsersAction[Parser]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what to run and where: the arguments of `specport.load`."""
    model = add_target_options(parser)
    _adder(model)(
        "--max-context",
        type=int,
        metavar="N",
        help="most tokens of prompt plus answer (default: the model's)",
    )
    _adder(model)(
        "--cache-memory", metavar="SIZE",
        help="most memory of the target's key/value cache: 4GB, or 30%% of free memory (default: 40%%)",
    )  # fmt: skip
    prefixes = model.add_mutually_exclusive_group()
    _adder(prefixes)(
        "--prefix-cache", metavar="DIR",
        help="keep what was read of prompts in this folder: a later run with the same system prompt or "
        "document starts at once (default: in memory only)",
    )  # fmt: skip
    prefixes.add_argument(
        "--no-prefix-cache", action="store_false", dest="prefix_cache", default=None,
        help="read every prompt from its beginning",
    )  # fmt: skip
    _adder(model)(
        "--prefix-cache-size", metavar="SIZE",
        help="most bytes in that folder; the least recently used go first (default: 4GB)",
    )  # fmt: skip
    draft = parser.add_argument_group("drafting")
    add_draft_options(draft)
    _adder(draft)(
        "--draft-device", metavar="DEVICE", help="device of the draft model (default: the target's)"
    )
    add_retrieval_options(draft)
    add = _adder(draft)
    add(
        "--policy",
        metavar="{planned,fixed,heuristic,confidence,classifier}",
        help="how to choose the number of draft tokens (default: the device's); planned = by expected speed",
    )
    add(
        "--num-draft-tokens", type=int, metavar="N",
        help="draft tokens per round: constant (fixed), initial (heuristic), maximum (others)",
    )  # fmt: skip
    add(
        "--branches", type=_branches, metavar="N,N,...",
        help="draft a tree: children per node at depth 1, 2, ... as in 3,2,1 (needs --policy fixed)",
    )  # fmt: skip
    add(
        "--acceptance",
        metavar="{rejection,block,match}",
        help="acceptance rule for sampling (default: rejection); match: a seed gives the text without drafts",
    )
    add(
        "--verify", metavar="{lossless,tiered:TA,TE,entropy:H}",
        help="who accepts drafted tokens: the target (default: lossless), or a slim verifier where a token "
        "is at least TA times as likely as its likeliest one (below TE the target decides), or where its "
        "entropy is below H nats",
    )  # fmt: skip
    add("--lossy", action="store_true", help="agree that the text may differ from the target's, for --verify")
    add(
        "--verifier", metavar="DIR",
        help="slim verifier of `specport quantize verifier` (default: the one built last for the model)",
    )  # fmt: skip


def add_target_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the target and its device; return the group of these options."""
    model = parser.add_argument_group("model and device")
    add = _adder(model)
    add(
        "--model", metavar="MODEL",
        help="hub id (org/name), Hugging Face folder, folder with OpenVINO IR, or .gguf file "
        "(default: SmolLM2-135M-Instruct, downloaded and converted once)",
    )  # fmt: skip
    add_precision(model, "--precision", "weight format of a converted model (default: the device's)")
    add("--device", metavar="DEVICE", help="name from `specport devices`, or a profile file (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    exactness = model.add_mutually_exclusive_group()
    exactness.add_argument(
        "--exact", action="store_true", default=None,
        help="output equals plain decoding, token for token (default)",
    )  # fmt: skip
    exactness.add_argument(
        "--fast", action="store_false", dest="exact", default=None,
        help="faster kernels and caches; near-ties may be decided differently",
    )  # fmt: skip
    add_trust_option(model)
    return model


def add_draft_options(parser: argparse._ActionsContainer) -> None:
    """Add the drafters and the weight format of a draft model."""
    add = _adder(parser)
    add(
        "--draft", metavar="DRAFT", help=help_text().replace("%", "%%"),
    )  # fmt: skip
    add_precision(parser, "--draft-precision", "weight format of the draft model (default: the device's)")


def add_retrieval_options(parser: argparse._ActionsContainer) -> None:
    """Add the text sources of the drafter suffix besides the current text."""
    add = _adder(parser)
    add(
        "--history", metavar="DIR",
        help="folder where --draft suffix keeps generated text for later runs; safe to delete",
    )  # fmt: skip
    add(
        "--datastore", metavar="DIR",
        help="datastore for --draft suffix, from `specport datastore build`",
    )  # fmt: skip


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """Add a target and the model that its draft is made from."""
    group = parser.add_argument_group("model and device")
    add = _adder(group)
    add("--target", metavar="MODEL", help="the model to draft for, as for specport run --model")
    add("--from", dest="source", metavar="MODEL", help="model to make the draft from (default: the target)")
    add_precision(group, "--precision", "weight format of the target (default: the device's)")
    add_precision(group, "--draft-precision", "weight format of the draft (default: the device's)")
    add_device_options(group)


def add_device_options(parser: argparse._ActionsContainer) -> None:
    """Add the device options of commands that build and measure."""
    add = _adder(parser)
    add("--device", metavar="DEVICE", help="a name from `specport devices` (default: auto)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: the runtime's choice)")
    add_trust_option(parser)


def add_cluster_option(parser: argparse._ActionsContainer) -> None:
    """Add where training text is written."""
    _adder(parser)(
        "--ray", dest="cluster", nargs="?", const="", metavar="ADDRESS",
        help="write the training text on a Ray cluster (extra ray): host:port, auto for the one that this "
        "machine is part of, nothing for processes here with --threads cores each; machines must be alike",
    )  # fmt: skip


def add_precision(parser: argparse._ActionsContainer, name: str, help: str) -> None:
    """Add an option for a weight format. `quantize compare --help` lists the suboptions after the colon."""
    _adder(parser)(
        name,
        metavar="{fp32,bf16,fp16,int8,int4}",
        help=f"{help}; int4:128, int4:channel,awq and more: specport quantize compare --help",
    )


def add_trust_option(parser: argparse._ActionsContainer) -> None:
    """Add the permission to run a model's own code."""
    _adder(parser)(
        "--trust-remote-code", action="store_true",
        help="let a Hugging Face model run its own Python code while it is converted",
    )  # fmt: skip


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add how to generate: the fields of `specport.options.GenerationOptions`."""
    add = _adder(parser.add_argument_group("generation (names as in transformers' GenerationConfig)"))
    add("--max-new-tokens", type=int, metavar="N", help="most tokens of the answer (default: 256)")
    add("--temperature", type=float, metavar="T", help="0 = greedy (default: 0.0)")
    add("--top-k", type=int, metavar="K", help="sample from the K most likely tokens; 0 is off (default: 0)")
    add(
        "--top-p", type=float, metavar="P",
        help="sample from the most likely tokens whose probabilities sum to P; 1 is off (default: 1.0)",
    )  # fmt: skip
    add(
        "--min-p", type=float, metavar="P",
        help="sample from tokens at least P times as likely as the top one; 0 is off (default: 0.0)",
    )  # fmt: skip
    add(
        "--repetition-penalty", type=float, metavar="X",
        help="above 1, earlier tokens become less likely (default: 1.0)",
    )  # fmt: skip
    add(
        "--frequency-penalty", type=float, metavar="X",
        help="lower a token's logit by this for each time that the answer has it, -2 to 2 (default: 0.0)",
    )  # fmt: skip
    add(
        "--presence-penalty", type=float, metavar="X",
        help="lower a token's logit by this once the answer has it, -2 to 2 (default: 0.0)",
    )  # fmt: skip
    add(
        "--logit-bias", type=_bias, action="append", metavar="ID:X",
        help="add X, -100 to 100, to the logit of token ID; repeatable",
    )  # fmt: skip
    add("--seed", type=int, metavar="N", help="seed for reproducible sampling")
    add(
        "--min-new-tokens", type=int, metavar="N",
        help="no end token before the answer has N tokens (default: 0)",
    )  # fmt: skip
    add("--ignore-eos", action="store_true", help="go on where the model ends its answer")
    add(
        "--stop", action="append", metavar="TEXT",
        help="end the answer where this text appears; repeatable",
    )  # fmt: skip
    add("--system", metavar="TEXT", help="system message before the prompt")
    add("--raw", action="store_true", help="no chat template: continue the prompt as it is")
    add(
        "--logprobs", type=int, metavar="N",
        help="with --json: log-probability of each token and of the N likeliest in its place (0 to 20), from "
        "the target's logits before penalties and temperature",
    )  # fmt: skip


def add_grammar_options(parser: argparse.ArgumentParser) -> None:
    """Add what the answer is held to: one grammar."""
    group = parser.add_argument_group("structured output (the answer is held to a grammar; one of these)")
    add = _adder(group.add_mutually_exclusive_group())
    add("--json-schema", metavar="FILE|JSON", help="JSON that is valid by this JSON schema")
    add("--json-object", action="store_true", help="any JSON object")
    add("--regex", metavar="RE", help="a text that matches this regular expression as a whole")
    add("--grammar", metavar="FILE", help="a text of this Lark grammar, whose rule `start` is the whole text")


def add_diffusion_options(parser: argparse.ArgumentParser) -> None:
    """Add how a diffusion model decodes: the fields of `specport.diffusion.options.DiffusionOptions`."""
    add = _adder(parser.add_argument_group("diffusion models (--model names one; docs/diffusion.md)"))
    add("--block-length", type=int, metavar="N", help="tokens of a block (default: the model's)")
    add(
        "--denoising-steps", dest="steps", type=int, metavar="N",
        help="steps that reveal a block (default: one for each token)",
    )  # fmt: skip
    add(
        "--reveal-above", dest="threshold", type=float, metavar="P",
        help="reveal all tokens at once that the model gives more than this probability",
    )  # fmt: skip
    add(
        "--reveal-order", dest="order", metavar="{confidence,position}",
        help="the surest token first, or from left to right (default: confidence; position with a draft)",
    )  # fmt: skip
    add(
        "--verify-layout", dest="layout", metavar="{released,same-step,grouped}",
        help="what judges a drafted block; released is that of the published code, which leaks "
        "(default: grouped)",
    )  # fmt: skip


PAIR_OPTIONS = ("device", "precision", "draft_precision", "threads", "trust_remote_code")
LOAD_OPTIONS = (
    "draft", "device", "draft_device", "precision", "draft_precision", "exact", "policy", "num_draft_tokens",
    "branches", "acceptance", "verify", "lossy", "verifier", "history", "datastore", "threads",
    "max_context", "cache_memory", "prefix_cache", "prefix_cache_size", "trust_remote_code",
)  # fmt: skip
GENERATION_OPTIONS = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty",
    "presence_penalty", "logit_bias", "seed", "min_new_tokens", "ignore_eos", "stop", "system", "raw",
    "logprobs",
)  # fmt: skip
DIFFUSION_OPTIONS = ("block_length", "steps", "threshold", "order", "layout")


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the options of `names` that the user set."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def _adder(group: argparse._ActionsContainer) -> Callable[..., Any]:
    """Return a function that adds options without defaults of their own."""

    def add(*names: str, **options: Any) -> None:
        # An option that is not given is None, or absent where a parent command may have set it.
        group.add_argument(*names, default=group.argument_default, **options)

    return add


def _branches(text: str) -> tuple[int, ...]:
    """Return the children per node of a text like "3,2,1"."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers like 3,2,1") from None


def _bias(text: str) -> tuple[int, float]:
    """Return the token id and the amount of a text like "42:-5"."""
    token, _, amount = text.partition(":")
    try:
        return int(token), float(amount)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a token id and an amount like 42:-5") from None
