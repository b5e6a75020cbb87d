"""New weights for a loaded decoder: the same, to the bit, as one that was loaded with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processes.own_cache import own_cache  # noqa: F401
from support.toys.toy_pipeline import load as load_toy

import specport
from specport.conformance.models.architectures import configuration
from specport.core.arrays import to_host
from specport.core.ports import Block, Row
from specport.errors import DeviceError, InvalidInput
from specport.pipeline import Pipeline
from specport.progress import silent

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402
from specport.backends.torch import experts  # noqa: E402
from specport.backends.torch.weight_updates import Layout, LiveWeights  # noqa: E402
from specport.quantize import random_model  # noqa: E402
from support.tiny import tiny_models, tiny_mtp  # noqa: E402

KINDS = {"tied": ("qwen2", True), "untied": ("llama", False)}
PROMPT = "hello world 12 hello world 12 " * 3
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 40)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Folders of two models that differ in every weight, by kind."""
    found = {}
    for name, (kind, tied) in KINDS.items():
        root = tmp_path_factory.mktemp(name)
        model = tiny_models.save_hf(root / "old", kind, tie_word_embeddings=tied)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        model.save_pretrained(root / "new")
        tiny_models.save_tokenizer(root / "new")
        found[name] = root / "old", root / "new"
    return found


def weights_of(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def loaded(folder: Path, **options: Any) -> Pipeline:
    return specport.load(
        str(folder), **{"device": "torch-cpu", "precision": "fp32", "draft": "ngram"} | options
    )


def logits(pipeline: Pipeline) -> Any:
    model = pipeline.engine.model
    handle = model.open()
    found = to_host(model.step([Row(handle, Block.chain(IDS))]).logits).copy()
    model.close(handle)
    return found


def text(pipeline: Pipeline, prompt: str = PROMPT, **options: Any) -> list[int]:
    return pipeline.generate(
        prompt, **{"max_new_tokens": 24, "raw": True, "ignore_eos": True} | options
    ).token_ids


@pytest.mark.parametrize(
    ("kind", "device", "precision", "exact"),
    [
        ("tied", "torch-cpu", "fp32", True),
        ("untied", "torch-cpu", "bf16", True),
        ("tied", "gaudi-emulated", "fp32", False),  # its graphs were captured with the old weights
    ],
)
def test_it_is_the_model_of_the_new_weights(
    kind: str, device: str, precision: str, exact: bool, pairs: dict[str, tuple[Path, Path]]
) -> None:
    options: dict[str, Any] = {"device": device, "precision": precision, "exact": exact}
    old, new = (loaded(folder, **options) for folder in pairs[kind])
    before = text(old)
    assert before == text(old) != text(new)  # the second one begins in the prefix cache
    old.update_weights(weights_of(pairs[kind][1]))
    assert np.array_equal(logits(old), logits(new))
    assert text(old) == text(new)
    old.update_weights(weights_of(pairs[kind][0]))
    assert text(old) == before


def test_a_part_of_the_weights(pairs: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    old, new = pairs["untied"]
    names = ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"]
    part = {name: tensor for name, tensor in weights_of(new).items() if name in names}
    tiny_models.save_hf(tmp_path, KINDS["untied"][0], tie_word_embeddings=False)
    save_file(weights_of(old) | part, tmp_path / "model.safetensors", metadata={"format": "pt"})
    pipeline = loaded(old)
    pipeline.update_weights({name: tensor.numpy() for name, tensor in part.items()})  # arrays will do
    assert np.array_equal(logits(pipeline), logits(loaded(tmp_path)))


@pytest.mark.parametrize("tied", [True, False])
def test_a_module_for_multi_token_prediction_follows(tied: bool, tmp_path: Path) -> None:
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder in folders:
        tiny_mtp.save(folder, "qwen", agrees=True, tie_word_embeddings=tied)
    stored = weights_of(folders[1])
    rng = torch.Generator().manual_seed(5)
    changed = {
        name: tensor + 0.3 * tensor.std() * torch.randn(tensor.shape, generator=rng)
        for name, tensor in stored.items()
        if name in ("model.embed_tokens.weight", "lm_head.weight")
    }
    save_file(stored | changed, folders[1] / "model.safetensors", metadata={"format": "pt"})
    old, new = (loaded(folder, draft="mtp", policy="fixed", num_draft_tokens=3) for folder in folders)
    text(old)
    old.update_weights(changed)
    mine, want = (p.generate(PROMPT, max_new_tokens=24, raw=True, ignore_eos=True) for p in (old, new))
    assert mine.token_ids == want.token_ids
    # The same drafts, which are made with the target's embeddings and head.
    assert mine.metrics.accepted_per_depth == want.metrics.accepted_per_depth
    assert want.metrics.num_accepted_tokens > 6


def test_texts_that_are_being_written_go_on_with_the_new_weights(pairs: dict[str, tuple[Path, Path]]) -> None:
    old, new = (loaded(folder) for folder in pairs["tied"])
    options = {"max_new_tokens": 24, "raw": True, "ignore_eos": True}
    stream = old.stream(PROMPT, **options)
    next(stream)
    generation = stream._generation
    begun = [*generation.tokens]
    old.update_weights(weights_of(pairs["tied"][1]))
    got = stream.result.token_ids
    engine, count = new.engine, 24 - (len(begun) - generation.num_prompt_tokens)
    rest = type(generation)(begun, generation.params, count)
    for _ in engine.run([rest]):
        pass
    assert stream.result.prompt_token_ids + got == rest.tokens
    assert rest.tokens[: len(begun)] == begun and 0 < count < 24


def test_chats_and_blocks_on_disk_are_those_of_the_new_weights(
    pairs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    old, new = pairs["tied"]
    options: dict[str, Any] = {"prefix_cache": tmp_path}
    first, second, third = loaded(old, **options), loaded(old, **options), loaded(new)
    long = {"system": "hello world " * 20, "max_new_tokens": 12}
    chats = [p.chat(**long) for p in (first, third)]
    said = [chat.send("hello").result for chat in chats]
    for pipeline in (first, second):
        pipeline.update_weights(weights_of(new))
    chats[1] = third.chat(**long)  # the same conversation from the start, all by the new weights
    chats[1].messages[:] = chats[0].messages
    answers = [chat.send("world").result for chat in chats]
    assert answers[0].token_ids == answers[1].token_ids
    assert said[0].token_ids != said[1].token_ids
    assert text(second) == text(third)
    second.close()
    again = loaded(old, **options)  # nothing of the new weights was stored as the old ones'
    assert text(again) == text(loaded(old))


def test_what_does_not_fit_is_refused(pairs: dict[str, tuple[Path, Path]]) -> None:
    pipeline = loaded(pairs["tied"][0])
    before = logits(pipeline)
    good = weights_of(pairs["tied"][1])
    name = "model.layers.0.mlp.up_proj.weight"
    cases = [
        ({**good, "model.gone": good[name]}, "has no weight 'model.gone'"),
        ({**good, name: good[name][:, 1:]}, rf"{name} is \(128, 64\), not \(128, 63\)"),
        ({"lm_head.weight": before, "model.embed_tokens.weight": before}, "not"),
        (
            {
                "model.embed_tokens.weight": good["model.embed_tokens.weight"],
                "lm_head.weight": good["model.embed_tokens.weight"] + 1,
            },
            "are one weight",
        ),
    ]
    for weights, message in cases:
        with pytest.raises(InvalidInput, match=message):
            pipeline.update_weights(weights)
    assert np.array_equal(logits(pipeline), before)


def test_a_model_without_updates_says_so() -> None:
    with pytest.raises(DeviceError, match="cannot be replaced"), load_toy(progress=silent) as pipeline:
        pipeline.update_weights({})


@pytest.mark.skipif(transformers.__version__ < "5", reason="its experts have a form of their own")
def test_a_mixture_of_packed_experts_has_none() -> None:
    model = random_model.build(configuration("qwen3_moe"))
    layout = Layout(model)
    assert LiveWeights.of(model, layout) is not None
    experts.install(model, captured=False)
    assert LiveWeights.of(model, layout) is None
