"""`specport run`: generate from one prompt, or chat with `--chat`."""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import specport
from specport.cli import options, terminal
from specport.cli.run import pairs
from specport.cli.run.render import Printer
from specport.errors import InvalidInput
from specport.outside import read_given
from specport.outside.places import expanded
from specport.runtime.versions import installed

if TYPE_CHECKING:
    from specport.options import GenerationOptions
    from specport.pipeline import Pipeline
    from specport.text.grammar.grammar import Grammar

EXAMPLES = """\
examples:
  specport run "Explain speculative decoding to a child."
  specport run --model Qwen/Qwen2.5-1.5B-Instruct --draft 'ngram|Qwen/Qwen2.5-0.5B-Instruct' "Write a haiku"
  specport run --show-drafts --prompt-file article.txt --system "Summarise the text."
  git diff | specport run --max-new-tokens 80 --json
  specport run --chat --temperature 0.7 --seed 1
  specport run --json-schema person.json "Invent a person."
  specport run --explain "Write the numbers from 1 to 30, one a line"

Only the answer goes to stdout; notes, progress and the summary line go to stderr.
"""
_MOST_BYTES = 64 << 20  # of a text file
NO_PROMPT = 'give a text, as in: specport run "Hello"'
# Packages whose versions go into the JSON report, where installed.
PACKAGES = ("openvino", "torch", "transformers", "optimum-intel", "nncf", "tokenizers", "numpy")


def add_parser(subparsers: options.Subparsers) -> None:
    parser = subparsers.add_parser(
        "run", help="generate text, or chat", epilog=EXAMPLES,
        description="Generate text with speculative decoding, or chat.",
    )  # fmt: skip
    parser.add_argument(
        "prompt", nargs="?", metavar="PROMPT", help="the prompt; - or nothing reads it from stdin"
    )
    parser.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file")
    parser.add_argument(
        "--chat", action="store_true", help="chat turn by turn; with piped stdin, one turn per line"
    )
    options.add_model_options(parser)
    parser.add_argument(
        "--pair-threshold", type=float, metavar="X",
        help="for a model of `specport quantize pipo` (lossy): keep a second token from this confidence on; "
        "above 1 never (default: the model's, 0.95)",
    )  # fmt: skip
    options.add_generation_options(parser)
    options.add_grammar_options(parser)
    options.add_diffusion_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--show-drafts", action="store_true", help="mark each piece of text with the drafter that proposed it"
    )
    output.add_argument(
        "--json", action="store_true", help="print one JSON object on stdout instead of the text"
    )
    output.add_argument(
        "--explain", action="store_true",
        help="print where the time went, what each drafter brought, and whether speculation paid",
    )  # fmt: skip
    output.add_argument("--quiet", action="store_true", help="print only the answer and errors")


def run(args: argparse.Namespace) -> int:
    if args.chat:
        _refuse(args.json, "--json cannot be combined with --chat")
        _refuse(args.raw, "--raw cannot be combined with --chat: a conversation needs the chat template")
    _refuse(args.logprobs is not None and not args.json, "--logprobs needs --json", "add --json")
    prompt = _prompt(args)
    # Reject bad options now, not after a model was downloaded and converted.
    from specport.options import GenerationOptions

    given = options.given(args, options.GENERATION_OPTIONS)
    generation = GenerationOptions(**given, grammar=_grammar(args))
    with closing(_load(args)) as pipeline:
        if args.chat:
            return _chat(args, pipeline, generation, prompt)
        assert prompt is not None  # only a chat may start without a prompt
        return (_print_json if args.json else _print_text)(args, pipeline, generation, prompt)


def _load(args: argparse.Namespace) -> Pipeline:
    from specport.models.kinds.pipo import is_pair_folder

    given = options.given(args, options.LOAD_OPTIONS)
    if diffusion := options.given(args, options.DIFFUSION_OPTIONS):
        from specport.diffusion.options import DiffusionOptions

        given["diffusion"] = DiffusionOptions(**diffusion)
    with terminal.progress(args.quiet) as progress:
        if is_pair_folder(args.model):
            return pairs.load(args, progress)
        _refuse(
            args.pair_threshold is not None,
            "--pair-threshold applies to pair models only",
            "make one with: specport quantize pipo",
        )
        return specport.load(args.model, **given, progress=progress)


def _print_text(
    args: argparse.Namespace, pipeline: Pipeline, generation: GenerationOptions, prompt: str
) -> int:
    printer = _introduce(args, pipeline)
    result = printer.answer(pipeline.stream(prompt, **vars(generation)))
    printer.summary(result)
    return 130 if result.finish_reason == "cancelled" else 0


def _chat(
    args: argparse.Namespace, pipeline: Pipeline, generation: GenerationOptions, first: str | None
) -> int:
    from specport.cli.run.chat import converse

    printer = _introduce(args, pipeline)
    with closing(pipeline.chat(**vars(generation))) as chat:
        return converse(chat, printer, first)


def _introduce(args: argparse.Namespace, pipeline: Pipeline) -> Printer:
    """Print what was loaded and its notes; return the printer for the answers."""
    printer = Printer(quiet=args.quiet, show_drafts=args.show_drafts, explain=args.explain)
    printer.note(
        f"{pipeline.model_name} on {pipeline.device_name}, draft {pipeline.draft_name}, {pipeline.mode}"
    )
    for note in pipeline.notes:
        printer.note(f"note: {note}")
    printer.legend(pipeline.draft_name)
    return printer


def _print_json(
    args: argparse.Namespace, pipeline: Pipeline, generation: GenerationOptions, prompt: str
) -> int:
    stream = pipeline.stream(prompt, **vars(generation))
    with terminal.on_ctrl_c(stream.cancel):
        spans = [span for chunk in stream for span in chunk.spans]
    result = stream.result
    report: dict[str, Any] = {
        "text": result.text,
        "token_ids": result.token_ids,
        "prompt_token_ids": result.prompt_token_ids,
        "finish_reason": result.finish_reason,
        "metrics": result.metrics.as_dict(),
        "settings": {
            "model": pipeline.model_name,
            "device": pipeline.device_name,
            "draft": pipeline.draft_name,
            "exact": pipeline.exact,
            "lossy": pipeline.lossy,
            "options": {"model": args.model, **options.given(args, options.LOAD_OPTIONS)},
            "diffusion": options.given(args, options.DIFFUSION_OPTIONS),
            "generation": asdict(generation),
        },
        "notes": pipeline.notes,
        "versions": {**installed(PACKAGES), "python": platform.python_version()},
    }
    if args.show_drafts:
        report["spans"] = spans
    if args.explain:
        report["explain"] = result.explain().as_dict()
    if generation.logprobs is not None:
        from specport.text.logprobs import as_dict

        report["logprobs"] = [as_dict(entry, pipeline.tokenizer) for entry in result.logprobs]
    terminal.write(json.dumps(report) + "\n")
    return 130 if result.finish_reason == "cancelled" else 0


def _prompt(args: argparse.Namespace) -> str | None:
    """Return the prompt from PROMPT, --prompt-file or stdin; None where a chat starts without one.

    Raises InvalidInput where there are two prompts, none, or an empty one.
    """
    if args.prompt is not None and args.prompt_file is not None:
        raise InvalidInput("two prompts were given", "give either PROMPT or --prompt-file")
    given = args.prompt if args.prompt != "-" else None
    if args.chat and given is None and args.prompt_file is None:  # stdin is the conversation
        return None
    text = given if given is not None else _read_prompt(args)
    _refuse(not text.strip(), "the prompt is empty", NO_PROMPT)
    return text


def _read_prompt(args: argparse.Namespace) -> str:
    """Return the prompt from a file or from stdin."""
    if args.prompt_file is not None:
        text = _read_file(args.prompt_file, "the prompt file")
    elif args.prompt is None and sys.stdin.isatty():
        raise InvalidInput("no prompt was given", NO_PROMPT)
    else:
        text = terminal.decoded(sys.stdin.read)
    # The last line end belongs to the file, not to the message.
    return text if args.raw else text.rstrip("\r\n")


def _grammar(args: argparse.Namespace) -> Grammar | None:
    """Return the grammar that the options give; None where there is none. Raises InvalidInput."""
    if not (args.json_object or args.json_schema or args.regex or args.grammar):
        return None
    from specport.text.grammar.grammar import Grammar

    if args.json_object:
        return Grammar.json_object()
    if args.json_schema:
        text = args.json_schema.strip()
        return Grammar.json_schema(text if text.startswith("{") else _read_file(text, "the JSON schema"))
    return Grammar.regex(args.regex) if args.regex else Grammar.lark(_read_file(args.grammar, "the grammar"))


def _read_file(name: str, what: str) -> str:
    path = expanded(name)
    try:
        return "\n".join(re.split("\r\n|\r", read_given(path, _MOST_BYTES).decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"cannot read {what} {path}: {reason}") from error


def _refuse(wrong: bool, message: str, hint: str = "") -> None:
    """Raise InvalidInput if `wrong`."""
    if wrong:
        raise InvalidInput(message, hint)
