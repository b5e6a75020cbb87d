"""Drafts cut from the target itself: SmolLM2-135M-Instruct, which specport downloads by itself.

python examples/smollm2_self.py                    # fitted only, minutes per draft
python examples/smollm2_self.py --layers 8 --distil 20000
"""

from __future__ import annotations

import draft_sweep
import ending
from specport.quantize.request import Request


def main() -> None:
    args = draft_sweep.arguments("A draft cut from the target itself.", (20, 12, 8, 6), 60_000).parse_args()
    request = Request(
        distil_tokens=args.distil, epochs=args.epochs, learning_rate=args.learning_rate, mlp=args.mlp
    )
    drafts = draft_sweep.sweep(None, None, args.layers, request, args.out / "smollm2-self", args.device)
    draft_sweep.report(drafts, args.out / "smollm2-self", "SmolLM2-135M INT8, drafts cut from itself")


if __name__ == "__main__":
    ending.run(main)
