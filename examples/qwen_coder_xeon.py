"""Drafts for Qwen2.5-Coder-1.5B INT4, pruned from its sibling of 0.5B and fitted to it.

    python examples/qwen_coder_xeon.py --target qwen2.5-coder-1.5b.gguf --source qwen2.5-coder-0.5b.gguf

Both may be hub ids, Hugging Face folders or GGUF files. On 2 cores the target writes for an hour, and a draft
takes ten minutes, or an hour and a half with --epochs 1. Run the same command again to resume.
"""

from __future__ import annotations

import draft_sweep
import ending
from specport.quantize.request import Request


def main() -> None:
    parser = draft_sweep.arguments("Pruned and fitted drafts.", (22, 16, 10), 240_000, mlp=0.36)
    parser.add_argument("--target", default="Qwen/Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--source", default="Qwen/Qwen2.5-Coder-0.5B-Instruct")
    args = parser.parse_args()
    request = Request(
        distil_tokens=args.distil,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
        mlp=args.mlp,
        head_tokens=16_384,
    )
    out = args.out / "qwen-coder"
    drafts = draft_sweep.sweep(
        args.target, args.source, args.layers, request, out, args.device, precision="int4"
    )
    draft_sweep.report(drafts, out, "Qwen2.5-Coder-1.5B INT4, drafts from the 0.5B")


if __name__ == "__main__":
    ending.run(main)
