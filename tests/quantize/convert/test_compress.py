"""Every option of a precision changes the model as it says, and the model still computes nearly the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.processor import NARROW

pytest.importorskip("openvino")
pytest.importorskip("nncf")
pytest.importorskip("optimum.intel")

import openvino as ov
from specport.backends.openvino.load import load
from specport.quantize.convert import compress, export
from specport.quantize.convert.openvino_core import core
from support.tiny import tiny_gguf, tiny_models

from specport.cli import main
from specport.core.ports import Block, Row
from specport.errors import InvalidInput, ModelError
from specport.models import cache
from specport.models.precision import parse
from specport.models.source import ModelFiles
from specport.runtime import conversion, loading
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions
from specport.runtime.loading import Loader

pytestmark = pytest.mark.filterwarnings("ignore")  # the tracer's and NNCF's

WEIGHTS = ("u8", "i8", "u4", "i4")
LAYERS = 2
MATMULS = 7 * LAYERS  # q, k, v, o, gate, up, down
F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


@dataclass
class Tiny:
    """An uncompressed model (`draft`), its other files (`rest`), and calibration text (`texts`)."""

    draft: Path
    rest: Path
    texts: list[list[int]]
    source: list[np.ndarray]  # what `draft` says of them, as `read` gives it

    def divergence(self, folder: Path) -> float:
        """Return the mean KL(source || model) in nats per token."""
        pairs = zip(self.source, read(folder, self.texts), strict=True)
        return float(np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for p, q in pairs]).mean())

    def compressed(self, precision: str, *, fresh: bool = False) -> Path:
        """Return the compressed model, made once.

        fresh: write the calibration text again, which takes most of the time.
        """
        out = self.rest.with_name(precision.replace(":", " ") + " fresh" * fresh)
        if (out / "openvino_model.xml").exists():
            return out
        shutil.copytree(self.rest, out, dirs_exist_ok=True)
        with pytest.MonkeyPatch.context() as monkeypatch:
            if not fresh:
                monkeypatch.setattr(compress, "write_texts", lambda *_: self.texts)
            compress.compress(self.draft, out, parse(precision), lambda what, share: None)
        return out


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, *, half: bool = False, **changes: Any) -> Tiny:
    """Return the files that `export` hands to `compress`."""
    model = tiny_models.save_hf(folder / "hf", "llama", LAYERS, **changes)
    if half:
        monkeypatch.setattr(export, "FLOAT32_BYTES", 0)
        model.half().save_pretrained(folder / "hf")
    (folder / "rest").mkdir()

    def keep(draft: Path, target: Path, *_: object) -> None:
        shutil.copytree(draft, folder / "draft")

    monkeypatch.setattr(compress, "compress", keep)
    export.export(folder / "hf", folder / "rest", "int8")
    draft, rest = folder / "draft", folder / "rest"
    texts = compress.write_texts(draft, rest, lambda what, share: None)
    return Tiny(draft, rest, texts, read(draft, texts))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return make(tmp_path_factory.mktemp("tiny"), monkeypatch)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a model with an untied head and weights traced in 16 bits, as for large models."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("untied")
        return make(folder, monkeypatch, half=True, tie_word_embeddings=False)


def read(folder: Path, texts: list[list[int]]) -> list[np.ndarray]:
    """Return the log-probabilities [tokens, vocab] of each text, computed in f32."""
    request = core().compile_model(folder / "openvino_model.xml", "CPU", F32).create_infer_request()
    fill = compress.inputs_of([port.any_name for port in request.model_inputs])
    found = []
    for text in texts:
        request.reset_state()
        logits = request.infer(fill(text))[0][0].astype(np.float64)
        found.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return found


@dataclass(frozen=True)
class Weight:
    """The stored weight of one MatMul or Gather. shape: [out, in], or [out, groups, group]."""

    kind: str
    shape: tuple[int, ...]
    zero_point: bool
    values: np.ndarray


def weights(folder: Path) -> dict[str, Weight]:
    """Return the weights by the module that reads them, as in `layers.0.mlp.down_proj`."""
    model = core().read_model(folder / "openvino_model.xml")
    found = {}
    for node in model.get_ops():
        if node.get_type_name() in ("MatMul", "Gather"):
            for port in node.input_values():
                above = list(decompression(port.node))
                leaves = [n for n in above if n.get_type_name() == "Constant" and kind(n) in WEIGHTS]
                if leaves:
                    main = max(leaves, key=lambda leaf: int(np.prod(leaf.shape)))
                    name = node.get_friendly_name().removeprefix("__module.").removeprefix("model.")
                    subtracts = any(n.get_type_name() == "Subtract" for n in above)
                    values = np.array(main.data)
                    found[name.split("/")[0]] = Weight(kind(main), tuple(main.shape), subtracts, values)
    return found


def decompression(node: ov.Node) -> Iterator[ov.Node]:
    yield node
    if node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape"):
        for port in node.input_values():
            yield from decompression(port.node)


def kind(node: ov.Node) -> str:
    return str(node.get_element_type().to_string())


def layers(found: dict[str, Weight]) -> dict[str, Weight]:
    return {name: weight for name, weight in found.items() if name.startswith("layers.")}


def others(found: dict[str, Weight]) -> dict[str, Weight]:
    """Embeddings and head."""
    return {name: weight for name, weight in found.items() if not name.startswith("layers.")}


@pytest.mark.parametrize(
    ("precision", "of_layers", "of_others"),
    [
        ("int8", ("u8", True), ("u8", True)),
        ("int8:sym", ("i8", False), ("i8", False)),
        ("int4", ("i4", False), ("u8", True)),
        ("int4:asym", ("u4", True), ("u8", True)),
        ("int4:sym", ("i4", False), ("i8", False)),
        ("int4:sym,awq,scale-estimation", ("i4", False), ("i8", False)),
        ("int8:activations", ("i8", False), ("i8", False)),
        ("int8:sym,activations", ("i8", False), ("i8", False)),
    ],
)
@pytest.mark.parametrize("model", ["tiny", "untied"])
def test_types_and_zero_points(
    model: str, precision: str, of_layers: object, of_others: object,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    source: Tiny = request.getfixturevalue(model)
    found = weights(source.compressed(precision))
    assert len(layers(found)) == MATMULS and {"lm_head", "embed_tokens"} <= others(found).keys()
    assert {(w.kind, w.zero_point) for w in layers(found).values()} == {of_layers}
    assert {(w.kind, w.zero_point) for w in others(found).values()} == {of_others}


@pytest.mark.parametrize("precision", ["int8:sym", "int4:sym", "int4:sym,ratio=0.5", "int4:sym,gptq"])
@pytest.mark.parametrize("model", ["tiny", "untied"])
def test_sym_leaves_no_zero_point_in_the_whole_graph(
    model: str, precision: str, request: pytest.FixtureRequest
) -> None:
    """NPUs need signed integer constants only, all of them weights, and no zero points."""
    source: Tiny = request.getfixturevalue(model)
    folder = source.compressed(precision)
    ops = core().read_model(folder / "openvino_model.xml").get_ops()
    stored = [op for op in ops if op.get_type_name() == "Constant" and kind(op) in WEIGHTS]
    assert {kind(op) for op in stored} <= {"i8", "i4"}
    assert len(stored) == MATMULS + (1 if model == "tiny" else 2)
    for op in ops:
        if op.get_type_name() == "Subtract":
            assert not any(n in stored for port in op.input_values() for n in decompression(port.node))


@pytest.mark.parametrize(("option", "group"), [("", 64), (":32", 32), (":128", 128)])
def test_groups(option: str, group: int, tiny: Tiny) -> None:
    for name, weight in layers(weights(tiny.compressed(f"int4{option}"))).items():
        width = 128 if name.endswith("down_proj") else 64
        fitting = min(group, width)  # a power of two is made smaller where it does not divide
        assert weight.shape[1:] == (width // fitting, fitting), name


def test_a_group_may_be_a_channel(tiny: Tiny) -> None:
    found = layers(weights(tiny.compressed("int4:channel")))
    assert {len(weight.shape) for weight in found.values()} == {2}


@pytest.mark.parametrize(("ratio", "low", "high"), [("0.5", 0.3, 0.5), ("0.8", 0.6, 0.8)])
def test_ratio_leaves_layers_in_int8(ratio: str, low: float, high: float, tiny: Tiny) -> None:
    found = layers(weights(tiny.compressed(f"int4:ratio={ratio}")))
    assert {weight.kind for weight in found.values()} == {"i4", "u8"}
    sizes = {name: int(np.prod(weight.shape)) for name, weight in found.items()}
    int4 = sum(sizes[name] for name, weight in found.items() if weight.kind == "i4")
    assert low < int4 / sum(sizes.values()) <= high


# Measured on this random model: int8 0.004, activations 0.012, int4 0.56, scale-estimation 0.50, gptq 0.34.
@pytest.mark.parametrize(
    ("precision", "limit"),
    [
        ("int8", 0.02),
        ("int8:sym", 0.02),
        ("int8:activations", 0.05),
        ("int8:sym,activations", 0.05),
        ("int4", 0.8),
        ("int4:asym", 0.8),
        ("int4:ratio=0.5", 0.2),
        ("int4:awq", 0.8),
        ("int4:channel,asym,awq,scale-estimation,gptq", 0.5),
    ],
)
def test_near_the_source(precision: str, limit: float, tiny: Tiny) -> None:
    if NARROW and precision.endswith("activations"):
        pytest.skip("without VNNI such products saturate")
    assert 0 < tiny.divergence(tiny.compressed(precision)) < limit


@pytest.mark.parametrize("option", ["awq", "scale-estimation", "gptq"])
def test_what_needs_text_rounds_otherwise(option: str, tiny: Tiny) -> None:
    plain = tiny.compressed("int4")
    fitted = tiny.compressed(f"int4:{option}")
    before, after = layers(weights(plain)), layers(weights(fitted))
    for name, weight in before.items():
        assert (weight.kind, weight.shape) == (after[name].kind, after[name].shape)
    changed = [name for name in before if not np.array_equal(before[name].values, after[name].values)]
    assert len(changed) >= LAYERS
    if option != "awq":  # outliers, which it is for, are not in a random model
        assert tiny.divergence(fitted) < 0.95 * tiny.divergence(plain)


def test_what_takes_long_reports_its_progress(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "ir"
    shutil.copytree(tiny.rest, out)
    monkeypatch.setattr(compress, "write_texts", lambda *_: tiny.texts)
    told: list[tuple[str, float]] = []
    compress.compress(tiny.draft, out, parse("int4:gptq,scale-estimation"), lambda *stage: told.append(stage))
    shares = [share for _, share in told]
    assert shares == sorted(shares) and shares[-1] == 0.9
    fitting = [share for what, share in told if what == "applying gptq with scale estimation"]
    assert len({*fitting}) == MATMULS + 1 and 0.7 < fitting[0] < fitting[-1] < 0.9
    # NNCF's own bars are as they were.
    before = len(told)
    tiny.compressed("int4:256")
    assert len(told) == before


@pytest.mark.parametrize("option", ["", "sym,"])
def test_activations_of_every_layer_are_rounded_and_attention_is_not(option: str, tiny: Tiny) -> None:
    folder = tiny.compressed(f"int8:{option}activations")
    model = core().read_model(folder / "openvino_model.xml")
    rounded = [op for op in model.get_ops() if op.get_type_name() == "FakeQuantize"]
    readers = [port.get_node() for op in rounded for port in op.output(0).get_target_inputs()]
    assert len(readers) == MATMULS + 1  # the head as well
    assert {node.get_type_name() for node in readers} == {"MatMul"}
    for op in rounded:
        assert op.get_levels() == 256
        low, high = (float(op.input_value(i).node.data.ravel()[0]) for i in (1, 2))
        even = low == pytest.approx(-high * 128 / 127, rel=1e-3)
        assert even == bool(option) or low == pytest.approx(-high, rel=0.05)
    assert not any(op.get_type_name() == "FakeQuantize" for op in ops_of(tiny.draft))


def ops_of(folder: Path) -> list[ov.Node]:
    return list(core().read_model(folder / "openvino_model.xml").get_ops())


@pytest.mark.parametrize("precision", ["int8:activations", "int4:32,asym,awq", "int4:sym,ratio=0.5"])
def test_the_backend_runs_it(
    precision: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device runs the model as a target and as a draft with a cut head."""
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    folder = tiny.compressed(precision, fresh=True)
    files = ModelFiles(folder, "tiny", precision, "tiny", precision)
    text = tiny.texts[0]
    head = (*range(100), 200, 269)
    for options in (
        LoadOptions(load_profile("xeon")),
        LoadOptions(load_profile("xeon"), role="draft", head_tokens=head),
    ):
        loaded = load(files, options)
        handle = loaded.model.open()
        got = loaded.model.step([Row(handle, Block.chain(text))]).logits
        want = read(folder, [text])[0][:, loaded.head_tokens or slice(None)]
        agreed = np.asarray(got).argmax(axis=1) == want.argmax(axis=1)
        assert agreed.mean() > 0.8  # it rounds activations as well


@pytest.mark.parametrize(
    ("precision", "message", "hint"),
    [
        ("int4:48", "groups of 48 do not divide its layers' 64, 128 inputs", "power of two"),
        ("int4:100,asym,awq", "groups of 100 do not divide", "int4:channel"),
    ],
)
def test_groups_that_do_not_divide(precision: str, message: str, hint: str, tiny: Tiny) -> None:
    with pytest.raises(ModelError) as caught:
        tiny.compressed(precision)
    assert caught.value.message.startswith(f"the model cannot be compressed to {precision}: ")
    assert message in caught.value.message and "\n" not in str(caught.value)
    assert hint in caught.value.hint


def test_a_model_without_a_layer_that_int4_fits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the error NNCF would silently store all weights in int8."""
    real = compress.compress
    odd = make(tmp_path, monkeypatch, hidden_size=48, intermediate_size=80, head_dim=12)
    monkeypatch.setattr(compress, "compress", real)
    with pytest.raises(ModelError, match="no layer's inputs make groups of 32"):
        odd.compressed("int4")
    found = layers(weights(odd.compressed("int4:16")))
    assert {weight.kind for weight in found.values()} == {"i4"}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a tiny GGUF file, with an empty cache."""
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    tiny_gguf.write(tmp_path / "tiny.gguf", "llama", tiny_models.hf_model("llama"))
    return tmp_path / "tiny.gguf"


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the precisions that a stand-in for the converter was asked for."""
    asked: list[str] = []

    def convert(source: Path, work: Path, precision: str, **_: object) -> dict[str, str]:
        asked.append(precision)
        for name in ("openvino_model.bin", "tokenizer.json"):
            (work / name).write_text(precision)
        (work / "config.json").write_text("{}")
        (work / "openvino_model.xml").write_text("<net></net>")
        return {}

    monkeypatch.setattr(conversion, "convert", convert)
    return asked


def test_each_precision_has_a_cache_entry_of_its_own(
    here: Path, converted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for text in (
        "int4:128,asym",
        "int4:channel",
        "int4:1",
        "int4:asym,group=128",
        "int4:64",
        "int4",
    ):
        assert main(["models", "pull", str(here), "--precision", text]) == 0
        folders.append(Path(capsys.readouterr().out.strip()))
    assert converted == ["int4:128,asym", "int4:channel", "int4:1", "int4"]
    assert folders[3] == folders[0] and folders[5] == folders[4]
    assert {entry.folder: entry.about["precision"] for entry in cache.entries()} == dict(
        zip((folders[0], folders[1], folders[2], folders[4]), converted, strict=True)
    )
    assert folders[0].name.startswith("tiny-int4-128-asym-")


def test_a_long_name_with_many_options_fits_a_file_name(here: Path, converted: list[str]) -> None:
    long = here.with_name("x" * 100 + ".gguf")
    here.rename(long)
    text = "int4:99999,asym,ratio=0.125,awq,scale-estimation,gptq"
    found = resolve(str(long), precision=text)
    assert found.precision == text and converted == [text]
    assert cache.ENTRY_NAME.fullmatch(found.folder.name)


def test_what_cannot_be_compressed_is_said_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = lambda source, work, precision, **_: export.export(source, work, precision)  # noqa: E731
    monkeypatch.setattr(conversion, "convert", convert)  # in this process: that saves its imports
    assert main(["models", "pull", str(here), "--precision", "int4:48"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("specport: error: the model cannot be compressed to int4:48: groups of 48")
    assert not cache.entries()


def test_a_device_that_runs_symmetric_weights_only_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    npu_backend = SimpleNamespace(weights="ir")  # there is no NPU here
    monkeypatch.setattr(loading, "backend_for", lambda profile: npu_backend)
    found = SimpleNamespace(folder=Path("nowhere"))
    monkeypatch.setattr(loading, "resolve", lambda spec, *, precision, **_: asked.append(precision) or found)
    npu = Loader.on("core-ultra-npu")
    for text in ("int8", "int4", "int4:128,asym", "int8:activations"):
        with pytest.raises(InvalidInput) as caught:
            npu.files("model", text)
        assert caught.value.message == f"core-ultra-npu runs symmetric weights only, not {text}"
        assert caught.value.hint == "add the option sym, as in int4:128,sym"
    assert not asked
    allowed = [npu.profile.precision, npu.profile.draft_precision, "fp16", "int8:sym", "int4:sym,ratio=0.5"]
    for text in allowed:
        npu.files("model", text)
    assert asked == allowed
    Loader.on("xeon").files("model", "int4:asym")
    command = ["run", "Hi", "--device", "core-ultra-npu", "--precision", "int8"]
    assert main(command) == 2
    assert "runs symmetric weights only, not int8" in capsys.readouterr().err
