"""Heals a draft on a machine with a GPU, in minutes; a bundle is then built from it where it is to run.

    python examples/heal_on_gpu.py --target target.gguf --source sibling.gguf --without 12 13 --mlp 0.36 \
        --head-tokens 16384 --prompts prompts.jsonl --out healed
    specport quantize --target target.gguf --from healed --precision int4 --device xeon --out draft

The target answers the prompts, the source is pruned, fitted and trained on that. Both may be Hugging Face
folders or GGUF files; without --source the draft is cut from the target itself. Needs torch, transformers
and accelerate. Text that is there is not written again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import ending
from specport.quantize.convert import export
from specport.quantize.text import teacher, torch_text
from specport.quantize.train.heal import heal

from specport.bench.prompts import read_prompts
from specport.calibration import heads
from specport.errors import InvalidInput
from specport.models import bundle
from specport.progress import Progress, part, progress_bar
from specport.text.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Heal a draft on a GPU.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="what the draft is cut from; without it, the target")
    parser.add_argument("--prompts", type=Path, required=True, help="as for specport bench")
    parser.add_argument("--without", type=int, nargs="*", default=[], help="numbers of the layers to drop")
    parser.add_argument("--mlp", type=float, default=1.0, help="share of the feed-forward channels to keep")
    parser.add_argument("--head-tokens", type=int, default=16_384)
    parser.add_argument("--precision", default="int4:asym", help="what the draft will be stored in")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--processes", type=int, default=3, help="that write text beside each other")
    parser.add_argument("--work", type=Path, help="folder of the text; without it, OUT.partial")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.out.exists():
        raise InvalidInput(f"{args.out} is there already", "choose another --out, or remove it first")
    with progress_bar() as progress:
        run(args, progress)


def run(args: argparse.Namespace, progress: Progress) -> None:
    work = args.work or args.out.with_name(args.out.name + ".partial")
    target, shards = work / "target", sorted((work / "text").glob("*.npz"))
    if not shards:
        if not (target / "tokenizer.json").is_file():
            target.mkdir(parents=True, exist_ok=True)
            export.save(args.target, target, "bf16", progress=part(progress, 0.0, 0.1))
        turns = [prompt.text for prompt in read_prompts(args.prompts, None, ())]
        shards = torch_text.write(
            target, turns, work / "text", processes=args.processes, progress=part(progress, 0.1, 0.4)
        )
    tokenizer = load_tokenizer(target)
    seen = teacher.token_counts(shards)
    vocab = json.loads((target / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    always = {*tokenizer.special_ids, *tokenizer.eos_ids}
    head = bundle.ranges(heads.kept_ids(args.head_tokens, vocab, always, seen))
    names = ("epochs", "learning_rate", "batch_tokens", "precision")
    healed = heal(
        str(args.source or target), str(args.out.with_name(args.out.name + ".partial")), str(args.out),
        args.without, args.mlp, head, [str(path) for path in shards],
        {name: getattr(args, name) for name in names}, False, part(progress, 0.4, 1.0),
    )  # fmt: skip
    print(f"{args.out}: agreement {healed['agreement_before']:.1%} to {healed['agreement']:.1%}")


if __name__ == "__main__":
    ending.run(main)
