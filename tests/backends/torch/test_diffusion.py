"""Diffusion models on torch: the logits of SDAR, Dream and LLaDA 2 folders, with and without a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.backends.torch import TorchBackend  # noqa: E402
from specport.quantize.convert import diffusion  # noqa: E402
from support.tiny import diffusion_families as families  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

from specport.core.arrays import to_host  # noqa: E402
from specport.core.ports import Block, Row  # noqa: E402
from specport.errors import ModelError  # noqa: E402
from specport.models.kinds.diffusion import DiffusionFacts, find_facts, is_diffusion  # noqa: E402
from specport.models.source import ModelFiles  # noqa: E402
from specport.runtime.devices.profiles import load_profile  # noqa: E402
from specport.runtime.devices.registry import LoadOptions  # noqa: E402

BLOCK = {"sdar": 4, "Dream": None, "llada2_moe": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    root = tmp_path_factory.mktemp("families")
    return {kind: (root / kind, families.save(root / kind, kind)) for kind in families.CONFIGS}


def load(folder: Path, device: str = "torch-cpu", precision: str = "fp32", **options: Any) -> Any:
    files = ModelFiles(folder, folder.name, precision, str(folder), f"{folder}-{precision}")
    return TorchBackend().load(files, LoadOptions(load_profile(device), **options)).model


def text(length: int, seed: int = 0) -> list[int]:
    """Return a text with masks at the end, as denoising has it."""
    ids = np.random.default_rng(seed).integers(0, families.MASK, length)
    ids[-3:-1] = families.MASK
    return [int(token) for token in ids]


def logits_of(model: Any, handle: Any, block: Block) -> Any:
    return to_host(model.step([Row(handle, block)]).logits).copy()


@pytest.mark.parametrize(
    ("kind", "device"), [*((kind, "torch-cpu") for kind in families.CONFIGS), ("sdar", "gaudi-emulated")]
)
def test_logits_are_those_of_the_family(kind: str, device: str, folders: Any) -> None:
    folder, weights = folders[kind]
    ids = text(70)
    seen = families.native_mask(len(ids), BLOCK[kind])
    want = families.reference(families.CONFIGS[kind], weights, ids, seen)
    model = load(folder, device)
    assert model.capabilities.visibility == "any" and model.capabilities.gather
    handle = model.open()
    found = logits_of(model, handle, Block(tuple(ids), tuple(range(len(ids))), seen))
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, atol=2e-4, rtol=2e-4)
    causal = families.reference(families.CONFIGS[kind], weights, ids, families.native_mask(len(ids), 1))
    assert np.abs(causal - want).max() > 0.5  # so the mask matters


@pytest.mark.parametrize("kind", ["sdar", "llada2_moe"])
def test_blocks_behind_a_cache_have_the_logits_of_the_whole_text(kind: str, folders: Any) -> None:
    folder, weights = folders[kind]
    size = BLOCK[kind]
    assert size is not None
    ids = text(3 * size)
    want = families.reference(families.CONFIGS[kind], weights, ids, families.native_mask(len(ids), size))
    model, found = load(folder), []
    handle = model.open()
    for start in range(0, len(ids), size):
        own = tuple(ids[start : start + size])
        everything = np.ones((size, size), dtype=np.bool_)
        denoised = Block((families.MASK,) * size, tuple(range(size)), everything)
        logits_of(model, handle, denoised)  # a step that is not committed leaves nothing behind
        found.append(logits_of(model, handle, Block(own, tuple(range(size)), everything)))
        model.commit(handle, range(size))
    np.testing.assert_allclose(np.concatenate(found), want, atol=2e-4, rtol=2e-4)


def test_data_and_masks_at_the_same_positions_and_a_commit_of_the_data_only(folders: Any) -> None:
    folder, weights = folders["sdar"]
    config, prompt, draft = families.CONFIGS["sdar"], text(8, 1), text(4, 2)
    n = 4
    seen = np.zeros((8 + 2 * n, 8 + 2 * n), dtype=np.bool_)  # prompt, data, masks
    seen[:8, :8] = families.native_mask(8, n)
    seen[8:, :8] = True
    seen[8:12, 8:12] = np.tri(n, dtype=np.bool_)
    seen[12:, 8:12] = np.tri(n, k=-1, dtype=np.bool_)
    seen[12:, 12:] = np.eye(n, dtype=np.bool_)
    ids = [*prompt, *draft, *[families.MASK] * n]
    want = families.reference(config, weights, ids, seen, [*range(8), *range(8, 12), *range(8, 12)])
    model = load(folder)
    handle = model.open()
    logits_of(model, handle, Block(tuple(prompt), tuple(range(8)), seen[:8, :8].copy()))
    model.commit(handle, range(8))
    block = Block(tuple(ids[8:]), (*range(n), *range(n)), seen[8:, 8:].copy())
    np.testing.assert_allclose(logits_of(model, handle, block), want[8:], atol=2e-4, rtol=2e-4)
    model.commit(handle, [0, 1])
    assert handle.length == 10
    more = Block((7, families.MASK), (0, 1), np.ones((2, 2), dtype=np.bool_))
    after = np.zeros((12, 12), dtype=np.bool_)
    after[:10, :10] = seen[:10, :10]
    after[10:] = True
    want = families.reference(config, weights, [*ids[:10], *more.tokens], after)
    np.testing.assert_allclose(logits_of(model, handle, more), want[10:], atol=2e-4, rtol=2e-4)


def test_half_precision_and_two_sequences(folders: Any) -> None:
    folder, weights = folders["llada2_moe"]
    ids = [text(32, 4), text(32, 5)]
    seen = np.ones((32, 32), dtype=np.bool_)
    wants = [families.reference(families.CONFIGS["llada2_moe"], weights, own, seen) for own in ids]
    model = load(folder, precision="bf16")
    rows = [Row(model.open(), Block(tuple(own), tuple(range(32)), seen)) for own in ids]
    output = model.step(rows)
    for i, want in enumerate(wants):
        own = to_host(output.logits_of(i))
        assert (own.argmax(axis=1) == want.argmax(axis=1)).mean() > 0.8
        assert np.corrcoef(own.ravel(), want.ravel())[0, 1] > 0.98


def test_a_model_of_ours_is_the_decoder_that_it_was_made_from(tmp_path: Path) -> None:
    made = tiny_models.save_hf(tmp_path / "plain", "llama", 2)
    made.save_pretrained(tmp_path / "ours")
    diffusion.mark(tmp_path / "ours", DiffusionFacts(5, 8))
    assert find_facts(tmp_path / "ours") == DiffusionFacts(5, 8, "blocks", shifted=False)
    assert find_facts(tmp_path / "plain") is None
    ids = text(24)
    ids = [token % 200 for token in ids]
    seen = families.native_mask(24, 8)
    with torch.no_grad():
        mask = torch.where(torch.from_numpy(seen), 0.0, -torch.inf)[None, None]
        want = made(input_ids=torch.tensor([ids]), attention_mask=mask).logits[0].numpy()
    model = load(tmp_path / "ours")
    found = logits_of(model, model.open(), Block(tuple(ids), tuple(range(24)), seen))
    np.testing.assert_allclose(found, want, atol=1e-3, rtol=1e-3)


def test_what_a_configuration_says(folders: Any, tmp_path: Path) -> None:
    assert find_facts(folders["sdar"][0]) == DiffusionFacts(families.MASK, 4, "blocks", shifted=False)
    assert find_facts(folders["Dream"][0]) == DiffusionFacts(families.MASK, 32, "full", shifted=True)
    assert find_facts(folders["llada2_moe"][0]) == DiffusionFacts(families.MASK, 32, "blocks", shifted=False)
    assert not is_diffusion({"model_type": "qwen3"}) and not is_diffusion({"model_type": ["sdar"]})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sdar", "vocab_size": 151936}))
    assert find_facts(tmp_path) == DiffusionFacts(151669, 4, "blocks", shifted=False)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("llada2_moe", {"norm_head": True}, "norm_head True is not supported"),
        ("llada2_moe", {"use_qk_norm": False}, "use_qk_norm"),
        ("llada2_moe", {"score_function": "softmax"}, "score_function 'softmax'"),
        ("llada2_moe", {"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ("llada2_moe", {"n_group": 3}, "do not fit"),
        ("llada2_moe", {"num_experts": "many"}, "cannot be read"),
        ("sdar", {"use_sliding_window": True}, "sliding windows"),
        ("sdar", {"mask_token_id": families.VOCAB}, "mask of id"),
        ("sdar", {"block_size": 0}, "blocks of 0 tokens"),
        ("sdar", {"num_hidden_layers": 4}, r"lacks weights: model\.layers\.3\."),
        ("Dream", {"intermediate_size": 32}, "sdar|Dream"),
    ],
)
def test_what_is_not_supported_is_said_in_one_line(
    kind: str, changes: dict[str, Any], words: str, folders: Any, tmp_path: Path
) -> None:
    for path in folders[kind][0].iterdir():
        (tmp_path / path.name).symlink_to(path) if path.name != "config.json" else None
    (tmp_path / "config.json").write_text(json.dumps({**families.CONFIGS[kind], **changes}))
    with pytest.raises(ModelError, match=words) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_options_that_make_no_sense_are_refused(folders: Any) -> None:
    with pytest.raises(ModelError, match="no early exit"):
        load(folders["sdar"][0], exit_layer=1)


def test_a_mixture_of_experts_has_no_graph_of_openvino(folders: Any) -> None:
    with pytest.raises(ModelError, match="does not run on OpenVINO"):
        diffusion.check_graph(families.CONFIGS["llada2_moe"], folders["llada2_moe"][0])
    diffusion.check_graph(families.CONFIGS["sdar"], folders["sdar"][0])
