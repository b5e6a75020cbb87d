"""The draft head that comes with specport for its default model, SmolLM2-135M-Instruct.

python examples/shipped_head.py --out specport/shipped/smollm2-135m-instruct

The model writes the text that its head learns from: answers to the prompts, if there are any, and to turns
that it makes up. Run the same command again to resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ending
from specport.quantize.heads.recurrent import Request, build

from specport.bench.prompts import read_prompts
from specport.cli.quantize.inspect import show
from specport.models import bundle
from specport.models.kinds.recurrent import WEIGHTS
from specport.progress import progress_bar

HEAD_TOKENS = 12_288  # ids that it can draft
MOST_BYTES = 15 << 20  # of the weights in a package that everyone downloads


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the head that comes with specport.")
    parser.add_argument("--out", type=Path, default=Path("smollm2-135m-instruct"), help="folder of the head")
    parser.add_argument("--distil", type=int, default=400_000, help="tokens that the model writes")
    parser.add_argument("--epochs", type=float, default=4.0, help="training passes over each text")
    parser.add_argument("--prompts", type=Path, help="prompts to answer, as for specport bench")
    args = parser.parse_args()
    own = tuple(prompt.text for prompt in read_prompts(args.prompts)) if args.prompts else ()
    if not args.out.exists():
        request = Request(args.distil, own, head_tokens=HEAD_TOKENS, epochs=args.epochs)
        with progress_bar() as progress:
            build(None, args.out, request, progress=progress)
    show(bundle.read(args.out, thorough=True))
    size = (args.out / WEIGHTS).stat().st_size
    print(f"{size / 2**20:.1f} MiB of weights" + (": too many to be shipped" if size > MOST_BYTES else ""))


if __name__ == "__main__":
    ending.run(main)
