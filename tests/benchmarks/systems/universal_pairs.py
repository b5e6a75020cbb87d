"""Assistants of another tokenizer: acceptance, cost and speed-up of real pairs; a check of their tokenizers.

    python tests/benchmarks/systems/universal_pairs.py --check
    python tests/benchmarks/systems/universal_pairs.py --tokens 128 --pair TARGET.gguf ASSISTANT.gguf

Without --pair: the pairs of `PAIRS`, as MODELS/NAME/NAME.gguf. Each prompt is answered greedily by plain
decoding and with the assistant under each policy, and all texts must be equal. --check runs no model: it
reads the tokenizers out of the GGUF files, translates random texts both ways and fails where any is lost.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.faults.translation_fuzz import fuzz

from specport.bench.prompts import read_prompts
from specport.core.engine import Engine
from specport.core.planning.planner import Planner
from specport.core.planning.row_plan import Source
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Policy
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.drafters.context import reading_window
from specport.drafters.cross_vocab.translator import Translator
from specport.drafters.cross_vocab.universal import UniversalDrafter
from specport.models.gguf.file import read_header
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.text import gguf_tokenizer
from specport.text.tokenizer import load_tokenizer

CODER, SMALL_CODER = "qwen2.5-coder-1.5b-instruct", "qwen2.5-coder-0.5b-instruct"
SMOL, GEMMA = "smollm2-135m-instruct", "gemma3-270m"
PAIRS = ((CODER, SMOL), (CODER, GEMMA), (GEMMA, SMALL_CODER))  # target, assistant
PROMPTS = Path(__file__).parents[3] / "examples" / "prompts.jsonl"


def check(pairs: list[tuple[Path, Path]], rounds: int) -> None:
    tokenizers = {}
    for path in dict.fromkeys(path for pair in pairs for path in pair):
        with tempfile.TemporaryDirectory() as folder:
            gguf_tokenizer.save(read_header(path), Path(folder))
            tokenizers[path] = load_tokenizer(folder)
    for target, assistant in pairs:
        ours, theirs = tokenizers[target], tokenizers[assistant]
        translator = Translator(ours, theirs)
        sizes = len(ours.table), len(theirs.table)
        shared = int((translator.intersection(*sizes).to_target >= 0).sum())
        began = time.perf_counter()
        tally = fuzz(translator, ours, seed=0, rounds=rounds)
        found = {
            **vars(tally),
            "tokens": sizes,
            "shared": shared,
            "control_tokens": len(translator.to_target),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(f"{target.stem} <- {assistant.stem}: {json.dumps(found)}", flush=True)


def measure(target_path: Path, assistant_path: Path, args: argparse.Namespace) -> None:
    loader = Loader.on(args.device)
    files, target = loader.target(str(target_path), None, True)
    tokenizer = load_tokenizer(files.folder)
    found, draft = loader.draft(str(assistant_path), None, files, tokenizer, target)
    costs, draft_costs = loader.costs(target), loader.costs(draft)
    drafter = UniversalDrafter(
        draft.model, target.model.vocab_size, tokenizer, found.tokenizer, draft.head_tokens,
        window=reading_window(costs, draft_costs),
    )  # fmt: skip
    planner = Planner([Source(drafter, draft_costs)], costs, target.model.capabilities)
    fixed = FirstProposal([drafter], lambda: Fixed(args.draft_tokens))
    policies: dict[str, Policy | None] = {"none": None, "fixed": fixed, "planned": planner}
    prompts = read_prompts(PROMPTS, 1)
    print(f"{files.name} <- {found.files.name} on {cpu_name()}", flush=True)
    tpot: dict[str, list[float]] = {name: [] for name in policies}
    for prompt in prompts:
        message = [{"role": "user", "content": prompt.text}]
        ids = tokenizer.chat(message) if tokenizer.has_chat_template else tokenizer.encode(prompt.text)
        texts = []
        for name, policy in policies.items():
            sequence = Generation(list(ids), SamplingParams(), args.tokens, tokenizer.eos_ids)
            for _ in Engine(target.model, policy).run([sequence]):
                pass
            texts.append(sequence.tokens)
            metrics = sequence.metrics
            tpot[name].append(metrics.tpot_s * 1e3)
            found = {
                "acceptance": round(metrics.acceptance_rate, 3),
                "mean_length": round(metrics.mean_acceptance_length, 2),
                "tpot_ms": round(metrics.tpot_s * 1e3, 1),
                "draft_ms_a_token": round(metrics.draft_s * 1e3 / max(1, metrics.num_draft_tokens), 1),
                "drafted": metrics.num_draft_tokens,
                "tokens": metrics.num_output_tokens,
                "speed_up": round(tpot["none"][-1] / tpot[name][-1], 2),
            }
            print(f"  {prompt.category:16} {name:8} {json.dumps(found)}", flush=True)
        if any(text != texts[0] for text in texts):
            raise SystemExit(f"{prompt.id}: the texts differ")
    speed = {name: round(sum(tpot["none"]) / sum(times), 3) for name, times in tpot.items()}
    print(f"  all prompts: speed-up {json.dumps(speed)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pair", nargs=2, type=Path, action="append", metavar=("TARGET", "ASSISTANT"))
    add("--models", type=Path, default=Path("models"))
    add("--device", default="auto")
    add("--tokens", type=int, default=128)
    add("--draft-tokens", type=int, default=4, help="of the policy fixed")
    add("--check", action="store_true", help="tokenizers only")
    add("--rounds", type=int, default=200, help="of --check")
    args = parser.parse_args()
    own = [tuple(args.models / name / f"{name}.gguf" for name in pair) for pair in PAIRS]
    pairs = [(target, assistant) for target, assistant in args.pair or own]
    if args.check:
        check(pairs, args.rounds)
    else:
        for pair in pairs:
            measure(*pair, args)


if __name__ == "__main__":
    main()
