"""Slim verifiers on real runtimes: a mask is searched, found and used; escalating everywhere is lossless."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import specport
from specport.cli import main
from specport.conformance.steps import host
from specport.core.ports import Block, Model, Row
from specport.core.verify.gates import RatioGate
from specport.errors import DeviceError, InvalidInput, ModelError
from specport.models import bundle
from specport.models.kinds import layer_mask, mtp
from specport.models.kinds.layer_mask import LayerMask
from specport.models.kinds.recurrent import WEIGHTS
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions, backend_for
from specport.runtime.drafts.tiers import Tiered
from specport.runtime.loading import Loader

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from support.processes.conversions import converting_here  # noqa: E402
from support.tiny import tiny_slim  # noqa: E402

DEVICES = ("xeon", "torch-cpu", "gaudi-emulated")
BOTH = DEVICES[:2]
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 60)]
PROMPTS = ["hello world 12 12 12", "1 2 1 2 1 2 hello hello"]
ALL, SOME = "tiered:3,2", "tiered:0.5,0.2"


@pytest.fixture(scope="module", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with converting_here(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_slim.save(root / "slim")
    return root / "slim"


@pytest.fixture(scope="module")
def mask(folder: Path) -> Path:
    """Return the folder of a mask, searched by the command; all IR of the module is converted once."""
    pytest.importorskip("optuna")
    out = folder.parent / "verifier"
    args = ["quantize", "verifier", "--target", str(folder), "--precision", "fp32", "--out", str(out)]
    assert main([*args, "--skip", "0.4", "--trials", "14", "--tokens", "48", "--quiet"]) == 0
    return out


@cache
def model_on(folder: Path, device: str, skipped: tuple[int, ...], *, exact: bool = False) -> Model:
    backend = backend_for(load_profile(device))
    files = resolve(str(folder), precision="fp32", weights=backend.weights)
    return backend.load(files, LoadOptions(load_profile(device), skipped_layers=skipped, exact=exact)).model


def logits_of(model: Model, sizes: list[int]) -> np.ndarray:
    handle, rows, start = model.open(), [], 0
    for size in sizes:
        output = model.step([Row(handle, Block.chain(IDS[start : start + size]))])
        rows.append(host(output.logits).copy())
        model.commit(handle, range(size))
        start += size
    model.close(handle)
    return np.concatenate(rows)


@pytest.mark.parametrize("device", DEVICES)
def test_the_slim_verifier_computes_the_model_without_its_layers(folder: Path, device: str) -> None:
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    kept = [layer for i, layer in enumerate(reference.model.layers) if i not in (1, 2)]
    reference.model.layers = torch.nn.ModuleList(kept)
    reference.config.num_hidden_layers = len(kept)
    with torch.inference_mode():
        want = reference(input_ids=torch.tensor([IDS]), use_cache=False).logits[0].numpy()
    model = model_on(folder, device, (1, 2))
    assert model.slim is not None
    np.testing.assert_allclose(logits_of(model.slim, [20, 1, 3, 36]), want, atol=0.03 * want.std())


@pytest.mark.parametrize("device", BOTH)
def test_a_model_with_a_slim_verifier_gives_its_own_bits(folder: Path, device: str) -> None:
    """Also while steps of both alternate; on OpenVINO it is compiled in several parts."""
    exact = device == "xeon"  # each form of the decoder that is checked takes seconds
    plain, model = (model_on(folder, device, skipped, exact=exact) for skipped in ((), tiny_slim.IDLE))
    assert plain.slim is None and model.slim is not None
    sizes = [20, 1, 3, 36]
    want = logits_of(plain, sizes)
    assert np.array_equal(logits_of(model, sizes), want)
    slim = logits_of(model.slim, sizes)
    assert np.array_equal(logits_of(model, sizes), want)
    assert np.array_equal(logits_of(model.slim, sizes), slim) and not np.array_equal(slim, want)


def test_both_have_one_copy_of_the_weights_on_torch(folder: Path) -> None:
    model: Any = model_on(folder, "torch-cpu", tiny_slim.IDLE)
    assert model.slim is not None
    whole, slim = (m.passes.runner.module.parts["whole"] for m in (model, model.slim))
    own = {p.data_ptr() for p in whole.parameters()}
    assert {p.data_ptr() for p in slim.parameters()} < own


def test_the_search_finds_the_layers_that_do_little(mask: Path, folder: Path) -> None:
    found = layer_mask.read(mask)
    assert (found.skipped, found.num_layers) == (tiny_slim.IDLE, tiny_slim.LAYERS)
    assert found.agreement > 0.8 and found.measured["trials"] == 14
    assert found.measured["costs"] == sorted(found.measured["costs"])
    files = resolve(str(folder), precision="fp32")
    assert layer_mask.registered(files.fingerprint) == found
    found.check_target(files.folder, files.name, "other")  # by its weights, at any precision


@pytest.mark.parametrize("device", BOTH)
def test_a_run_that_escalates_everywhere_gives_the_plain_text(mask: Path, folder: Path, device: str) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "ignore_eos": True}
    # Exact mode is only looked for on OpenVINO: on torch that takes long, and fp32 has no near ties here.
    where: dict[str, Any] = {"device": device, "precision": "fp32", "exact": device == "xeon"}
    with specport.load(str(folder), draft="none", **where) as pipeline:
        want = [result.token_ids for result in pipeline.generate(PROMPTS, **options)]
    found = None if device == "xeon" else mask  # another format of the weights: the mask is named
    given = {"verify": ALL, "lossy": True, "verifier": found, "draft": "ngram", **where}
    with specport.load(str(folder), **given) as pipeline:
        results = pipeline.generate(PROMPTS, **options)
        assert [result.token_ids for result in results] == want
        assert pipeline.lossy == ALL and not pipeline.exact and any("lossy" in n for n in pipeline.notes)
        for result in results:
            tiers = result.metrics.tiers
            assert (
                tiers is not None and tiers.escalated == 39 and tiers.full_calls == result.metrics.num_steps
            )
        with pytest.raises(InvalidInput, match="log-probabilities"):
            pipeline.generate(PROMPTS[0], logprobs=1)


def test_the_command_says_that_it_is_lossy_and_counts_its_tiers(
    mask: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", PROMPTS[0], "--model", str(folder), "--precision", "fp32", "--draft", "ngram"]
    run += ["--verify", SOME, "--max-new-tokens", "40", "--ignore-eos"]
    assert main(run) == 2
    assert "add --lossy" in capsys.readouterr().err
    assert main([*run, "--lossy", "--explain"]) == 0
    err = capsys.readouterr().err
    assert f"lossy ({SOME})" in err and "may be worse" in err
    assert "Lossy: of 39 tokens the slim verifier accepted" in err and "verifying, slim verifier" in err
    assert main([*run, "--lossy", "--json", "--explain"]) == 0
    report = json.loads(capsys.readouterr().out)
    tiers = report["metrics"]["tiers"]
    assert report["settings"]["lossy"] == report["metrics"]["lossy"] == SOME and tiers["accepted"] > 0
    assert tiers["full_calls"] < tiers["slim_steps"] == report["metrics"]["num_steps"]
    assert report["explain"]["tiers"] == tiers


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draft": "auto"}, "a draft that you name"),
        ({"draft": "none"}, "a draft that you name"),
        ({"draft": "early-exit:2"}, "reads states of the target"),
        ({"draft": "mtp"}, "reads states of the target"),
        ({"lossy": False}, "may change the text"),
        ({"verify": "lossless", "verifier": "there"}, "needs --verify"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused_before_anything_is_loaded(given, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        specport.load("nowhere", **{"verify": SOME, "lossy": True, "draft": "ngram", **given})


@pytest.mark.parametrize("kind", [{"recurrent": {}}, {"mtp": {}}], ids=str)
def test_heads_on_the_target_s_states_are_refused(kind: dict[str, Any], tmp_path: Path) -> None:
    for name in (mtp.JOIN, WEIGHTS):
        (tmp_path / name).touch()
    (tmp_path / bundle.BUNDLE_FILE).write_text(json.dumps({"about": kind}))
    with pytest.raises(InvalidInput, match="reads states of the target"):
        specport.load("nowhere", verify=SOME, lossy=True, draft=f"ngram|{tmp_path}")


def test_masks_that_cannot_be_used_are_refused(folder: Path, tmp_path: Path) -> None:
    given = {"verify": SOME, "lossy": True, "draft": "ngram", "precision": "fp32", "device": "xeon"}
    other = replace(resolve(str(folder), precision="fp32"), fingerprint="0" * 64)
    with pytest.raises(InvalidInput, match="specport quantize verifier"):
        Tiered(RatioGate(0.6, 0.3)).skipped_layers(other)
    with pytest.raises(ModelError, match="no such file"):
        specport.load(str(folder), **given, verifier=tmp_path)
    layer_mask.write(tmp_path, LayerMask("big", "s", "f", (), 5, (1, 3), 0.1, 0.9))
    with pytest.raises(ModelError, match="its configuration differs"):
        specport.load(str(folder), **given, verifier=tmp_path)
    layer_mask.register(tmp_path, other.fingerprint)  # in whose folder another model's mask was built later
    with pytest.raises(ModelError, match="its configuration differs"):
        Tiered(RatioGate(0.6, 0.3)).skipped_layers(other)
    for skipped, match in (((0,), "first"), ((4,), "first"), ((), "order"), ((3, 1), "order")):
        with pytest.raises(ValueError, match=match):
            LayerMask("big", "s", "f", (), 5, skipped, 0.1, 0.9)


def test_layers_that_cannot_be_skipped_are_refused(folder: Path) -> None:
    for device in BOTH:
        for layer in (0, tiny_slim.LAYERS - 1):
            with pytest.raises(ModelError, match="the first and the last stay"):
                model_on(folder, device, (layer,))
    with pytest.raises(DeviceError, match="no slim verifier on core"):
        Loader.on("core-ultra-npu-emulated").target_with(
            resolve(str(folder), precision="fp32"), True, skipped_layers=(1,)
        )
