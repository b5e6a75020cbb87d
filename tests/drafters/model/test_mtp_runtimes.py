"""Modules for multi-token prediction on real runtimes: they compute the formulas; texts keep their law."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.api import load as load_pipeline
from specport.conformance.steps import host
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import Fixed
from specport.core.ports import HEAD_INPUT, Block, Model, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.model.mtp import MtpDrafter
from specport.errors import DeviceError, InvalidInput, ModelError
from specport.models.kinds import mtp
from specport.runtime.conversion import mtp_module, resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import Loaded, LoadOptions, backend_for
from specport.runtime.stored import measurements

torch = pytest.importorskip("torch")
pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from support.laws.runtime_law import check_sampled_texts  # noqa: E402
from support.processes.own_cache import own_cache  # noqa: E402, F401
from support.tiny import tiny_models, tiny_mtp  # noqa: E402

DEVICES = ("xeon", "torch-cpu", "gaudi-emulated")
BOTH = ("xeon", "torch-cpu")
# Form of the module -> kind of the target.
KINDS = {"qwen": "qwen3", "deepseek": "qwen3", "mimo": "qwen2"}
GREEDY = SamplingParams()
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 120)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, tiny_mtp.Tiny]]:
    """Return a target with a module of each form, and the modules; `agrees` is mostly right."""
    root = tmp_path_factory.mktemp("models")
    modules = {form: tiny_mtp.save(root / form, form, kind) for form, kind in KINDS.items()}
    modules["agrees"] = tiny_mtp.save(root / "agrees", "qwen", agrees=True)
    return {name: root / name for name in modules}, modules


@cache
def loaded(folder: Path, device: str, precision: str = "fp32", **options: Any) -> Loaded:
    """Return a target with its module; each is loaded once."""
    profile = load_profile(device)
    backend = backend_for(profile)
    files = resolve(str(folder), precision=precision, weights=backend.weights)
    module = mtp_module(files, weights=backend.weights)
    assert module is not None
    options = {"hidden_layers": (HEAD_INPUT,), "mtp": module, **options}
    return backend.load(files, LoadOptions(profile, **options))


def module_of(model: Model) -> Model:
    assert model.mtp is not None
    assert model.mtp.capabilities.hidden_layers == (HEAD_INPUT,)
    return model.mtp


def reference(folder: Path, module: tiny_mtp.Tiny) -> tiny_mtp.Reference:
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(folder).float()
    tables = (whole.get_input_embeddings(), whole.get_output_embeddings())
    table, head = (layer.weight.detach().numpy() for layer in tables)
    config = json.loads((folder / "config.json").read_text())
    return tiny_mtp.Reference(module, table, head, config.get("text_config", config))


def states_of(model: Model, tokens: Sequence[int]) -> Any:
    """Return the input of the head [tokens, width] at these tokens."""
    handle = model.open()
    try:
        output = model.step([Row(handle, Block.chain(tokens), logits="none", hidden="all")])
        return like(model, host(output.hidden_of(0)[HEAD_INPUT]).copy())
    finally:
        model.close(handle)


def like(model: Model, array: np.ndarray) -> Any:
    """Return an array of the kind that the model's steps give."""
    return torch.from_numpy(array) if "torch" in type(model).__module__ else array


def check_chain(
    module: Model, expected: tiny_mtp.Reference, states: Any, tokens: Sequence[int], cuts: Sequence[int]
) -> None:
    """Read a text in pieces, draft a chain and a tree behind it, and compare all logits."""
    close = {"rtol": 1e-4, "atol": 1e-4}
    text, own = [*tokens[1:]], host(states)[: len(tokens) - 1]
    handle, start = module.open(), 0
    whole = expected(own, text)[1]
    for end in (*cuts, len(text)):
        part = states[start:end, :]
        output = module.step([Row(handle, Block.chain(text[start:end]), hidden="all", states=part)])
        found = host(output.logits_of(0)).copy()
        assert np.allclose(found, whole[start:end], **close), np.abs(found - whole[start:end]).max()
        last = like(module, host(output.hidden_of(0)[HEAD_INPUT])[-1:].copy())
        module.commit(handle, range(end - start))
        start = end
    drafted = [7, 99, 30]
    wanted = expected.chain(own, text, drafted)
    state = last
    for k, token in enumerate(drafted, 1):
        output = module.step([Row(handle, Block.chain((token,)), hidden="all", states=state)])
        assert np.allclose(host(output.logits_of(0))[0], wanted[k], **close)
        state = like(module, host(output.hidden_of(0)[HEAD_INPUT]).copy())
        module.commit(handle, (0,))
    module.truncate(handle, len(text))
    if module.capabilities.tree:
        tree, seconds = TokenTree((7, 12, 99), (-1, -1, 0)), []
        for token in (7, 12):  # the states behind the first level
            output = module.step([Row(handle, Block.chain((token,)), hidden="all", states=last)])
            seconds.append(host(output.hidden_of(0)[HEAD_INPUT]).copy())
            module.truncate(handle, len(text))
        given = like(module, np.concatenate([host(last), host(last), seconds[0]]))
        output = module.step([Row(handle, tree.as_block(), states=given)])
        found = host(output.logits_of(0))
        assert np.allclose(found[[0, 2]], wanted[1:3], **close)
        assert np.allclose(found[1], expected.chain(own, text, [12])[1], **close)
    module.close(handle)


@pytest.mark.parametrize("form", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_every_runtime_computes_the_formulas(device: str, form: str, models: Any) -> None:
    """In float32, to 1e-4: a text in pieces of several widths, and depths 1 to 4 behind it."""
    folder, module = models[0][form], models[1][form]
    target = loaded(folder, device).model
    states = states_of(target, IDS[:41])
    check_chain(module_of(target), reference(folder, module), states, IDS[:41], (1, 3, 4, 27))


@pytest.mark.parametrize("device", DEVICES)
def test_texts_share_a_step(device: str, models: Any) -> None:
    folder = models[0]["qwen"]
    target = loaded(folder, device).model
    module, expected = module_of(target), reference(folder, models[1]["qwen"])
    texts = [IDS[:9], IDS[20:50], IDS[60:63]]
    states = [states_of(target, text) for text in texts]
    rows = [
        Row(module.open(), Block.chain(text[1:]), states=known[: len(text) - 1, :])
        for text, known in zip(texts, states, strict=True)
    ]
    output = module.step(rows)
    for i, (text, known) in enumerate(zip(texts, states, strict=True)):
        wanted = expected(host(known)[: len(text) - 1], text[1:])[1]
        assert np.allclose(host(output.logits_of(i)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", BOTH)
def test_a_cut_head_has_these_columns(device: str, models: Any) -> None:
    folder, kept = models[0]["qwen"], (0, 2, *range(40, 240))
    target = loaded(folder, device, mtp_tokens=kept).model
    module, expected = module_of(target), reference(folder, models[1]["qwen"])
    states = states_of(target, IDS[:12])
    handle = module.open()
    output = module.step([Row(handle, Block.chain(IDS[1:12]), states=states[:11, :])])
    wanted = expected(host(states)[:11], IDS[1:12])[1][:, [*kept]]
    assert np.allclose(host(output.logits_of(0)), wanted, rtol=1e-4, atol=1e-4)
    module.close(handle)
    if module.head_rows is not None:
        assert np.allclose(host(module.head_rows([1, 241])), expected.head[[1, 241]], atol=1e-5)
    drafter = MtpDrafter(module, target.vocab_size, kept)
    plain, drafted = (written(target, policy)[0] for policy in (None, policy_of(drafter)))
    assert plain == drafted


def policy_of(drafter: MtpDrafter, depth: int = 4, *, tree: bool = False) -> FirstProposal:
    branches = (2, 2) if tree else ()
    return FirstProposal([drafter], lambda: Fixed(depth, branches), tree=tree)


def written(target: Model, policy: FirstProposal | None, params: SamplingParams = GREEDY) -> Any:
    """Return four texts that are written together, and the counts of drafted and accepted tokens."""
    engine = Engine(target, policy)
    generations = [Generation(IDS[start : start + 12], params, 24) for start in (0, 20, 40, 60)]
    for _ in engine.run(generations):
        pass
    drafted = sum(g.metrics.num_draft_tokens for g in generations)
    return [g.tokens for g in generations], (drafted, sum(g.metrics.num_accepted_tokens for g in generations))


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize(
    ("device", "precision"), [("xeon", "int8"), *((device, "fp32") for device in DEVICES if device != "xeon")]
)
def test_greedy_texts_are_those_of_plain_decoding(
    device: str, precision: str, tree: bool, models: Any
) -> None:
    """Four texts at once, with drafts that are accepted and drafts that are not."""
    target = loaded(models[0]["agrees"], device, precision).model
    if tree and not target.capabilities.tree:
        pytest.skip("chains only")
    drafter = MtpDrafter(module_of(target), target.vocab_size)
    plain, _ = written(target, None)
    drafted, (proposed, accepted) = written(target, policy_of(drafter, tree=tree))
    assert drafted == plain and 20 < accepted < proposed
    assert not drafter._states._texts and not drafter._states._nodes


@pytest.mark.parametrize("device", BOTH)
def test_after_rejections_the_module_says_what_it_would_say_afresh(device: str, models: Any) -> None:
    target = loaded(models[0]["agrees"], device).model
    module = module_of(target)
    drafter = MtpDrafter(module, target.vocab_size)
    seen: list[tuple[list[int], np.ndarray]] = []
    catch_up = drafter._states.catch_up

    def watched(requests: Any) -> Any:
        found = catch_up(requests)
        rows = zip(requests, found, strict=True)
        seen.extend(([*r.context], host(logits).copy()) for r, logits in rows if logits is not None)
        return found

    drafter._states.catch_up = watched  # type: ignore[method-assign]
    _, (proposed, accepted) = written(target, policy_of(drafter))
    assert 0 < accepted < proposed and len(seen) > 20
    for context, logits in seen[::5]:
        states = states_of(target, context[:-1])
        handle = module.open()
        row = Row(handle, Block.chain(context[1:]), logits="last", states=states)
        assert np.allclose(host(module.step([row]).logits_of(0))[0], logits, rtol=1e-3, atol=1e-3)
        module.close(handle)


@pytest.mark.parametrize("device", BOTH)
def test_sampled_texts_keep_the_law(device: str, models: Any) -> None:
    """Chi-square of 600 seeded texts of three tokens against the exact law of the target's own logits."""
    target = loaded(models[0]["agrees"], device).model
    engine = Engine(target, policy_of(MtpDrafter(module_of(target), target.vocab_size), 3))
    texts = check_sampled_texts(engine, IDS[:12], SamplingParams(temperature=1.5))
    assert sum(text.num_accepted_tokens for text in texts) > 300


@pytest.mark.parametrize("device", BOTH)
def test_a_module_drafts_by_its_name_and_by_default(device: str, models: Any) -> None:
    target = str(models[0]["agrees"])
    options = {"device": device, "precision": "fp32" if device == "torch-cpu" else None}
    plain = load_pipeline(target, draft="none", **options).generate("hello world", max_new_tokens=20)
    for draft in ("mtp", "ngram|mtp"):
        pipeline = load_pipeline(target, draft=draft, **options, policy="fixed")
        result = pipeline.generate("hello world", max_new_tokens=20)
        assert result.token_ids == plain.token_ids and result.metrics.num_accepted_tokens > 0
    pipeline = load_pipeline(target, **options)
    assert pipeline._engine.model.mtp is not None
    assert pipeline.generate("hello world", max_new_tokens=20).token_ids == plain.token_ids


def test_what_cannot_be_used_is_explained(models: Any, tmp_path: Path) -> None:
    tiny_models.save_hf(tmp_path / "plain", "qwen3")
    with pytest.raises(ModelError, match="no weights for multi-token prediction"):
        load_pipeline(str(tmp_path / "plain"), draft="mtp", device="xeon")
    npu = {"device": "core-ultra-npu-emulated", "exact": False}
    with pytest.raises(DeviceError, match="no multi-token prediction on core-ultra-npu"):
        load_pipeline(str(models[0]["qwen"]), draft="mtp", **npu)
    assert load_pipeline(str(models[0]["qwen"]), **npu)._engine.model.mtp is None
    with pytest.raises(InvalidInput, match="exclude"):
        load_pipeline(str(models[0]["qwen"]), draft="early-exit:1|mtp", device="torch-cpu", precision="fp32")


def test_tune_tries_it_and_bench_compares_it(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from specport.calibration import calibrate
    from specport.cli import main

    for name in ("TARGET_S", "DRAFT_S"):
        monkeypatch.setattr(calibrate, name, 0.0)
    lines = [{"id": i, "category": "qa", "turns": [f"hello world {i}"]} for i in range(2)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, lines)))
    common = ["--model", str(models[0]["agrees"]), "--device", "xeon", "--prompts", str(prompts)]
    common += ["--max-new-tokens", "12", "--quiet"]
    assert (
        main(["bench", *common, "--method", "mtp", "--method", "ngram|mtp", "--out", str(tmp_path / "b")])
        == 0
    )
    table = json.loads((tmp_path / "b" / "report.json").read_text())["table"]
    assert {"plain", "mtp", "ngram|mtp"} == {*table}
    assert all(groups["all"]["same"] == 2 for groups in table.values())
    capsys.readouterr()
    assert main(["tune", *common, "--precision", "int8", "--budget", "30s", "--no-build", "--json"]) == 0
    tried = json.loads(capsys.readouterr().out)["verdict"]["tried"]
    assert {"mtp", "suffix|mtp"} <= {each["name"] for each in tried}
    assert all(each["heat"]["same"] == each["heat"]["prompts"] for each in tried)


def test_a_module_is_no_model(models: Any) -> None:
    files = resolve(str(models[0]["qwen"]), precision="fp32")
    module = mtp_module(files)
    assert module is not None
    with pytest.raises(ModelError, match="module of a model"):
        load_pipeline(str(module.folder), device="xeon")


def test_an_unknown_form_leaves_the_default(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_mtp.save(tmp_path, "qwen")
    stored = load_file(tmp_path / "model.safetensors")
    stored["mtp.other.weight"] = stored.pop("mtp.fc.weight")
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    pipeline = load_pipeline(str(tmp_path), device="xeon")
    assert any("form that is not known" in note for note in pipeline.notes)
    with pytest.raises(ModelError, match="form that is not known"):
        load_pipeline(str(tmp_path), draft="mtp", device="xeon")


def test_a_cut_is_kept_for_a_module_and_a_device() -> None:
    assert measurements.find_cut("module", "xeon") is None
    measurements.save_cut("module", "xeon", (0, 1, 2, 9))
    assert measurements.find_cut("module", "xeon") == (0, 1, 2, 9)
    assert measurements.find_cut("module", "cuda") is None
    measurements.save_cut("module", "xeon", None)
    assert measurements.find_cut("module", "xeon") is None


def test_calibration_cuts_the_head_and_times_it(
    models: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from specport.calibration import calibrate, heads
    from specport.cli import main

    monkeypatch.setattr(heads, "SIZES", (200, 100))
    monkeypatch.setattr(heads, "WORTH", 0.0)
    monkeypatch.setattr(calibrate, "TARGET_S", 0.0)
    monkeypatch.setattr(calibrate, "DRAFT_S", 0.0)
    monkeypatch.setattr(heads, "expected_speed", lambda share, cost, target: 1.0 + (share == 2.0))
    monkeypatch.setattr(heads, "agreements", lambda whole, texts, cuts, **_: [1.0, 2.0, 1.0])
    target = str(models[0]["agrees"])
    arguments = ["--model", target, "--draft", "mtp", "--device", "xeon"]
    assert main(["calibrate", *arguments]) == 0
    out = capsys.readouterr().out
    assert "multi-token prediction agrees-mtp (int8)" in out and out.count("saved to") == 2
    pipeline = load_pipeline(target, draft="mtp", device="xeon")
    module = module_of(pipeline._engine.model)
    assert 200 <= module.vocab_size < 210 and module.head_rows is not None
    _, source = pipeline._engine.policy._sources  # type: ignore[union-attr]
    assert source.costs.measured
    plain = load_pipeline(target, draft="none", device="xeon").generate("hello world", max_new_tokens=20)
    assert pipeline.generate("hello world", max_new_tokens=20).token_ids == plain.token_ids


@pytest.mark.parametrize("device", BOTH)
def test_agreement_is_measured_beside_the_target(device: str, models: Any) -> None:
    from specport.calibration.heads import agreements
    from specport.calibration.mtp import BesideTarget
    from specport.calibration.target_text import Text

    target = loaded(models[0]["qwen"], device).model
    expected = reference(models[0]["qwen"], models[1]["qwen"])
    text = IDS[:20]
    for _ in range(10):  # what the module proposes, by the formulas
        states = host(states_of(target, text))
        text.append(int(expected(states[:-1], text[1:])[1][-1].argmax()))
    reader = BesideTarget(target, module_of(target))
    written = Text(tuple(text[:20]), tuple(text[20:]))
    assert agreements(reader, [written], [None]) == [1.0]  # type: ignore[arg-type]
    other = Text(tuple(IDS[40:60]), tuple(text[20:]))
    assert agreements(reader, [other], [None])[0] < 0.5  # type: ignore[arg-type]


@pytest.mark.parametrize("device", BOTH)
def test_a_layer_with_gates_and_offsets(device: str, tmp_path: Path) -> None:
    """Qwen3.5's layer of full attention; its target is hybrid, so that only the module runs here."""
    pytest.importorskip("transformers.models.qwen3_5")
    shape = {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4,
        "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    }  # fmt: skip
    module = tiny_mtp.save(tmp_path / "hybrid", "qwen", "qwen3_5_text", **shape)
    found = mtp.find(tmp_path / "hybrid")
    assert found is not None and found.like == 1
    check_alone(device, tmp_path, module)


def check_alone(device: str, root: Path, module: tiny_mtp.Tiny) -> None:
    """Check a module beside a target of plain attention that has the same tables."""
    from safetensors.torch import load_file, save_file

    tiny_models.save_hf(root / "plain", "qwen3", tie_word_embeddings=True)
    stored = load_file(root / "plain" / "model.safetensors")
    tables = load_file(root / "hybrid" / "model.safetensors")
    stored["model.embed_tokens.weight"] = next(
        table for name, table in tables.items() if name.endswith("embed_tokens.weight")
    )
    save_file(stored, root / "plain" / "model.safetensors", metadata={"format": "pt"})
    profile = load_profile(device)
    backend = backend_for(profile)
    files = resolve(str(root / "plain"), precision="fp32", weights=backend.weights)
    taken = mtp_module(replace(files, origin=root / "hybrid"), weights=backend.weights)
    options = LoadOptions(profile, hidden_layers=(HEAD_INPUT,), mtp=taken)
    target = backend.load(files, options).model
    states = states_of(target, IDS[:41])
    expected = reference(root / "plain", module)
    expected.config = json.loads((root / "hybrid" / "config.json").read_text())
    check_chain(module_of(target), expected, states, IDS[:41], (1, 3, 4, 27))
