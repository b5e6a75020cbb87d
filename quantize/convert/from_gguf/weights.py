"""Load the weights of a GGUF file with transformers, and see that none is missing and none is left out.

transformers fills what it does not find with random numbers, and ignores what it does not know. A model is
whole or not run: both are refused before the weights are read.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from specport.errors import ModelError
from specport.models.gguf.file import GgufHeader

_UNUSED = re.compile(  # tensors that say nothing beyond the configuration, or that it was read from
    r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\.attn_rot_embd(\.weight)?"
)
_EXPERT = re.compile(r"(?<=mlp\.)experts\.\d+\.")  # transformers 4 has experts one by one
_HINT = "use another file of this model, or its Hugging Face folder"
_SHOWN = 3


def load(slim: Path, header: GgufHeader, config: Any, dtype: Any, half: bool) -> Any:
    """Return the model of `config` with the weights in the file `slim`.

    header: of the model's own file or files, for messages.
    half:   hold matrices in float16 while they are read.
    Raises ModelError.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _lean_loader(half, config):
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, dtype=dtype)
        _check_whole(header, empty)
        model, told = AutoModelForCausalLM.from_pretrained(
            slim.parent, gguf_file=slim.name, config=config, dtype=dtype, local_files_only=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    tied = {
        *(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    }
    missing = sorted({*told["missing_keys"]} - (tied if config.tie_word_embeddings else set()))
    if missing:
        raise ModelError(f"{header.path}: transformers found no weights for {_names(missing)}", _HINT)
    return model


@contextmanager
def _lean_loader(half: bool, config: Any) -> Iterator[None]:
    """Make transformers' GGUF loader cheaper, and complete, while the context lasts.

    The loader rebuilds gguf's table of tensor names for each module of the model; here it is cached. The
    loader also holds all tensors in float32 until the last is read; with `half`, matrices are held in
    float16. Numbers of heads and experts, which the loader may not find in the metadata, come from `config`.
    falcon's order of weights, which it does not know, is undone.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    name_map, dequantize = gguf.get_tensor_name_map, gguf.dequantize

    def halved(data: Any, kind: Any) -> Any:
        array = dequantize(data, kind)
        return array.astype(np.float16) if array.ndim > 1 else array

    class Falcon(loader.TensorProcessor):  # type: ignore[misc, name-defined, unused-ignore]
        def process(self, weights: Any, name: str, **options: Any) -> Any:
            if "attn_qkv" in name:
                weights = _grouped(weights, self.config)
            return loader.GGUFTensor(weights, name, {})

    def informed(kind: Any) -> Any:
        return lambda config: kind(config={**config, **numbers})

    known, numbers = loader.TENSOR_PROCESSORS, config.to_dict()
    gguf.get_tensor_name_map = functools.cache(name_map)
    gguf.dequantize = halved if half else dequantize
    kinds = {"falcon": Falcon, **known}
    loader.TENSOR_PROCESSORS = {name: informed(kind) for name, kind in kinds.items()}
    try:
        yield
    finally:
        gguf.get_tensor_name_map, gguf.dequantize = name_map, dequantize
        loader.TENSOR_PROCESSORS = known


def _grouped(weights: Any, config: Mapping[str, Any]) -> Any:
    """Return falcon's joint projection with the queries of each group beside their keys and values.

    llama.cpp's converter puts all queries before all keys and all values, which transformers does not undo.
    """
    heads, groups = config["num_attention_heads"], config["num_kv_heads"]
    width = weights.shape[0] // (heads + 2 * groups)
    rest = weights.shape[1:]
    queries, keys, values = np.split(weights, [heads * width, (heads + groups) * width])
    parts = [queries.reshape(groups, -1, *rest), keys.reshape(groups, -1, *rest)]
    return np.concatenate([*parts, values.reshape(groups, -1, *rest)], axis=1).reshape(weights.shape)


def _check_whole(header: GgufHeader, empty: Any) -> None:
    """Raise ModelError where tensors of the file are not exactly those of the model, by name and shape."""
    from transformers import modeling_gguf_pytorch_utils as loader

    known = loader.get_gguf_hf_weights_map
    # transformers 4 knows the architecture by the model alone.
    processor = loader.TENSOR_PROCESSORS.get(header.architecture, loader.TensorProcessor)({})
    found_names = known(*(empty, processor)[: 1 + ("processor" in inspect.signature(known).parameters)])
    names = {f"{name}.weight" if name.endswith("_exps") else name: to for name, to in found_names.items()}
    if empty.config.tie_word_embeddings:
        names.pop("output.weight", None)
    missing = sorted(names.keys() - header.tensors.keys(), key=_natural)
    if missing:
        raise ModelError(f"{header.path} is not whole; missing: {_names(missing)}", _HINT)
    unknown = sorted(
        (n for n in header.tensors.keys() - names.keys() if not _UNUSED.fullmatch(n)), key=_natural
    )
    if unknown:
        raise ModelError(
            f"{header.path} has tensors that {empty.config.model_type} models have not: {_names(unknown)}",
            _HINT,
        )
    wanted: dict[str, list[tuple[int, ...]]] = {}
    for name, parameter in empty.named_parameters():
        wanted.setdefault(_EXPERT.sub("experts.", name), []).append(tuple(parameter.shape))
    found: dict[str, list[str]] = {}
    for name, hf_name in names.items():
        found.setdefault(hf_name, []).append(name)
    for hf_name, shapes in wanted.items():
        if hf_name not in found:  # only where a tied matrix stands under two names
            if not (empty.config.tie_word_embeddings and hf_name.startswith("lm_head.")):
                raise ModelError(f"{header.path}: the installed transformers cannot read {hf_name}", _HINT)
            continue
        for name in _misfits(header, found[hf_name], shapes):
            shape = header.tensors[name].shape
            raise ModelError(
                f"{header.path}: tensor {name} has the wrong shape {list(reversed(shape))}", _HINT
            )


def _misfits(header: GgufHeader, names: list[str], shapes: list[tuple[int, ...]]) -> list[str]:
    """Return which tensors do not fit parameters of these shapes.

    Experts are joined in a file, and the installed transformers joins them otherwise: there only the number
    of weights is compared.
    """
    if len(names) == len(shapes) == 1:
        want = _axes(shapes[0])
        have = _axes(reversed(header.tensors[names[0]].shape))
        fits = have == want or (header.architecture == "gpt2" and have == want[::-1])
        return [] if fits else names
    count = sum(header.tensors[name].elements for name in names)
    return [] if count == sum(map(math.prod, shapes)) else names


def _axes(shape: Any) -> tuple[int, ...]:
    """Return a shape without axes of length 1, which converters add and drop."""
    return tuple(extent for extent in shape if extent != 1)


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _names(names: list[str]) -> str:
    """Return the first names and how many follow."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
