"""What a hybrid's verify step pays for its states: a state a token against one at the end.

    python tests/benchmarks/models/hybrid_verify.py --draft-tokens 1 2 4 8 16 [--model DIR] [--json OUT.json]

Without --model the model is of Qwen3.5's kind with random weights, about 100 million: 9 layers of gated delta
nets and 3 of attention, made and converted below --work, which keeps it. For each width: the step with a
state behind every token, which can be rolled back to any of them, and the step with one state behind the
last; in turns, with the same tokens and the same logits. And what going back to the middle costs without
those states: the step that follows computes them first. Times are medians in ms, of runtime and own code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from specport.backends.openvino.paged import hybrid
from specport.backends.openvino.paged.hybrid import HybridModel
from specport.quantize import random_model

from specport.conformance.models import tiny
from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader

WARM = 2
SHAPE: dict[str, Any] = {
    "model_type": "qwen3_5_text", "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 12,
    "full_attention_interval": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128,
    "linear_num_key_heads": 8, "linear_num_value_heads": 8, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "vocab_size": 32000,
    "max_position_embeddings": 8192, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip


def made(folder: Path) -> Path:
    """Write a random model of SHAPE with the tiny tokenizer, unless it is there; return its folder."""
    if not (folder / "model.safetensors").is_file():
        random_model.save(folder, SHAPE)
        tiny.save_tokenizer(folder)
    return folder


@contextmanager
def only_the_end() -> Iterator[None]:
    """Let every step write one state, as a prompt's step does."""
    before, hybrid._WIDEST = hybrid._WIDEST, 0
    try:
        yield
    finally:
        hybrid._WIDEST = before


def measured(model: HybridModel, context: int, num: int, count: int) -> dict[str, float]:
    """Return the median ms of each kind of step with `num` draft tokens."""
    ids = np.random.default_rng(num).integers(3, model.vocab_size, context + num + 1).tolist()
    handle = model.open(context + 2 * num + 4)
    model.step([Row(handle, Block.chain(ids[:context]), logits="last")])
    model.commit(handle, range(context))
    block = Block.chain(ids[context:])
    times: dict[str, list[float]] = {"a state a token": [], "one state": [], "going back": []}

    def timed(name: str, act: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = act()
        times[name].append(1e3 * (time.perf_counter() - began))
        return found

    def step() -> Any:
        return np.array(to_host(model.step([Row(handle, block)]).logits))

    for _ in range(WARM + count):
        every = timed("a state a token", step)
        model.commit(handle, ())
        with only_the_end():
            end = timed("one state", step)
            model.commit(handle, range(len(block) // 2))
            timed("going back", step)
            model.truncate(handle, context)
        assert np.array_equal(every, end), "logits depend on which states are written"
    model.close(handle)
    return {name: statistics.median(values[WARM:]) for name, values in times.items()}


def report(found: Mapping[int, Mapping[str, float]]) -> Iterator[str]:
    names = [*next(iter(found.values()))]
    yield f"{'draft tokens':>12}" + "".join(f"{name:>18}" for name in names) + f"{'overhead':>10}"
    for num, times in found.items():
        every, end, _ = times.values()
        yield f"{num:>12}" + "".join(f"{ms:>15.2f} ms" for ms in times.values()) + f"{every / end - 1:>10.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, help="a hybrid (default: a random one)")
    parser.add_argument("--work", type=Path, default=Path("hybrid_verify"), help="folder of the random one")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    loader = Loader.on(options.device, options.threads)
    spec = options.model or made(options.work)
    _, loaded = loader.target(str(spec), options.precision, not options.fast)
    model = loaded.model
    assert isinstance(model, HybridModel), "this model is no hybrid"
    print(f"{cpu_name()}, {loader.profile.name}; a state takes {model.states.bytes_for(1) / 1e6:.2f} MB")
    found = {num: measured(model, options.context, num, options.rounds) for num in options.draft_tokens}
    for line in report(found):
        print(line)
    if options.json:
        facts = {"processor": cpu_name(), "precision": options.precision, "context": options.context}
        options.json.write_text(json.dumps({**facts, "ms": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
