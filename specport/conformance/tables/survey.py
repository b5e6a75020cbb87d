"""Run every architecture of the table on devices, with tiny models of random weights.

Each group of architectures has a process of its own: one that ends it costs no other its result.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specport.conformance import pair
from specport.conformance.models import tiny
from specport.conformance.models.architectures import ARCHITECTURES, configuration
from specport.conformance.pair import Pair
from specport.conformance.steps import Probe
from specport.core.engine import Engine
from specport.core.ports import Policy, Row
from specport.core.sampling.params import SamplingParams
from specport.core.sequence import Generation
from specport.core.tree import TokenTree
from specport.errors import InvalidInput, ModelError, SpecportError
from specport.jobs import worker
from specport.progress import Progress, part, silent
from specport.quantize import random_model
from specport.runtime.loading import Loader

EXAMINE = worker.Job("specport.conformance.tables.survey:examine")
DRAFTERS = ("ngram", "recycle", "model")
PRECISION = "fp32"
STATES = ("exact", "differs", "refused", "absent", "failed")
_GROUP = 6  # architectures a process: importing what converts models takes as long as one of them
_PARITY = 3e-3  # of the spread of the logits: f32 mostly rounds by 1e-4, one wrong token is above 0.1
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 250, 90)]
_CHUNKS = ((0, 40), (40, 47), (47, 48), (48, 75), (75, 90))
_PROMPTS = (IDS[:17], IDS[20:28] * 3, IDS[40:70], IDS[80:81])
_NEW = 20
NO_CAPS = "logits are those of transformers' sdpa, which has no soft caps in attention"


@dataclass(frozen=True)
class Cell:
    """What became of one architecture on one device.

    state:  exact: logits are those of transformers, and texts with drafts are those of plain decoding, alone
            and four together. differs: the texts are, the logits are not, as the user is told. refused: the
            model is not loaded, in one line. absent: the installed transformers does not have it. failed:
            anything else.
    reason: why it is not exact, in one line.
    """

    state: str
    reason: str = ""


Table = dict[str, dict[str, Cell]]  # of an architecture: device -> cell


def survey(devices: Sequence[str], names: Sequence[str] = (), progress: Progress = silent) -> Table:
    """Examine architectures on devices; all of the table where none is named.

    Raises InvalidInput for an architecture that is not in the table, DeviceError for a device that cannot be
    used.
    """
    if unknown := [name for name in names if name not in ARCHITECTURES]:
        raise InvalidInput(
            f"no architecture {unknown[0]!r} in the table", "specport matrix --architectures runs all"
        )
    for device in devices:
        Loader.on(device)
    wanted = [*(names or ARCHITECTURES)]
    found: Table = {}
    for start in range(0, len(wanted), _GROUP):
        group = wanted[start : start + _GROUP]
        share = part(progress, start / len(wanted), (start + len(group)) / len(wanted))
        try:
            found |= _apart(group, devices, share)
        except ModelError:  # one of them ended the process
            for name in group:
                try:
                    found |= _apart([name], devices, share)
                except ModelError as error:
                    found[name] = dict.fromkeys(devices, Cell("failed", error.message))
    return found


def _apart(names: Sequence[str], devices: Sequence[str], progress: Progress) -> Table:
    arguments = {"names": [*names], "devices": [*devices]}
    rows = worker.run(EXAMINE, arguments, "the process ended", progress=progress)
    return {name: {device: Cell(*cell) for device, cell in row.items()} for name, row in rows.items()}


def examine(names: Sequence[str], devices: Sequence[str], progress: Progress) -> dict[str, Any]:
    """Examine architectures in this process; return {architecture: {device: (state, reason)}}."""
    rows: dict[str, Any] = {}
    for number, name in enumerate(names):
        progress(name, number / len(names))
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            row = architecture(name, devices, Path(folder))
        rows[name] = {device: (cell.state, cell.reason) for device, cell in row.items()}
    return rows


def architecture(name: str, devices: Sequence[str], folder: Path) -> dict[str, Cell]:
    """Examine one architecture on devices. Its files are below `folder`."""
    source = folder / name
    try:
        random_model.save(source, configuration(name))
    except ModelError as error:
        return dict.fromkeys(devices, Cell("absent", error.message))
    tiny.save_tokenizer(source)
    wanted = random_model.logits(source, IDS)
    return {device: _cell(source, device, wanted) for device in devices}


def _cell(source: Path, device: str, wanted: NDArray[np.float32]) -> Cell:
    try:
        models = load(source, device)
    except SpecportError as error:
        return Cell("refused", _line(error.message))
    except Exception as error:  # whatever the runtime raises: this is what the survey is to find
        return Cell("failed", f"loading: {type(error).__name__}: {_line(str(error))}")
    try:
        if problem := _texts_problem(models) or logits_problem(models, wanted):
            capped = _without_caps(models, source, wanted)
            return Cell("differs", NO_CAPS) if capped else Cell("failed", problem)
    except Exception as error:
        return Cell("failed", f"{type(error).__name__}: {_line(str(error))}")
    return Cell("exact")


def _without_caps(models: Pair, source: Path, wanted: NDArray[np.float32]) -> bool:
    """Return whether the logits are those of transformers' sdpa, and these are others."""
    try:
        sdpa = random_model.logits(source, IDS, "sdpa")
    except ValueError:  # the architecture has none in this version
        return False
    return not np.array_equal(sdpa, wanted) and not logits_problem(models, sdpa)


def load(source: Path, device: str, exact: bool = True) -> Pair:
    """Load a target from a Hugging Face folder, and the same model as its draft. Raises SpecportError.

    It is converted in this process, where the packages for that are imported already.
    """
    loader = Loader.on(device)
    spec = source
    if loader.backend.weights == "ir":
        spec = source.with_name(f"{source.name}-ir")
        if not spec.is_dir():
            _convert(source, spec)
    files = replace(loader.files(str(spec), PRECISION), precision=PRECISION)  # an IR folder does not say it
    return Pair(loader, files, loader.target_with(files, exact), loader.draft_with(files, None), False)


def _convert(source: Path, target: Path) -> None:
    from specport.quantize.convert.export import export

    target.mkdir()
    try:
        export(source, target, PRECISION)
    except SpecportError:
        raise
    except Exception as error:  # what the user of a conversion process is shown is its last line
        last = [line for line in str(error).splitlines() if line.strip()][-1:] or [""]
        raise ModelError(f"it cannot be converted: {type(error).__name__}: {last[0]}") from error


def logits_problem(models: Pair, wanted: NDArray[np.float32]) -> str:
    """Return how far the logits are from these of IDS, [tokens, vocab]; "" = as near as they should."""
    model = models.target.model
    probe = Probe(model)
    handle = model.open()
    far = float(np.abs(probe.feed(handle, [IDS[a:b] for a, b in _CHUNKS]) - wanted).max())
    if model.capabilities.tree:
        model.truncate(handle, 60)
        tree = TokenTree((5, IDS[60], 6, IDS[61], 7, IDS[62]), (-1, -1, 1, 1, 3, 3))
        (found,) = probe.step(Row(handle, tree.as_block()))
        far = max(far, float(np.abs(found[[1, 3, 5]] - wanted[60:63]).max()))
        model.commit(handle, [1, 3, 5])
        far = max(far, float(np.abs(probe.feed(handle, [IDS[63:]]) - wanted[63:]).max()))
    model.close(handle)
    allowed = _PARITY * float(wanted.std())
    return (
        ""
        if far <= allowed
        else (f"logits differ from those of transformers by up to {far:.3g}, where {allowed:.3g} is allowed")
    )


def _texts_problem(models: Pair) -> str:
    """Return what is wrong with texts that are written with drafts; "" = nothing."""
    plain = [_texts(models, None, [prompt])[0] for prompt in _PROMPTS]
    if len({token for text in plain for token in text}) <= 3:
        return "the model says nothing, so that its texts show nothing"
    for drafter in (None, *DRAFTERS):
        policy = pair.policy(models, drafter) if drafter else None
        if _texts(models, policy, _PROMPTS) != plain:
            return f"texts with {drafter or 'no'} drafts, four together, differ from plain decoding"
    return ""


def _texts(models: Pair, policy: Policy | None, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return greedy texts, generated together."""
    group = [Generation([*prompt], SamplingParams(), _NEW) for prompt in prompts]
    for _ in Engine(models.target.model, policy).run(group):
        pass
    return [generation.tokens[generation.num_prompt_tokens :] for generation in group]


def _line(message: str) -> str:
    return " ".join(message.split())[:300]


def count(table: Mapping[str, Mapping[str, Cell]], device: str) -> dict[str, int]:
    """Return how many architectures have which state on a device."""
    states = [row[device].state for row in table.values()]
    return {state: states.count(state) for state in STATES if state in states}
