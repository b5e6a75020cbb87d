"""`python -m support.faults.smaller ARGUMENTS`: specport with short training texts and quick measurements.

Nothing else differs: the tests that kill commands would wait for texts that tiny models write.
"""

from __future__ import annotations

import sys

from specport.quantize.evaluate import quick_costs
from specport.quantize.text import turns, writer

from specport.cli import main

if __name__ == "__main__":
    turns.SHARD, writer.ANSWER_TOKENS, quick_costs.BUDGET_S = 4, 16, 0.5
    sys.exit(main())
