"""Write a trained pair model as a folder (`models.kinds.pipo` says what it has)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from specport.quantize.convert import export
from specport.quantize.pipo import lora
from specport.quantize.pipo.network import PairNetwork

from specport.models.kinds import pipo
from specport.models.kinds.pipo import PairConfig

_MODULE = "second_token.safetensors"  # beside the decoder's weights


def write_folder(
    network: PairNetwork,
    source: Path,
    out: Path,
    name: str,
    *,
    dtype: str = "float16",
    trust_remote_code: bool = False,
) -> None:
    """Write the folder `out`, with the updates merged into the decoder. The network is left as it is.

    source: GGUF file or folder of the original, for its tokenizer. name: of the original.
    """
    from safetensors.torch import save_file

    kept: Any = getattr(torch, dtype)
    decoder = copy.deepcopy(network.model)
    lora.merge(decoder.model.layers)
    folder = out / pipo.DECODER
    folder.mkdir(parents=True, exist_ok=True)
    decoder.to(kept).save_pretrained(folder)
    tensors = {name: weight.to(kept).contiguous() for name, weight in network.module_weights().items()}
    save_file(tensors, folder / _MODULE, metadata={"format": "pt"})
    export.finish(source, folder, trust_remote_code)
    pipo.write(out, PairConfig(network.width, network.vocab, source=name), network.pair_weights())
