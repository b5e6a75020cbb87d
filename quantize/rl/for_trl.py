"""Let TRL's `GRPOTrainer` write its rollouts with a pipeline: `rollout_func`.

Imports nothing of TRL (1.16). The trainer's model is copied into the pipeline once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from specport.quantize.rl.rollouts import generate

from specport.errors import InvalidInput
from specport.options import GenerationOptions
from specport.pipeline import Pipeline

RolloutFunc = Callable[[list[Any], Any], dict[str, Any]]
_PREFIXES = ("module.", "_orig_mod.")  # of wrappers around a model


def rollout_func(pipeline: Pipeline) -> RolloutFunc:
    """Return what `GRPOTrainer(rollout_func=...)` takes.

    It gets one prompt for each completion, a text or messages, and follows the trainer's temperature, top_p,
    top_k, min_p, repetition_penalty and max_completion_length. Log-probabilities are those at temperature 1
    without cut-offs; with other settings none are returned (None).
    """
    state = {"step": -1, "calls": 0}

    def write(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        if trainer.state.global_step != state["step"]:
            model = trainer.accelerator.unwrap_model(trainer.model)
            pipeline.update_weights(weights_of(model))
            state["step"] = trainer.state.global_step
        options = options_of(trainer.args)
        # The samples of one prompt may be shared among processes: equal seeds would write them twice.
        accelerator = trainer.accelerator
        call = state["calls"] * accelerator.num_processes + accelerator.process_index
        seed = (trainer.args.seed << 32) + (call << 16)
        state["calls"] += 1
        return _written(pipeline, prompts, options, seed)

    return write


def weights_of(model: Any) -> dict[str, Any]:
    """Return a trained model's weights by the names of its checkpoint. Raises InvalidInput for adapters."""
    found = {}
    for name, tensor in model.state_dict().items():
        own = name
        for prefix in _PREFIXES:
            own = own.removeprefix(prefix)
        if "lora_" in own or own.startswith("base_model."):
            raise InvalidInput(
                "a model with adapters cannot be copied into a pipeline", "train all its weights"
            )
        found[own] = tensor
    return found


def options_of(args: Any) -> GenerationOptions:
    """Return a trainer's settings of generation."""
    return GenerationOptions.parse(
        {
            "max_new_tokens": args.max_completion_length,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "top_k": max(0, args.top_k or 0),
            "min_p": args.min_p,
            "repetition_penalty": args.repetition_penalty,
            "logprobs": 0,
        }
    )


def _written(
    pipeline: Pipeline, prompts: Sequence[Any], options: GenerationOptions, seed: int
) -> dict[str, Any]:
    own = [replace(options, seed=seed + i) for i in range(len(prompts))]
    generations = [generation for generation, _ in generate(pipeline, prompts, own)]
    plain = (options.temperature, options.top_p, options.top_k, options.min_p, options.repetition_penalty)
    known = plain == (1.0, 1.0, 0, 0.0, 1.0)
    return {
        "prompt_ids": [g.tokens[: g.num_prompt_tokens] for g in generations],
        "completion_ids": [g.tokens[g.num_prompt_tokens :] for g in generations],
        "logprobs": [[entry.logprob for entry in g.token_logprobs] for g in generations] if known else None,
    }
