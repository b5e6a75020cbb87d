"""Fixed shapes on OpenVINO, EMULATED: the NPU's pipeline compiles for the CPU. On tiny random models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.processor import exact_mode

from specport.core.block import Block
from specport.core.engine import Engine
from specport.core.policies.first_proposal import FirstProposal
from specport.core.policies.length_rules import (
    Fixed,
)
from specport.core.ports import Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.drafters.model.drafter import ModelDrafter
from specport.errors import ContextFull, DeviceError, InvalidInput, ModelError
from specport.models.source import ModelFiles
from specport.runtime import numerics
from specport.runtime.conversion import resolve
from specport.runtime.devices import registry
from specport.runtime.devices.profiles import Profile, load_profile
from specport.runtime.devices.registry import Loaded, LoadOptions, backend_for

ov = pytest.importorskip("openvino")
torch = pytest.importorskip("torch")
pytest.importorskip("optimum.intel")

from specport.backends.openvino import compiling, drivers  # noqa: E402
from specport.backends.openvino import load as loading  # noqa: E402
from specport.backends.openvino.graph import surgery  # noqa: E402
from specport.backends.openvino.static import runner  # noqa: E402
from specport.backends.openvino.static.graph import to_static  # noqa: E402
from specport.backends.openvino.static.model import StaticModel, StaticSequence  # noqa: E402
from specport.quantize.convert import openvino_core  # noqa: E402
from support.processes.conversions import converting_here  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

DEVICE = "core-ultra-npu-emulated"
KINDS = ("llama", "qwen2", "gemma3_text")
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 240)]
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with converting_here(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_models.save_kinds(tmp_path_factory.mktemp("models"), KINDS)


def files(folder: Path, precision: str = "fp16") -> ModelFiles:
    return resolve(str(folder), precision=precision, weights="ir")


def loaded(folder: Path, profile: Profile | None = None, **options: Any) -> Loaded:
    with exact_mode():
        return loading.load(files(folder), LoadOptions(profile or load_profile(DEVICE), **options))


def static(folder: Path, profile: Profile | None = None, **options: Any) -> StaticModel:
    found = loaded(folder, profile, **options).model
    assert isinstance(found, StaticModel)
    return found


@pytest.fixture(scope="module")
def llama(folders: dict[str, Path]) -> StaticModel:
    return static(folders["llama"])


@pytest.fixture(scope="module")
def whole(llama: StaticModel) -> Any:
    """[240, vocab] logits of IDS."""
    handle = llama.open()
    found = feed(llama, handle, [IDS])
    llama.close(handle)
    return found


@pytest.fixture
def handle(llama: StaticModel) -> Iterator[StaticSequence]:
    handle = llama.open()
    yield handle
    llama.close(handle)


def feed(model: Any, handle: Any, chunks: Sequence[Sequence[int]], which: Any = "all") -> Any:
    parts = []
    for chunk in chunks:
        parts.append(model.step([Row(handle, Block.chain(chunk), logits=which)]).logits.copy())
        model.commit(handle, range(len(chunk)))
    return np.concatenate(parts)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_and_of_the_paged_model(kind: str, folders: dict[str, Path]) -> None:
    with torch.no_grad():
        want = tiny_models.hf_model(kind)(torch.tensor([IDS])).logits[0].numpy()
    # The same graph with full arithmetic: what is left is fp16 in the weights and in the cache.
    on_cpu = replace(load_profile(DEVICE), device="CPU", draft=F32)
    paged = load_profile("xeon")
    reference = loaded(folders[kind], replace(paged, draft=paged.fallback), role="draft").model
    for profile, allowed in ((on_cpu, 0.02), (load_profile(DEVICE), 0.1)):
        model = static(folders[kind], profile, role="draft")
        handle = model.open()
        last = feed(model, handle, [IDS[:150]], "last")
        # Past the end of gemma's sliding window; one width after the other.
        rest = feed(model, handle, [[IDS[150]], IDS[151:154], IDS[154:162], IDS[162:]])
        found = np.concatenate([last, rest])
        spread = want.std()
        assert abs(found - want[149:]).mean() < allowed * spread
        if profile is on_cpu:
            assert abs(found - feed(reference, reference.open(), [IDS])[149:]).max() < 0.05 * spread


@pytest.mark.parametrize("kind", KINDS)
def test_exact_means_bit_identical(kind: str, folders: dict[str, Path]) -> None:
    model = static(folders[kind])
    capabilities = model.capabilities
    assert capabilities.exact and not capabilities.tree and not capabilities.batch
    assert (capabilities.buckets, capabilities.min_width) == ((8,), 8)
    assert numerics.is_invariant(model) and numerics.is_invariant(model, past=122)


def test_no_exact_mode_is_said(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "is_invariant", lambda model, past: False)
    monkeypatch.setattr(numerics.Answers, "get", lambda self, key: None)
    monkeypatch.setattr(numerics.Answers, "put", lambda self, key, answer: None)
    with pytest.raises(DeviceError, match=r"no exact mode on this device[^,]*$"):
        loading.load(files(folders["llama"]), LoadOptions(load_profile(DEVICE)))


@pytest.mark.parametrize("sizes", [[1] * 20, [2] * 12, [8] * 5, [150, 1, 1, 4], [31, 1, 33, 7]], ids=str)
def test_logits_do_not_depend_on_the_split(
    llama: StaticModel, handle: StaticSequence, whole: Any, sizes: list[int]
) -> None:
    start = 0
    for size in sizes:
        found = feed(llama, handle, [IDS[start : start + size]])
        assert np.array_equal(found, whole[start : start + size])
        start += size


def test_rollback_after_every_pattern(llama: StaticModel, handle: StaticSequence, whole: Any) -> None:
    feed(llama, handle, [IDS[:100]])
    for kept in (5, 0, 1, 4, 2, 3, 0, 5):
        start = handle.length
        block = Block.chain([*IDS[start : start + kept], *[9] * (6 - kept)])
        logits = llama.step([Row(handle, block)]).logits
        assert np.array_equal(logits[:kept], whole[start : start + kept])
        llama.commit(handle, range(kept))
        assert handle.length == start + kept
    for length in (119, 64, 7, 0):
        llama.truncate(handle, length)
        assert np.array_equal(feed(llama, handle, [IDS[length:125]]), whole[length:125])


def test_padding_is_never_seen(folders: dict[str, Path], whole: Any) -> None:
    """What lies in the cache behind the text, padding included, changes no bit."""
    model = static(folders["llama"])
    handle = model.open()
    for array in handle.cache:
        array[...] = 3.0
    assert np.array_equal(feed(model, handle, [IDS[:3], IDS[3:4], IDS[4:11]]), whole[:11])
    kept = [array[:, :, :, handle.length :].copy() for array in handle.cache]
    model.step([Row(handle, Block.chain(IDS[11:14]))])
    for array, before in zip(handle.cache, kept, strict=True):
        rows = (array[:, :, :, handle.length :] != before).any((0, 1, 2, 4))
        assert rows[:3].all() and not rows[3:].any()  # of a width of 8, the three real rows


def test_two_sequences_and_rows_in_one_step(llama: StaticModel, whole: Any) -> None:
    first, second = llama.open(), llama.open()
    feed(llama, first, [IDS[:20]], "last")
    feed(llama, second, [IDS[:40]], "last")
    rows = [Row(first, Block.chain(IDS[20:23])), Row(second, Block.chain(IDS[40:52]), logits="last")]
    output = llama.step(rows)
    assert output.offsets == (0, 3, 4)
    assert np.array_equal(output.logits[:3], whole[20:23])
    assert np.array_equal(output.logits[3], whole[51])
    llama.commit(first, range(2))
    llama.commit(second, range(12))
    assert np.array_equal(feed(llama, first, [IDS[22:30]]), whole[22:30])
    assert np.array_equal(feed(llama, second, [IDS[52:53]]), whole[52:53])
    llama.close(first)
    llama.close(first)  # twice is harmless
    again = llama.open()
    assert again.cache is not second.cache
    assert np.array_equal(feed(llama, second, [IDS[53:60]]), whole[53:60])
    llama.close(again)
    llama.close(second)


def test_limits_are_said_before_anything_changes(folders: dict[str, Path]) -> None:
    model = static(folders["llama"], max_context=100)
    assert model.max_context == 100
    handle = model.open()
    feed(model, handle, [IDS[:96]])
    step = model.step([Row(handle, Block.chain(IDS[96:100]))]).logits.copy()
    before = [array.copy() for array in handle.cache]
    other = model.open()
    output = model.step([Row(handle, Block.chain(IDS[96:101])), Row(other, Block.chain(IDS[:2]))])
    assert output.refused == {0: "context"} and output.offsets == (0, 0, 2)
    assert not len(model.step([Row(handle, Block.chain(IDS[:5]))]).logits)
    assert (model.room(handle), model.room()) == (4, 100)
    assert all(np.array_equal(a, b) for a, b in zip(before, handle.cache, strict=True))
    assert np.array_equal(feed(model, handle, [IDS[96:100]]), step)
    assert handle.length == 100
    with pytest.raises(ValueError, match="truncate"):
        model.truncate(handle, 101)
    with pytest.raises(ValueError, match="ascending"):
        model.commit(handle, [0])
    model.step([Row(other, Block.chain(IDS[:4]))])
    with pytest.raises(ValueError, match="no beginning"):
        model.commit(other, [0, 2])
    with pytest.raises(ValueError, match="chains only"):
        model.step([Row(other, TokenTree((1, 2, 3), (-1, 0, 0)).as_block())])
    with pytest.raises(ValueError, match="at least one token"):
        model.step([Row(other, Block.chain([]))])
    with pytest.raises(ValueError, match="conditioning"):
        model.open(conditioning=object())
    with pytest.raises(ContextFull, match="101"):
        model.open(101)


def test_a_fork_is_a_copy(llama: StaticModel, handle: StaticSequence, whole: Any) -> None:
    feed(llama, handle, [IDS[:50]], "none")
    for length in (0, 20, 50):
        fork = llama.fork(handle, length)
        assert np.array_equal(feed(llama, fork, [IDS[length:60]]), whole[length:60])
        llama.close(fork)
    fork = llama.fork(handle, 20)
    feed(llama, handle, [[9] * 3])
    llama.truncate(handle, 10)
    feed(llama, handle, [[9] * 20])
    assert np.array_equal(feed(llama, fork, [IDS[20:30]]), whole[20:30])
    llama.close(fork)
    with pytest.raises(ValueError, match="cannot fork"):
        llama.fork(handle, 31)


def test_memory_bounds_how_many_sequences_are_open(llama: StaticModel, folders: dict[str, Path]) -> None:
    handle = llama.open()
    size = sum(array.nbytes for array in handle.cache)
    llama.close(handle)
    model = static(folders["llama"], cache_bytes=3 * size - 1)
    first, second = model.open(), model.open(100)
    assert (model.room(), model.room(second)) == (0, 256)
    for refused in (model.open, lambda: model.fork(first, 0)):
        with pytest.raises(ContextFull):
            refused()
    model.close(first)
    assert model.room() == 256
    model.close(model.fork(second, 0))
    with exact_mode(), pytest.raises(InvalidInput, match="--cache-memory"):
        loading.load(files(folders["llama"]), LoadOptions(load_profile(DEVICE), role="draft", cache_bytes=9))


def test_a_machine_without_memory_is_a_full_cache(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = static(folders["llama"], role="draft")
    first = model.open()

    def failing(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Any:
        raise MemoryError

    monkeypatch.setattr(runner, "aligned", failing)
    with pytest.raises(ContextFull, match="no memory"):
        model.open()
    assert model.room() == 0
    model.close(first)
    assert model.room() == 256
    model.open()


def test_hidden_states_and_logits_are_asked_for_apart(folders: dict[str, Path]) -> None:
    with torch.no_grad():
        body = tiny_models.hf_model("llama").model
        seen: dict[int, Any] = {}
        for i, layer in enumerate(body.layers):
            layer.register_forward_hook(lambda m, x, y, i=i: seen.update({i: y}))
        body(torch.tensor([IDS[:50]]))
    model = static(folders["llama"], hidden_layers=(0, 1))
    assert model.capabilities.hidden_layers == (0, 1)
    starts: dict[Any, int] = {"all": 0, "last": 49, "none": 50}
    for logits, hidden in ((a, b) for a in starts for b in starts):
        handle = model.open()
        output = model.step([Row(handle, Block.chain(IDS[:50]), logits, hidden)])
        assert output.offsets == (0, 50 - starts[logits])
        assert output.hidden_offsets == (0, 50 - starts[hidden])
        assert len(output.logits) == 50 - starts[logits] and bool(output.hidden) == (hidden != "none")
        for layer, states in output.hidden.items():
            want = seen[layer][0].numpy()[starts[hidden] :]
            assert states.shape == want.shape
            assert abs(states - want).mean() < 0.05 * want.std()
        model.close(handle)
    rows = [
        Row(model.open(), Block.chain(IDS[:n]), "last", h) for n, h in ((50, "all"), (9, "none"), (3, "last"))
    ]  # type: ignore[arg-type]
    output = model.step(rows)
    assert (output.offsets, output.hidden_offsets) == ((0, 1, 2, 3), (0, 50, 50, 51))
    assert len(output.hidden_of(0)[1]) == 50 and len(output.hidden_of(2)[1]) == 1


def test_a_cut_head_gives_the_same_logits(folders: dict[str, Path]) -> None:
    keep = (3, 7, 100, 200)
    whole, cut = (
        static(folders["qwen2"], role="draft"),
        static(folders["qwen2"], role="draft", head_tokens=keep),
    )
    assert cut.vocab_size == 4
    a, b = (feed(model, model.open(), [IDS[:20]]) for model in (whole, cut))
    assert np.abs(a[:, list(keep)] - b).max() < 0.05 * a.std()
    with pytest.raises(ModelError, match="head tokens"):
        static(folders["qwen2"], role="draft", head_tokens=(3, 10_000))


def generate(model: StaticModel, drafter: Any, prompt: Sequence[int], depth: int) -> list[int]:
    policy = FirstProposal([drafter], lambda: Fixed(depth)) if drafter else None
    generation = Generation([*prompt], SamplingParams(), 60)
    for _ in Engine(model, policy).run([generation]):
        pass
    return generation.tokens[generation.num_prompt_tokens :]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_drafted_text_equals_plain_text_and_compiles_nothing_more(
    kind: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    inner = compiling.compile_on_device

    def counting(model: Any, *arguments: Any) -> Any:
        compiled.append(model)
        return inner(model, *arguments)

    monkeypatch.setattr(compiling, "compile_on_device", counting)
    target = static(folders[kind])
    drafts = [static(folders[name], role="draft") for name in ("llama", "qwen2")]
    buckets = load_profile(DEVICE).buckets
    assert len(compiled) == 2 + 2 * len(buckets)
    assert all(not port.get_partial_shape().is_dynamic for model in compiled for port in model.inputs)
    for prompt in (IDS[:17], IDS[50:190]):
        plain = generate(target, None, prompt, 0)
        assert len(set(plain)) > 3
        for draft, depth in zip(drafts, (3, 7), strict=True):
            assert generate(target, ModelDrafter(draft, target.vocab_size), prompt, depth) == plain
    assert len(compiled) == 2 + 2 * len(buckets)


def test_default_context_threads_and_emulation_are_notes(folders: dict[str, Path], tmp_path: Path) -> None:
    source = files(folders["llama"])
    for path in source.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 4096
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with exact_mode():
        found = loading.load(replace(source, folder=tmp_path), LoadOptions(load_profile(DEVICE), threads=2))
    assert found.model.max_context == 1024
    assert "emulated" in found.notes[0] and "--max-context" in found.notes[1] and len(found.notes) == 2
    on_npu = LoadOptions(load_profile("core-ultra-npu"), threads=1, max_context=200)
    assert loading.notes_for(compiling.Job.of(source, on_npu)) == (
        "NPU has no setting for the number of threads: --threads is ignored",
    )
    with pytest.raises(DeviceError, match="cannot load llama on NPU"):
        loading.load(source, replace(on_npu, role="draft"))


def test_a_graph_of_another_form_is_one_line(folders: dict[str, Path]) -> None:
    model = surgery.read_model(files(folders["llama"]).folder)
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            plain = ov.opset15.scaled_dot_product_attention(*node.input_values()[:3], causal=True)
            for consumer in node.output(0).get_target_inputs():
                consumer.replace_source_output(plain.output(0))
    with pytest.raises(ModelError, match="attention masks were not found"):
        to_static(model, 128)


def test_devices_say_what_is_emulated() -> None:
    (status,) = registry.statuses([load_profile(DEVICE)])
    assert status.available and status.facts["name"].startswith("EMULATED on ")
    assert "no NPU is used" in status.facts["EMULATED"]
    assert backend_for(load_profile(DEVICE)).name == "openvino"


class Core:
    """`ov.Core` on a laptop whose drivers answer."""

    available_devices = ("CPU", "GPU.0", "NPU")

    def get_property(self, device: str, name: str) -> Any:
        if name == "SUPPORTED_PROPERTIES":
            raise RuntimeError("no such plugin")
        return ["FP16"] if name == "OPTIMIZATION_CAPABILITIES" else f"Intel {device}"


def test_an_npu_that_openvino_lists_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_core, "_cores", [Core()])
    profiles = [load_profile(name) for name in ("core-ultra-npu", "core-ultra-gpu", DEVICE)]
    npu, gpu, emulated = registry.statuses(profiles)
    assert npu.available and npu.facts["name"] == "Intel NPU" and "EMULATED" not in npu.facts
    assert gpu.available and not emulated.available and "no NPU plugin" in emulated.reason


@pytest.mark.parametrize(
    ("kind", "node", "group"), [("GPU", "dri/renderD128", "i915"), ("NPU", "accel/accel0", "intel_vpu")]
)
def test_missing_drivers_and_permissions_are_explained(
    kind: str, node: str, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason, remedy = drivers.missing(kind, "linux", tmp_path)
    assert group in reason and "container" in remedy
    (tmp_path / node).parent.mkdir()
    (tmp_path / node).touch()
    reason, remedy = drivers.missing(kind, "linux", tmp_path)
    assert "can be opened" in reason and "install" in remedy
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reason, remedy = drivers.missing(kind, "linux", tmp_path)
    assert "no permission to open" in reason and "usermod -a -G render" in remedy
    assert "Device Manager" in drivers.missing(kind, "win32", tmp_path)[1]
    assert "Linux and Windows only" in drivers.missing(kind, "darwin", tmp_path)[1]


def test_windows_graphics_in_wsl_lack_libraries_only(tmp_path: Path) -> None:
    (tmp_path / "dxg").touch()
    assert "intel-opencl-icd" in drivers.missing("GPU", "linux", tmp_path)[1]
    assert "intel_vpu" in drivers.missing("NPU", "linux", tmp_path)[0]


def test_the_cli_says_emulated(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    from specport.cli import main

    loaded(folders["llama"])  # skips where there is no exact mode
    model = str(folders["llama"])
    arguments = ["run", "--model", model, "--precision", "fp16", "--max-new-tokens", "8", "--json"]
    arguments += ["--device", DEVICE, "--temperature", "0", "hi"]
    assert main([*arguments, "--draft", "none"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*arguments, "--draft", model, "--draft-precision", "fp16"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["token_ids"] == plain["token_ids"]
    assert "emulated" in shown.out and DEVICE in shown.out
