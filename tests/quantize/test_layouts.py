"""Bundles in other runtimes' layouts: transformers computes what the IR computes, or nothing is written."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specport.cli import main
from specport.errors import InvalidInput, ModelError
from specport.models import bundle
from specport.models.folder_checks import IR_XML
from specport.models.precision import parse
from specport.progress import silent
from specport.runtime.conversion import resolve
from specport.runtime.devices.profiles import load_profile
from specport.runtime.devices.registry import LoadOptions

ov = pytest.importorskip("openvino")
pytest.importorskip("optimum.intel")

from specport.quantize.convert import compress, to_huggingface  # noqa: E402
from specport.quantize.convert.export import export  # noqa: E402
from specport.quantize.convert.openvino_core import core  # noqa: E402
from specport.quantize.convert.to_huggingface import to_hugging_face  # noqa: E402
from specport.quantize.prune import ir  # noqa: E402
from support.tiny import tiny_models  # noqa: E402

# The tracer's warnings are hidden by the command line, too.
pytestmark = pytest.mark.filterwarnings("ignore")

KINDS = ("llama", "qwen2", "qwen3", "gemma3_text")
LAYERS, DROPPED = 3, (1,)
PROMPT = [0, 7, 90, 41, 33, 200, 12, 5, 77, 31]
F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
MADE = bundle.Bundle(
    target="big", target_shape="", target_fingerprint="f" * 64, tokenizer="t", source="small",
    precision="fp16", layers=(0, 2), num_layers=LAYERS, head=((0, 5), (9, 10)),
)  # fmt: skip


def ir_logits(folder: Path) -> Any:
    n = len(PROMPT)
    inputs = {"input_ids": np.array([PROMPT]), "attention_mask": np.ones((1, n), np.int64)}
    inputs |= {"position_ids": np.arange(n)[None], "beam_idx": np.zeros(1, np.int32)}
    return core().compile_model(folder / IR_XML, "CPU", F32)(inputs)["logits"][0]


def hf_logits(folder: Path, half_tables: bool = False) -> Any:
    """Write a model's IR. half_tables: store rotary tables in float16, as the exporter does for fp16."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    for name, buffer in model.named_buffers():
        if half_tables and "inv_freq" in name:
            buffer.data = buffer.half().float()
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0].numpy()


def stored(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


def off(want: Any, got: Any) -> float:
    return float(np.abs(want - got).max() / np.abs(want).max())


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return the IR of a random model with one of its three layers dropped.

    Each kind is traced once, and stored as the exporter stores this precision.
    """
    place = tmp_path_factory.mktemp("drafts")

    def trace(kind: str) -> None:
        tiny_models.save_hf(place / kind, kind, num_hidden_layers=LAYERS)
        (place / f"{kind} rest").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compress, "compress", lambda ir, *_: shutil.copytree(ir, place / f"{kind} traced"))
            export(place / kind, place / f"{kind} rest", "int8")

    def make(kind: str, precision: str) -> Path:
        cut, traced = place / f"{kind} {precision}", place / f"{kind} traced"
        if not cut.exists():
            if not traced.exists():
                trace(kind)
            whole = shutil.copytree(place / f"{kind} rest", place / f"{cut.name} whole")
            if precision == "fp16":
                ov.save_model(core().read_model(traced / IR_XML), whole / IR_XML, compress_to_fp16=True)
            else:
                compress.compress(traced, whole, parse(precision), silent)
            ir.drop_layers(whole, cut, DROPPED)
        return cut

    return make


@pytest.fixture
def llama(draft: Callable[[str, str], Path]) -> Path:
    return draft("llama", "fp16")


@pytest.mark.parametrize(
    ("kind", "precision"), [*product(KINDS, ("fp16", "int8", "int4")), ("qwen2", "int4:asym")]
)
def test_transformers_computes_what_the_ir_computes(
    kind: str, precision: str, draft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = draft(kind, precision)
    want = ir_logits(cut)
    to_hugging_face(cut, tmp_path / "half")
    assert off(want, hf_logits(tmp_path / "half")) < 0.02
    monkeypatch.setattr(to_huggingface, "DTYPE", np.float32)  # without rounding it is the very same model
    to_hugging_face(cut, tmp_path / "full")
    assert off(want, hf_logits(tmp_path / "full", precision == "fp16")) < 2e-5
    half, full = stored(tmp_path / "half"), stored(tmp_path / "full")
    assert {*half} == {*full} and all(np.array_equal(half[n], full[n].astype(np.float16)) for n in full)
    assert {n.split(".")[2] for n in half if ".layers." in n} == {"0", "1"} and "lm_head.weight" not in half


@pytest.mark.parametrize("kind", ["qwen2", "gemma3_text"])  # biases; norms of 1 + weight
def test_what_was_exported_can_be_converted_again(kind: str, draft: Any, tmp_path: Path) -> None:
    cut = draft(kind, "int4")
    (tmp_path / "again").mkdir()
    export(to_hugging_face(cut, tmp_path / "hf"), tmp_path / "again", "fp16")
    assert off(ir_logits(cut), ir_logits(tmp_path / "again")) < 0.02
    dtypes = {array.dtype for array in stored(tmp_path / "hf").values()}
    assert dtypes == {np.dtype(np.float16)}


def test_an_exported_bundle_stays_one(draft: Any, tmp_path: Path) -> None:
    from specport.backends.torch.load import load

    shutil.copytree(draft("llama", "int8"), tmp_path / "ir")
    bundle.write(tmp_path / "ir", MADE)
    made = to_hugging_face(tmp_path / "ir", tmp_path / "hf")
    files = resolve(str(made), precision="fp32", weights="huggingface")
    assert files.bundle is not None and files.bundle.precision == "fp16"
    head = files.bundle.head_tokens
    options = LoadOptions(load_profile("torch-cpu"), role="draft", head_tokens=head)
    assert head and load(files, options).model.vocab_size == len(head)


def changed(folder: Path, target: Path, surgery: Callable[[Any, dict[str, Any]], None]) -> Path:
    """Return a copy of an IR folder whose graph was changed by a function of its nodes by name."""
    ir.drop_layers(folder, target, ())
    model = core().read_model(folder / IR_XML)
    surgery(model, {node.get_friendly_name(): node for node in model.get_ops()})
    model.validate_nodes_and_infer_types()
    ov.save_model(model, target / IR_XML, compress_to_fp16=False)
    return target


def scaled_input(model: Any, nodes: dict[str, Any]) -> None:
    """AWQ inserts such a scale where it finds no weight to fold it into."""
    linear = nodes["__module.model.layers.2.mlp.down_proj/aten::linear/MatMul"]
    scale = ov.opset15.constant(np.full((1, 1, 128), 1.001, np.float32))
    linear.input(0).replace_source_output(ov.opset15.multiply(linear.input_value(0), scale).output(0))


def own_head(model: Any, nodes: dict[str, Any]) -> None:
    """Make a head that is no longer tied to the embedding, and is stored transposed."""
    head = nodes["__module.lm_head/aten::linear/MatMul"]
    weight = np.random.default_rng(0).normal(size=(64, len(tiny_models.vocabulary()))).astype(np.float32)
    turned = ov.opset15.matmul(head.input_value(0), ov.opset15.constant(weight), False, False)
    turned.set_friendly_name(head.get_friendly_name())
    for port in head.output(0).get_target_inputs():
        port.replace_source_output(turned.output(0))


def test_a_head_of_its_own_is_kept(llama: Path, tmp_path: Path) -> None:
    source = changed(llama, tmp_path / "ir", own_head)
    to_hugging_face(source, tmp_path / "hf")
    assert off(ir_logits(source), hf_logits(tmp_path / "hf")) < 0.005
    assert "lm_head.weight" in stored(tmp_path / "hf")


def test_a_model_that_transformers_cannot_compute_is_refused(llama: Path, tmp_path: Path) -> None:
    source = changed(llama, tmp_path / "ir", scaled_input)
    with pytest.raises(ModelError, match=r"computes more than .*--to genai"):
        to_hugging_face(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["ir"]


def test_int8_activations_are_refused(tmp_path: Path) -> None:
    tiny_models.save_hf(tmp_path / "hf", "qwen2", num_hidden_layers=1)
    (tmp_path / "ir").mkdir()
    export(tmp_path / "hf", tmp_path / "ir", "int8:activations")
    with pytest.raises(ModelError, match=r"has quantised activations.*--to genai"):
        to_hugging_face(tmp_path / "ir", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "ir"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 3}, r"9 are missing.*layers\.2\."),
        ({"intermediate_size": 64}, r"of another shape.*down_proj"),
        ({"attention_bias": True}, r"missing.*bias"),
        (
            {"rope_theta": 20.0, "rope_parameters": {"rope_type": "default", "rope_theta": 20.0}},
            "gives other logits",
        ),
        ({"rms_norm_eps": 1e30}, "gives other logits"),
        ({"model_type": "nothing"}, "cannot build"),
        ({"model_type": "t5"}, "cannot build"),
    ],
)
def test_weights_of_another_architecture_are_refused(
    change: dict[str, Any], says: str, llama: Path, tmp_path: Path
) -> None:
    ir.drop_layers(llama, tmp_path / "ir", ())
    config = json.loads((tmp_path / "ir" / "config.json").read_text())
    (tmp_path / "ir" / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=says):
        to_hugging_face(tmp_path / "ir", tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["ir"]


def test_a_full_disk_and_ctrl_c_leave_nothing(llama: Path, tmp_path: Path) -> None:
    def stop(what: str, share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        to_hugging_face(llama, tmp_path / "hf", stop)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))  # the weights are larger, all else is smaller
    try:
        with pytest.raises(ModelError, match=r"cannot make .*File too large.*free some space"):
            to_hugging_face(llama, tmp_path / "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not [*tmp_path.iterdir()]
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot make"):
        to_hugging_face(llama, tmp_path / "file" / "hf")
    with pytest.raises(InvalidInput, match="is there already"):
        to_hugging_face(llama, tmp_path / "file")


def test_the_command_line_writes_both_layouts(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "draft", tmp_path / "new" / "hf"
    ir.drop_layers(llama, folder, ())
    known = json.loads((folder / "config.json").read_text())
    known.pop("architectures")  # as where the model was a GGUF file
    (folder / "config.json").write_text(json.dumps(known))
    bundle.write(folder, replace(MADE, target_shape=bundle.shape(folder)))
    assert main(["quantize", "export", str(folder), "--to", "hf", "--out", str(out)]) == 0
    assert "AutoModelForCausalLM" in capsys.readouterr().err
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    messages = [{"role": "user", "content": "hello"}]
    turns = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert turns[0] == 1 and tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    config = AutoConfig.from_pretrained(out, local_files_only=True)
    assert config.num_hidden_layers == 2 and str(config.dtype) == "torch.float16"
    assert config.architectures == ["LlamaForCausalLM"]
    assert hf_logits(out).shape[1] == len(tiny_models.vocabulary())  # the head is whole
    served, own = tmp_path / "served", str(out)  # the model beside itself
    words = ["quantize", "export", str(folder), "--to", "vllm", "--target", own, "--out", str(served)]
    bundle.write(folder, replace(MADE, target_shape=bundle.shape(out)))
    assert main(words) == 0 and "vllm serve" in capsys.readouterr().err
    assert off(ir_logits(folder), hf_logits(served / "draft")) < 0.02
    names = {path.name for path in out.iterdir()}
    assert names >= {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert [name for name in names if "openvino" in name or "specport" in name] == [bundle.BUNDLE_FILE]

    pytest.importorskip("openvino_tokenizers")
    genai = tmp_path / "genai"
    assert main(["quantize", "export", str(folder), "--to", "genai", "--out", str(genai)]) == 0
    assert "openvino_genai" in capsys.readouterr().err
    assert {"openvino_model.xml", "openvino_tokenizer.xml"} <= {path.name for path in genai.iterdir()}


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "draft").mkdir()
    for to, out, says in [
        ("gguf", "new", "choose one of genai, hf, vllm"),
        ("hf", "draft", "is there already"),
        ("hf", "new", "is not a draft bundle"),
    ]:
        arguments = ["quantize", "export", str(tmp_path / "draft"), "--to", to, "--out", str(tmp_path / out)]
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["draft"]
