"""Where the training of an MTP head starts: its join is fitted to the target's next state."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from specport.quantize.convert import export
from specport.quantize.mtp.student import MtpStudent
from specport.quantize.prune.prune import decoder_layers
from specport.quantize.text.dialogues import Dialogue
from specport.quantize.text.hidden import next_states
from specport.quantize.train import ridge

from specport.models.kinds import mtp
from specport.models.kinds.mtp import Join

EXAMPLES = 40_000  # places of text that the join is fitted on, about
ADDED = ("self_attn.o_proj.weight", "mlp.down_proj.weight")  # what a layer adds with


def write_first(folder: Path, source: Path, config: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Write a head whose join is still to be fitted (`fit`): the target's last layer and norm behind zeros.

    The layer at first adds nothing: its two output matrices are zeros too.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        model = export.load_source(source, Path(temporary), trust_remote_code)
    last = decoder_layers(model)[-1]
    layer = {name: half(tensor) for name, tensor in last.state_dict().items()}
    for name in ADDED:
        layer[name][:] = 0.0
    norm = half(model.model.norm.weight)
    gain = np.ones(len(norm), dtype=np.float32)
    join = Join(np.zeros((len(norm), 2 * len(norm)), dtype=np.float16), gain, gain, 0.0)
    mtp.write_parts(folder, config, int(config["num_hidden_layers"]) - 1, layer, norm, join)


def fit(student: MtpStudent, texts: Sequence[Dialogue], table: NDArray[Any]) -> None:
    """Fit the join of a head that `write_first` wrote, and the gains of its norm, to the texts' next states.

    table: embeddings.
    """
    with torch.no_grad():
        norm, join = fitted(texts, table, half(student.body.norm.weight))
        for parameter, values in (
            (student.body.norm.weight, norm),
            (student.join.weight, join.weight),
            (student.token_gain, join.token_gain),
            (student.state_gain, join.state_gain),
        ):
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def fitted(
    texts: Sequence[Dialogue], table: NDArray[Any], norm: NDArray[Any]
) -> tuple[NDArray[np.float16], Join]:
    """Return the gains of a head's norm, and its join, so that together they give the target's next state.

    The join maps the token behind a state and that state, both scaled to unit size in each channel, to the
    next state. norm: [width] gains of the target's last norm, behind which states are read. The head's are
    smaller, by the share of a state that the map explains.
    """
    states, tokens, after = next_states(texts, len(norm), EXAMPLES)
    parts = [ridge.rms_norm(torch.from_numpy(x)) for x in (table[tokens].astype(np.float32), states)]
    gains = [ridge.unit_gain(part) for part in parts]
    read = torch.cat([gain * part for gain, part in zip(gains, parts, strict=True)], dim=1)
    wanted = torch.from_numpy(after / norm.astype(np.float32))
    weight = ridge.linear_map(read, wanted)
    share = ridge.share_explained(ridge.rms_norm(read @ weight.T), wanted)
    token, state = (gain.numpy() for gain in gains)
    return (share * norm).astype(np.float16), Join(half(weight), token, state, 0.0)


def half(tensor: Any) -> NDArray[np.float16]:
    """Return a tensor as a float16 array."""
    array: NDArray[np.float16] = tensor.detach().float().cpu().numpy().astype(np.float16)
    return array
