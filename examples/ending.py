"""How an example ends: what a user can mend in one line, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from specport.errors import SpecportError


def run(main: Callable[[], None]) -> None:
    try:
        main()
    except SpecportError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
