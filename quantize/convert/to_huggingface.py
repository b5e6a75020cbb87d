"""A draft as a plain Hugging Face folder, for runtimes that read no OpenVINO IR.

Exporters fold and rename constants, but name each operation after the module that it stands for:
`__module.model.layers.3.mlp.down_proj/aten::linear/MatMul` reads that module's weight. Which weights there
have to be, the architecture says; whether they are the right ones, a text that both models read.
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
from specport.quantize.prune.probe import Probe
from specport.quantize.text.prompts import HELD_OUT

from specport.errors import InvalidInput, ModelError
from specport.models import bundle
from specport.models.atomic import write_json
from specport.models.bundle import BUNDLE_FILE
from specport.models.manifest import MANIFEST_FILE
from specport.models.os_errors import cause
from specport.progress import Progress, part, silent
from specport.text.builtin_prompts import Text, encode
from specport.text.tokenizer import load_tokenizer, read_json

_COPIED = (".json", ".jinja", ".model", ".txt")  # tokenizer, generation config
_WRITTEN = (BUNDLE_FILE, MANIFEST_FILE, "config.json")  # of no use there, or written anew
_PRECISION = "fp16"  # of the weights that are written
_F32 = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
_DTYPE = np.float16
_TOKENS = 32  # of the text that both models read
# Largest difference of their logits, as a share of the largest logit. Rounding to float16 made 0.0003 on
# Qwen2.5-Coder-0.5B INT4, 0.003 on SmolLM2-135M INT8 without three layers, up to 0.008 on random models.
_TOLERANCE = 0.03
_OPERATION = re.compile(r"__module\.([\w.]+)/\w+::\w+/(?:MatMul|Gather|Multiply|Add)(?:_\d+)?$")
_LAYER = re.compile(r"\blayers\.(\d+)\.")
_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_INSTEAD = "use --to genai, or build the draft with another --draft-precision"


class _Weight(NamedTuple):
    """Where a parameter's value comes out in the graph, and the operation that reads it."""

    source: ov.Output  # keeps its node alive, as an ov.Input would not
    reader: ov.Node

    @property
    def turned(self) -> bool:
        """Whether it is a linear layer's as [in, out]; transformers has [out, in]."""
        node = self.reader
        return node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]

    @property
    def shape(self) -> list[int]:
        """Of its value, without the axes of length 1 that constants have for broadcasting."""
        shape = [n for n in self.source.get_shape() if n > 1]
        return shape[::-1] if self.turned else shape

    def value(self) -> NDArray[np.float32]:
        """Decompressed by the runtime itself."""
        result = ops.result(ops.convert(self.source, np.float32))
        compiled = ov.Core().compile_model(ov.Model([result], [], "weight"), "CPU", _F32)
        found: NDArray[np.float32] = np.array(compiled({})[0])
        return found.T if self.turned else found


def to_hugging_face(folder: Path, out: Path, progress: Progress = silent) -> Path:
    """Write the model in `folder`, IR of any weight compression, to the new folder `out`, in float16.

    transformers loads it offline. Layers are numbered anew where some were dropped; the head is whole. A
    draft bundle stays one, for the torch backend. Needs memory for the weights in float32. Raises
    InvalidInput where `out` is there already, ModelError where the graph's weights are not those of its
    architecture; no part of `out` is left then.
    """
    if out.exists():
        raise InvalidInput(f"{out} is there already", "choose another folder")
    progress("reading the model", 0.0)
    form = _form(folder)
    weights = _find(surgery.read_model(folder), form, folder)
    config = read_json(folder / "config.json")
    for name in ("dtype", "auto_map", "quantization_config"):  # not true of what is written
        config.pop(name, None)
    config |= {"architectures": [type(form).__name__], "torch_dtype": np.dtype(_DTYPE).name}
    if form.config.tie_word_embeddings and {_HEAD, _EMBEDDING} <= {*weights}:
        if weights[_HEAD].source == weights[_EMBEDDING].source:
            del weights[_HEAD]
        else:  # compressed one by one, embedding and head are no longer equal
            config["tie_word_embeddings"] = False
    with _new_folder(out) as work:
        for path in folder.iterdir():
            if path.suffix in _COPIED and path.name not in _WRITTEN:
                shutil.copyfile(path, work / path.name)
        write_json(work / "config.json", config, indent=2)
        _save(weights, form, work / "model.safetensors", part(progress, 0.1, 0.7))
        progress("comparing the two models", 0.7)
        _compare(folder, work)
        if (folder / BUNDLE_FILE).is_file():
            bundle.write(work, replace(bundle.read(folder), precision=_PRECISION))
    progress("done", 1.0)
    return out


def _form(folder: Path) -> Any:
    """The architecture without its weights: transformers' modules on torch's meta device."""
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
    except Exception as error:  # whatever transformers says about models that it does not know
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"transformers cannot build {folder}: {reason}", "use --to genai") from error


def _find(model: ov.Model, form: Any, folder: Path) -> dict[str, _Weight]:
    """Each parameter of `form` -> what reads it in the graph. Raises ModelError where they do not match."""
    expected = {name: tuple(value.shape) for name, value in form.state_dict().items()}
    read = _read(model, folder)
    layers = sorted({int(match[1]) for name in read if (match := _LAYER.search(name))})
    found = {
        _LAYER.sub(lambda match: f"layers.{layers.index(int(match[1]))}.", name): weight
        for name, weight in read.items()
    }
    wrong = {*found} ^ {*expected} or {
        name for name, weight in found.items() if weight.shape != [n for n in expected[name] if n > 1]
    }
    if wrong:
        raise ModelError(
            f"{folder} has other weights than a {type(form).__name__} of its config.json: {len(wrong)} are "
            f"missing, too many or of another shape, such as {', '.join(sorted(wrong)[:3])}",
            _INSTEAD,
        )
    return found


def _read(model: ov.Model, folder: Path) -> dict[str, _Weight]:
    """Parameters, with the number that their layer has in the graph -> what reads them."""
    nodes = model.get_ordered_ops()
    if any(node.get_type_name() in ("FakeQuantize", "FakeConvert") for node in nodes):
        raise ModelError(
            f"{folder} quantises activations as well, and its weights are scaled to suit that", _INSTEAD
        )
    constant: set[str] = set()
    found: dict[str, _Weight] = {}
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
            if not match or name in found:  # as where AWQ scales what a layer reads
                raise ModelError(
                    f"{folder} computes more than its architecture does, at {operation}", _INSTEAD
                )
            found[name] = _Weight(source, node)
    return found


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
        with np.errstate(over="ignore"):  # infinities show when the two models are compared
            stored = value.astype(_DTYPE, order="C").reshape(form.get_parameter(name).shape)
        state[name] = torch.from_numpy(stored)
    progress("writing weights", 1.0)
    try:
        save_file(state, path, {"format": "pt"})
    except SafetensorError as error:  # of a full disk, too
        raise OSError(str(error)) from error


def _folded(norm: Any) -> float:
    """1 for a norm that multiplies by 1 + weight, as gemma's do: exporters fold the sum. Else 0."""
    import torch

    probe = copy.deepcopy(norm).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.zero_()
        return float(probe(torch.linspace(-1, 1, norm.weight.numel())).abs().max() > 0)


def _compare(folder: Path, made: Path) -> None:
    """Raises ModelError where the logits of a short text differ by more than rounding explains."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = encode(load_tokenizer(folder), HELD_OUT[0])[:_TOKENS]
    want = Probe(folder, "CPU", _F32).logits(Text(tuple(tokens[:1]), tuple(tokens[1:]))).copy()
    model = AutoModelForCausalLM.from_pretrained(
        made, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    with torch.no_grad():
        got = model(torch.tensor([tokens[:-1]])).logits[0].numpy()
    difference = float(np.abs(got - want).max() / np.abs(want).max())
    if not difference <= _TOLERANCE:  # nor where it is no number
        raise ModelError(
            f"the weights of {folder} do not give its logits in transformers: off by {difference:.0%}",
            _INSTEAD,
        )


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` at the end; nothing is left of it where the end is not reached."""
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
