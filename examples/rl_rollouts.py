"""Reinforcement learning (GRPO) whose rollouts specport writes with speculation.

python examples/rl_rollouts.py --draft ngram --out rl-ngram
python examples/rl_rollouts.py --trl --draft ngram --out rl-trl

The model learns to add, to count and to repeat a word; programs compute the rewards. Its weights are
replaced in the engine after each update; the draft stays as it is. Run the same command again to resume.
Samples keep the model's law; exact mode, which makes greedy text equal to the bit, would only cost time here.
With --trl, TRL's GRPOTrainer trains (pip install 'specport[rl]'), and specport writes its rollouts; such a
run starts anew each time.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import ending
from safetensors import SafetensorError
from specport.quantize.rl import record, report
from specport.quantize.rl.for_trl import rollout_func
from specport.quantize.rl.learner import Learner
from specport.quantize.rl.loop import Recipe, train
from specport.quantize.rl.tasks import KINDS, tasks

import specport
from specport.errors import InvalidInput, ModelError, SpecportError
from specport.models.atomic import new_folder, remove_stale_folders, replace_folder
from specport.models.os_errors import cause
from specport.pipeline import Pipeline
from specport.progress import progress_bar
from specport.runtime.loading import Loader

_PRECISIONS = ("fp32", "bf16")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train a model by GRPO on rollouts that specport writes with speculation.",
        epilog="Run the same command again to resume (not with --trl). --draft none is plain decoding.",
    )
    parser.add_argument(
        "--model", help="Hugging Face folder, hub id or .gguf; default: SmolLM2-135M-Instruct"
    )
    parser.add_argument("--draft", default="ngram", help="as for specport run (default: ngram)")
    parser.add_argument(
        "--num-draft-tokens", type=int, default=3, help="draft tokens of a round (default: 3)"
    )
    parser.add_argument("--device", default="torch-cpu", help="a torch device (default: torch-cpu)")
    parser.add_argument(
        "--precision", choices=_PRECISIONS, default="bf16", help="of the engine (default: bf16)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("rl-out"), help="folder of the run (default: rl-out)"
    )
    parser.add_argument("--steps", type=int, default=60, help="updates (default: 60)")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of a step (default: 4)")
    parser.add_argument("--samples", type=int, default=4, help="samples of a prompt (default: 4)")
    parser.add_argument("--max-new-tokens", type=int, default=48, help="of a sample (default: 48)")
    parser.add_argument("--learning-rate", type=float, default=5e-6, help="(default: 5e-6)")
    parser.add_argument("--tasks", default=",".join(KINDS), help=f"of {', '.join(KINDS)} (default: all)")
    parser.add_argument(
        "--compare", type=int, default=1, metavar="N",
        help="time as many tokens without drafts after every N steps; 0 = never (default: 1)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="processor threads (default: torch's choice)")
    parser.add_argument("--trl", action="store_true", help="train with TRL's GRPOTrainer; does not resume")
    args = parser.parse_args()
    if args.prompts < 1:
        parser.error("--prompts must be 1 or more")
    return args


def main() -> None:
    args = parse()
    recipe = Recipe(args.steps, args.samples, args.max_new_tokens, args.compare, args.seed)
    kinds = tuple(args.tasks.split(","))
    tasks(kinds, 1, 0, 0)  # an unknown kind is said before anything is loaded
    with progress_bar() as progress:
        loader = Loader.on(args.device, threads=args.threads, progress=progress)
        files = loader.files(args.model, args.precision)
        pipeline = specport.load(
            args.model, draft=args.draft, device=args.device, precision=args.precision, threads=args.threads,
            policy="fixed", num_draft_tokens=args.num_draft_tokens, prefix_cache=False, exact=False,
            progress=progress,
        )  # fmt: skip
        if pipeline.engine.model.weight_updates is None:
            raise InvalidInput(f"{args.device} cannot replace weights", "choose --device torch-cpu or cuda")
        if args.trl:
            model: Any = with_trl(pipeline, files.folder, args, kinds)
        else:
            place = "cuda" if loader.profile.device == "cuda" else "cpu"
            learner = Learner(
                files.folder, learning_rate=args.learning_rate, mixed=args.precision == "bf16", device=place
            )
            facts = (args.tasks, str(args.prompts), files.fingerprint, str(args.num_draft_tokens))
            train(
                pipeline, learner, partial(tasks, kinds, args.prompts, args.seed), recipe, args.out, *facts,
                progress=progress,
            )  # fmt: skip
            model = learner.model
    save(model, files.folder, args.out / "model")
    if not args.trl:
        print(report.table({args.out.name: record.read(args.out)}))
    print(f"specport run --model {args.out / 'model'} --device {args.device} 'What is 7 + 5?'")


def with_trl(pipeline: Pipeline, folder: Path, args: argparse.Namespace, kinds: tuple[str, ...]) -> Any:
    """Train with TRL's GRPOTrainer; return its model."""
    try:
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer
    except ImportError as error:
        raise SpecportError("TRL is not installed", "pip install 'specport[rl]'") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    every = [task for step in range(args.steps) for task in tasks(kinds, args.prompts, args.seed, step)]
    rewards = {task.prompt: task.reward for task in every}

    def reward(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        return [
            rewards[p[-1]["content"]](c[-1]["content"]) for p, c in zip(prompts, completions, strict=True)
        ]

    config = GRPOConfig(
        output_dir=str(args.out), max_steps=args.steps, num_generations=args.samples,
        per_device_train_batch_size=args.prompts * args.samples, max_completion_length=args.max_new_tokens,
        learning_rate=args.learning_rate, lr_scheduler_type="constant", temperature=1.0, beta=0.0,
        logging_steps=1, save_strategy="no", report_to="none", seed=args.seed, bf16=False,
        use_cpu=args.device.endswith("cpu"), gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32", use_safetensors=True, local_files_only=True, trust_remote_code=False
        ),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": p}]} for p in rewards]),
        processing_class=AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
        rollout_func=rollout_func(pipeline),
    )
    trainer.train()
    return trainer.model


def save(model: Any, source: Path, out: Path) -> None:
    """Write the trained model as a Hugging Face folder, with the tokenizer of the one that it was.

    The folder is replaced as a whole: a run that is killed here leaves no half of a model.
    """
    remove_stale_folders(out.parent, f".{out.name}")
    new = new_folder(out.parent, f".{out.name}")
    try:
        model.save_pretrained(new)
        _copy_tokenizer(source, new)
        replace_folder(new, out)
    except (OSError, SafetensorError) as error:
        message, hint = cause(error)
        raise ModelError(f"cannot write {out}: {message}", hint) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _copy_tokenizer(source: Path, new: Path) -> None:
    for path in source.iterdir():
        if (
            path.is_file()
            and path.suffix in (".json", ".jinja", ".txt", ".model")
            and not path.name.endswith(".index.json")  # of the source's shards
            and not (new / path.name).exists()
        ):
            shutil.copyfile(path, new / path.name)


if __name__ == "__main__":
    ending.run(main)
