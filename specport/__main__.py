"""`python -m specport` is the `specport` command."""

import sys

from specport.cli import main

if __name__ == "__main__":
    sys.exit(main())
