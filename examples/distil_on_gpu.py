"""Distils a draft on a machine with a GPU; the bundle is then built on the device where it will run.

    python examples/distil_on_gpu.py --target target.gguf --source sibling.gguf --without 12 13 --mlp 0.36 \
        --head-tokens 16384 --prompts prompts.jsonl --out distilled
    specport quantize --target target.gguf --from distilled --precision int4 --device xeon --out draft

The target answers the prompts; the source is pruned, fitted and trained on the answers. Both may be Hugging
Face folders or GGUF files; without --source the draft is cut from the target itself. Needs torch,
transformers and accelerate. Existing text is not written again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ending
from specport.quantize.convert import export
from specport.quantize.text import dialogues
from specport.quantize.text.shards import write_shards
from specport.quantize.train.draft import distil_draft

from specport.bench.prompts import read_prompts
from specport.calibration import heads
from specport.jobs import workdir
from specport.models import bundle
from specport.progress import Progress, part, progress_bar
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description="Distil a draft on a GPU.")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--source", type=Path, help="model to cut the draft from (default: the target)")
    parser.add_argument("--prompts", type=Path, required=True, help="as for specport bench")
    parser.add_argument("--without", type=int, nargs="*", default=[], help="numbers of the layers to drop")
    parser.add_argument("--mlp", type=float, default=1.0, help="share of the feed-forward channels to keep")
    parser.add_argument("--head-tokens", type=int, default=16_384)
    parser.add_argument("--precision", default="int4:asym", help="precision of the stored draft")
    parser.add_argument("--parallel", type=int, default=0, help="tokens of one pass (default: 0, one each)")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--device", default="cuda", help="where the target writes, as for specport run")
    parser.add_argument("--at-once", type=int, default=256, help="texts that share a step of the target")
    parser.add_argument("--work", type=Path, help="working directory (default: OUT.partial)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    workdir.check_new(args.out)
    with progress_bar() as progress:
        run(args, progress)


def run(args: argparse.Namespace, progress: Progress) -> None:
    work = args.work or workdir.path_for(args.out)
    target = work / "target"
    if not (target / "tokenizer.json").is_file():
        target.mkdir(parents=True, exist_ok=True)
        export.save(args.target, target, "bf16", progress=part(progress, 0.0, 0.1))
    tokenizer = load_tokenizer(target)
    turns = [prompt.text for prompt in read_prompts(args.prompts, None, ())]
    shards = write_shards(
        lambda: Loader.on(args.device).target(str(target), None, exact=False)[1].model, tokenizer,
        work / "text", None, 0, turns, part(progress, 0.1, 0.4), at_once=args.at_once,
    )  # fmt: skip
    seen = dialogues.token_counts(shards)
    always = {*tokenizer.special_ids, *tokenizer.eos_ids}
    head = bundle.ranges(heads.kept_ids(args.head_tokens, tokenizer.vocab_size, always, seen))
    names = ("epochs", "learning_rate", "batch_tokens", "precision", "parallel")
    facts = distil_draft(
        str(args.source or target), str(workdir.path_for(args.out)), str(args.out),
        args.without, args.mlp, head, [str(path) for path in shards],
        {name: getattr(args, name) for name in names}, False, part(progress, 0.4, 1.0), tokenizer.vocab_size,
    )  # fmt: skip
    print(f"{args.out}: agreement {facts['agreement_before']:.1%} to {facts['agreement']:.1%}")


if __name__ == "__main__":
    ending.run(main)
