"""Conversion of an IR folder to a Hugging Face folder, for runtimes that do not read OpenVINO IR.

Exporters fold and rename constants, but name each operation after its module:
`__module.model.layers.3.mlp.down_proj/aten::linear/MatMul` reads the weight of that module. The config
determines which weights must exist. The weights are verified by comparing both models' logits on a short
text.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset15 as ops
from specport.backends.openvino.graph import surgery
from specport.quantize.convert import config_file, package_faults, whole_model
from specport.quantize.convert.openvino_core import core
from specport.quantize.prune.probe import Probe
from specport.quantize.text.prompts import HELD_OUT

from specport.calibration.target_text import Text
from specport.errors import InvalidInput, ModelError
from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.bundle import BUNDLE_FILE
from specport.models.json_file import read_json
from specport.models.kinds import bigrams
from specport.models.manifest import MANIFEST_FILE
from specport.models.os_errors import cause
from specport.progress import Progress, part, silent
from specport.text.builtin_prompts import encode
from specport.text.tokenizer import load_tokenizer

_COPIED = (".json", ".jinja", ".model", ".txt")  # tokenizer, generation config
_WRITTEN = (BUNDLE_FILE, MANIFEST_FILE, "config.json")  # useless there, or written anew
_PRECISION = "fp16"  # of the weights that are written
_F32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
DTYPE = np.float16
_TOKENS = 32  # of the text that is compared
# Largest difference of the logits, as a share of the largest logit. Rounding to float16 gave 0.0003 on
# Qwen2.5-Coder-0.5B INT4, 0.003 on SmolLM2-135M INT8 without three layers, up to 0.008 on random models.
_TOLERANCE = 0.03
_OPERATION = re.compile(r"__module\.([\w.]+)/\w+::\w+/(?:MatMul|Gather|Multiply|Add)(?:_\d+)?$")
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_INSTEAD = "use --to genai, or build the draft with another --draft-precision"


_STORED = (ov.Type.f16, ov.Type.f32)  # types of weights that are not compressed


class _Weight(NamedTuple):
    """A parameter in the graph: the output that holds its value, and the operation that reads it."""

    source: ov.Output  # keeps its node alive, as an ov.Input would not
    reader: ov.Node

    @property
    def transposed(self) -> bool:
        """Return whether it is a linear weight stored as [in, out]; transformers stores [out, in]."""
        node = self.reader
        return node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]

    @property
    def shape(self) -> list[int]:
        """Return the shape without axes of length 1, which constants have for broadcasting."""
        shape = [n for n in self.source.get_shape() if n > 1]
        return shape[::-1] if self.transposed else shape

    def value(self) -> NDArray[np.float32]:
        """Return the value, decompressed by the runtime where it is compressed."""
        node = self.source.get_node()
        if node.get_type_name() == "Convert":
            node = node.input_value(0).get_node()
        if node.get_type_name() == "Constant" and node.get_element_type() in _STORED:
            value: NDArray[np.float32] = node.data.astype(np.float32)
            return value.T if self.transposed else value
        result = ops.result(ops.convert(self.source, np.float32))
        compiled = core().compile_model(ov.Model([result], [], "weight"), "CPU", _F32)
        value = np.array(compiled({})[0])
        return value.T if self.transposed else value


def to_hugging_face(folder: Path, out: Path, progress: Progress = silent) -> Path:
    """Write the IR in `folder`, of any weight compression, to the new folder `out` in float16.

    transformers loads the result offline. Layers are renumbered where some were dropped; the head is whole. A
    draft bundle stays a bundle, for the torch backend. Needs memory for the weights in float32.

    Raises InvalidInput where `out` exists, and ModelError where the graph's weights are not those of its
    architecture; then nothing is left of `out`.
    """
    if out.exists():
        raise InvalidInput(f"{out} is there already", "choose another folder")
    progress("reading the model", 0.0)
    form = _architecture(folder)
    weights = _find(surgery.read_model(folder), form, folder)
    config = config_file.with_old_names(read_json(folder / "config.json"))
    for name in ("dtype", "auto_map", "quantization_config"):  # not true of the new folder
        config.pop(name, None)
    config |= {"architectures": [type(form).__name__], "torch_dtype": np.dtype(DTYPE).name}
    if form.config.tie_word_embeddings and {_HEAD, _EMBEDDING} <= {*weights}:
        if weights[_HEAD].source == weights[_EMBEDDING].source:
            del weights[_HEAD]
        else:  # compressed separately, embedding and head are no longer equal
            config["tie_word_embeddings"] = False
    with new_folder(out) as work:
        for path in folder.iterdir():
            if path.suffix in _COPIED and path.name not in _WRITTEN:
                shutil.copyfile(path, work / path.name)
        bigrams.copy(folder, work)
        write_json(work / "config.json", config, indent=2)
        _save(weights, form, work / "model.safetensors", part(progress, 0.1, 0.7))
        progress("comparing the two models", 0.7)
        _compare(folder, work)
        if (folder / BUNDLE_FILE).is_file():
            bundle.write(work, replace(bundle.read(folder), precision=_PRECISION))
    progress("done", 1.0)
    return out


def _architecture(folder: Path) -> Any:
    """Return the architecture of a folder's config: transformers' modules on torch's meta device."""
    package_faults.mend()
    try:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, logging
    except ImportError as error:
        raise ModelError(
            f"a Hugging Face folder needs more packages: {error}", "pip install 'specport[openvino]'"
        ) from error
    logging.set_verbosity_error()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for models that it does not know
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"transformers cannot build {folder}: {reason}", "use --to genai") from error


def _find(model: ov.Model, form: Any, folder: Path) -> dict[str, _Weight]:
    """Return the weight in the graph of each parameter of `form`.

    Raises ModelError where they do not match.
    """
    expected = {name: tuple(value.shape) for name, value in form.state_dict().items()}
    read = _read(model, folder)
    layers = sorted({int(match[1]) for name in read if (match := _LAYER.search(name))})
    weights = {
        _LAYER.sub(lambda match: f"layers.{layers.index(int(match[1]))}.", name): weight
        for name, weight in read.items()
    }
    wrong = {*weights} ^ {*expected} or {
        name for name, weight in weights.items() if weight.shape != [n for n in expected[name] if n > 1]
    }
    if wrong:
        raise ModelError(
            f"{folder} has other weights than a {type(form).__name__} of its config.json: {len(wrong)} are "
            f"missing, too many or of another shape, such as {', '.join(sorted(wrong)[:3])}",
            _INSTEAD,
        )
    return weights


def _read(model: ov.Model, folder: Path) -> dict[str, _Weight]:
    """Return the weight behind each parameter's name, with layer numbers as in the graph."""
    nodes = model.get_ordered_ops()
    if any(node.get_type_name() in ("FakeQuantize", "FakeConvert") for node in nodes):
        raise ModelError(
            f"{folder} has quantised activations, and its weights are scaled accordingly", _INSTEAD
        )
    constant: set[str] = set()
    weights: dict[str, _Weight] = {}
    for node in nodes:
        kind, sources = node.get_type_name(), node.input_values()
        known = [source for source in sources if source.get_node().get_name() in constant]
        if kind == "Constant" or (sources and len(known) == len(sources) and kind != "ReadValue"):
            constant.add(node.get_name())  # with its decompression: Convert, Subtract, Multiply, Reshape
            continue
        operation = node.get_friendly_name()
        for source in known:
            if not source.get_element_type().is_real() or prod(source.get_shape()) < 2:
                continue  # shapes, indices, epsilons
            if ".rotary_emb" in operation:
                continue  # tables that follow from the configuration
            match = _OPERATION.match(operation)
            name = f"{match[1]}.{'bias' if kind == 'Add' else 'weight'}" if match else operation
            if not match or name in weights:  # as where AWQ scales a layer's input
                raise ModelError(
                    f"{folder} computes more than its architecture does, at {operation}", _INSTEAD
                )
            weights[name] = _Weight(source, node)
    return weights


def _save(weights: Mapping[str, _Weight], form: Any, path: Path, progress: Progress) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    state: dict[str, Any] = {}
    for number, (name, weight) in enumerate(weights.items()):
        progress("decompressing weights", number / len(weights))
        value = weight.value()
        if weight.reader.get_type_name() == "Multiply":
            value = value - _folded(form.get_submodule(name.rpartition(".")[0]))
        with np.errstate(over="ignore"):  # infinities show in the comparison of the two models
            stored = value.astype(DTYPE, order="C").reshape(form.get_parameter(name).shape)
        state[name] = torch.from_numpy(stored)
    progress("writing weights", 1.0)
    try:
        save_file(state, path, {"format": "pt"})
    except SafetensorError as error:  # raised for a full disk, too
        raise OSError(str(error)) from error


def _folded(norm: Any) -> float:
    """Return 1 for a norm that multiplies by 1 + weight (gemma): exporters fold that sum. Else 0."""
    import torch

    probe = copy.deepcopy(norm).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.zero_()
        return float(probe(torch.linspace(-1, 1, norm.weight.numel())).abs().max() > 0)


def _compare(folder: Path, made: Path) -> None:
    """Raise ModelError where both models' logits on a short text differ by more than rounding."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = encode(load_tokenizer(folder), HELD_OUT[0])[:_TOKENS]
    expected = Probe(folder, "CPU", _F32).logits(Text(tuple(tokens[:1]), tuple(tokens[1:]))).copy()
    model = whole_model.read(AutoModelForCausalLM, made, dtype=torch.float32)
    with torch.no_grad():
        actual = model(torch.tensor([tokens[:-1]])).logits[0].numpy()
    difference = float(np.abs(actual - expected).max() / np.abs(expected).max())
    if not difference <= _TOLERANCE:  # also refuses NaN
        raise ModelError(
            f"transformers gives other logits with the weights of {folder}: they differ by {difference:.0%}",
            _INSTEAD,
        )


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that is renamed to `out` at the end, and removed after an error."""
    work = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        work.mkdir(parents=True)
        yield work
        os.rename(work, out)
    except OSError as error:
        message, hint = cause(error, "free some space, or choose another folder")
        raise ModelError(f"cannot make {out}: {message}", hint) from error
    except MemoryError as error:
        raise ModelError("there is not enough memory to write this model", "close other programs") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
