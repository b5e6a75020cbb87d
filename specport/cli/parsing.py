"""The argument parser: the format of its help, and its errors: one line each, with what to do next."""

from __future__ import annotations

import argparse
import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from specport.errors import InvalidInput

# What argparse says (Python 3.10 to 3.13), and what is said instead. Names of arguments may be "-q/--quiet".
_WORDS = (
    (r"argument (?P<name>COMMAND|ACTION): invalid choice: '?(?P<value>.*?)'? \(choose from (?P<known>.*)\)",
     "there is no command {value!r}{near}"),
    (r"argument (?P<name>.+?): invalid choice: '?(?P<value>.*?)'? \(choose from (?P<known>.*)\)",
     "{name} is {value!r}; it must be one of {known}"),
    (r"argument (?P<name>.+?): invalid int value: '(?P<value>.*)'",
     "{name} is {value!r}; it must be a whole number"),
    (r"argument (?P<name>.+?): invalid float value: '(?P<value>.*)'",
     "{name} is {value!r}; it must be a number"),
    (r"argument (?P<name>.+?): expected (?:one|1) argument", "{name} needs a value"),
    (r"argument (?P<name>.+?): expected at least one argument", "{name} needs at least one value"),
    (r"argument (?P<name>.+?): ignored explicit argument '(?P<value>.*)'", "{name} takes no value"),
    (r"argument (?P<name>.+?): not allowed with argument (?P<value>.*)",
     "{name} and {value} exclude each other"),
    (r"the following arguments are required: (?P<name>.*)", "{name} is missing"),
    (r"one of the arguments (?P<name>.*) is required", "one of {name} is needed"),
    (r"argument (?P<name>.+?): (?P<value>.*)", "{name}: {value}"),
)  # fmt: skip


class _Help(argparse.RawDescriptionHelpFormatter):
    """Format help texts; keep descriptions and examples as they are written."""

    def add_argument(self, action: argparse.Action) -> None:
        super().add_argument(action)
        # argparse ignores the indentation of subcommands and would wrap the line of the longest name.
        if isinstance(action, argparse._SubParsersAction):
            longest = max(map(len, action.choices), default=0)
            self._action_max_length = max(self._action_max_length, longest + 2 * self._indent_increment)


def _whole_number(text: str) -> int:
    number = int(text)
    if not -(1 << 63) <= number < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text:.40} is no number of 64 bits")
    return number


def _finite_number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text:.40} is no finite number")
    return number


# argparse names them in its errors.
_whole_number.__name__, _finite_number.__name__ = int.__name__, float.__name__


class Parser(argparse.ArgumentParser):
    """Argument parser that raises InvalidInput, so that its errors are printed on one line."""

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        options.setdefault("formatter_class", _Help)
        super().__init__(prog, allow_abbrev=False, **options)
        self.register("type", int, _whole_number)
        self.register("type", float, _finite_number)
        self.set_defaults(parser=self)  # that of the command which was chosen

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        """Return the arguments. Raises InvalidInput."""
        found, unknown = self.parse_known_args(args, namespace)
        chosen: Parser = found.parser
        if unknown:
            raise chosen._unknown(unknown)
        return found

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(_in_our_words(message), f"see {self.prog} --help")

    def _unknown(self, arguments: Sequence[str]) -> InvalidInput:
        options = [text.partition("=")[0] for text in arguments if text.startswith("-") and len(text) > 1]
        if options:
            near = _near(options[0], self._option_string_actions)
            return InvalidInput(
                f"{self.prog} has no option {options[0]!r:.100}{near}", f"see {self.prog} --help"
            )
        return InvalidInput(
            f"{self.prog} has no use for {arguments[0]!r:.100}",
            f"put a text with blanks in quotes; see {self.prog} --help",
        )


def _in_our_words(message: str) -> str:
    for pattern, words in _WORDS:
        found = re.fullmatch(pattern, message, re.DOTALL)
        if found:
            said = found.groupdict()
            known = [name.strip("'\" ") for name in said.get("known", "").split(",")]
            near = _near(said.get("value", ""), known)
            return words.format(**{**said, "known": ", ".join(known), "near": near})
    return message


def _near(name: str, known: Iterable[str]) -> str:
    """Return a question whether the name that is most like another was meant."""
    begun = [each for each in known if len(name) > 2 and each.startswith(name)]
    like = begun or difflib.get_close_matches(name[:100], known, 1)
    return f"; did you mean {like[0]}?" if like else ""
