"""Error handling of the examples: one line for errors that a user can fix, and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable

from specport.errors import SpecportError
from specport.models.os_errors import cause


def run(main: Callable[[], None]) -> None:
    """Run an example, and exit with 2 after such an error and with 130 after Ctrl-C."""
    try:
        main()
    except SpecportError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, or one that cannot be written
        print("{} ({})".format(*cause(error)), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        sys.exit(130)
