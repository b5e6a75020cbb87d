"""The command line: finds the subcommand, and turns its errors into exit codes.

Knows which subcommands there are, nothing of what they do. Exit codes: 0 done, 1 done and a check
failed (matrix), 2 a mistake the user can mend (said in one line), 130 stopped by Ctrl-C, 141 the reader
of the output went away.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

import specport
from specport.cli import terminal
from specport.cli.options import Parser
from specport.errors import SpecportError

# Each module has add_parser(subparsers) and run(args) -> exit code, and imports nothing heavy itself.
COMMANDS = {
    "run": "specport.cli.run",
    "calibrate": "specport.cli.calibrate",
    "bench": "specport.cli.bench",
    "quantize": "specport.cli.quantize",
    "devices": "specport.cli.devices",
    "models": "specport.cli.models",
    "datastore": "specport.cli.datastore",
    "matrix": "specport.cli.matrix",
}
EXAMPLES = """\
examples:
  specport run "Explain speculative decoding to a child."
  specport run --chat --device xeon
  specport calibrate --device xeon      measure what a step costs here; run then plans with it
  specport devices                      what this machine can run on, and what is missing
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Anything but a user's mistake keeps its traceback."""
    terminal.prepare_streams()
    try:
        return _dispatch([*(sys.argv[1:] if argv is None else argv)])
    except SpecportError as error:
        terminal.complain(str(error))
        return 2
    except KeyboardInterrupt:
        terminal.stopped()
        return 130
    except BrokenPipeError:
        return 141
    finally:
        terminal.release_streams()


def _dispatch(arguments: list[str]) -> int:
    # Only the command that is asked for is imported; the overview needs all of them.
    asked = [arguments[0]] if arguments and arguments[0] in COMMANDS else [*COMMANDS]
    modules = {name: importlib.import_module(COMMANDS[name]) for name in asked}
    parser = _parser(modules.values())
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    return int(modules[args.command].run(args))


def _parser(modules: Iterable[ModuleType]) -> Parser:
    parser = Parser(
        "specport", description="Speculative decoding that runs, and pays, on any hardware.", epilog=EXAMPLES
    )
    parser.add_argument("--version", action="version", version=f"specport {specport.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for module in modules:
        module.add_parser(subparsers)
    return parser
