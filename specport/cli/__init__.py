"""Command line: run a subcommand and turn its errors into exit codes.

This module knows the names of the subcommands only. Exit codes: 0 done; 1 done, but a check failed (matrix);
2 an error that the user can fix (printed on one line); 130 stopped by Ctrl-C; 141 the reader of the output
closed the pipe; 128 + N ended by signal N, with the same things kept as after Ctrl-C.
"""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType

import specport
from specport.cli import terminal
from specport.cli.parsing import Parser
from specport.errors import SpecportError

# Each module has add_parser(subparsers) and run(args) -> exit code, and imports nothing heavy at load.
COMMANDS = {
    "run": "specport.cli.run.command",
    "transcribe": "specport.cli.transcribe.command",
    "serve": "specport.cli.serve.command",
    "tune": "specport.cli.tune.command",
    "calibrate": "specport.cli.calibrate",
    "bench": "specport.cli.bench",
    "quantize": "specport.cli.quantize.command",
    "adapt": "specport.cli.adapt",
    "devices": "specport.cli.devices",
    "models": "specport.cli.models",
    "datastore": "specport.cli.datastore",
    "matrix": "specport.cli.matrix",
}
EXAMPLES = """\
examples:
  specport run "Explain speculative decoding to a child."
  specport run --chat --device xeon
  specport transcribe talk.mp3          what was said, with Whisper and a draft
  specport serve                        OpenAI's HTTP API on http://127.0.0.1:8000/v1
  specport tune --budget 10m            find what is fastest here; run uses it
  specport calibrate --device xeon      measure step times on this machine for the planner of run
  specport devices                      list the devices of this machine, and what is missing
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Only errors that are bugs keep their traceback."""
    terminal.prepare_streams()
    try:
        with terminal.ending():
            code = _dispatch([*(sys.argv[1:] if argv is None else argv)])
        number = terminal.ended()
        return code if code != 130 or number is None else 128 + number
    except SpecportError as error:
        terminal.complain(str(error))
        return 2
    except KeyboardInterrupt as stop:
        terminal.stopped()
        return 128 + (stop.number if isinstance(stop, terminal.Ended) else signal.SIGINT)
    except BrokenPipeError:
        return 141
    except OSError as error:  # a full disk, a name that is too long, a folder that was deleted meanwhile
        from specport.models.os_errors import cause

        terminal.complain("{} ({})".format(*cause(error)))
        return 2
    finally:
        terminal.release_streams()


def _dispatch(arguments: list[str]) -> int:
    # Import only the requested command. The overview needs all of them.
    asked = [arguments[0]] if arguments and arguments[0] in COMMANDS else [*COMMANDS]
    modules = {name: importlib.import_module(COMMANDS[name]) for name in asked}
    parser = make_parser(modules.values())
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 2
    return int(modules[args.command].run(args))


def make_parser(modules: Iterable[ModuleType]) -> Parser:
    """Return the parser of the whole command line, with the commands of these modules."""
    parser = Parser("specport", description="Speculative decoding on any hardware.", epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"specport {specport.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for module in modules:
        module.add_parser(subparsers)
    return parser
