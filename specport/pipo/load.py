"""Load a pair model by the name of its folder."""

from __future__ import annotations

from specport.core.engine import Engine
from specport.errors import InvalidInput, ModelError
from specport.models.kinds import pipo
from specport.outside.places import expanded
from specport.pipeline import Pipeline
from specport.pipo.decoding import METHOD, PairDecoding
from specport.pipo.model import PairModel
from specport.progress import Progress, silent
from specport.runtime.conversion import mtp_module
from specport.runtime.devices.profiles import cpu_name
from specport.runtime.loading import Loader
from specport.text.tokenizer import load_tokenizer

MOST_THRESHOLD = 2.0


def load(
    model: str,
    *,
    pair_threshold: float | None = None,
    device: str = "auto",
    precision: str | None = None,
    exact: bool = True,
    threads: int | None = None,
    max_context: int | None = None,
    cache_memory: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = silent,
) -> Pipeline:
    """Load a pair model. It is lossy: its text is not that of the model that it was trained from.

    model:     folder that `specport quantize pipo` wrote.
    pair_threshold: confidence from which a second token is kept, 0 to 1; above 1 none is, so that each step
               writes one token. None = what the folder says.
    exact:     texts do not depend on what is computed beside them. They are still not the original's.
    Other arguments as for `specport.load`. Raises SpecportError with the next step.
    """
    folder = expanded(model)
    if not pipo.is_pair_folder(model):
        raise ModelError(f"{model} holds no pair model", "make one with: specport quantize pipo")
    pairs = pipo.read(folder)
    threshold = pairs.config.threshold if pair_threshold is None else pair_threshold
    if not 0.0 <= threshold <= MOST_THRESHOLD:
        raise InvalidInput(
            f"pair_threshold is {threshold}; it must be between 0 and 1, or above 1 (up to "
            f"{MOST_THRESHOLD:g}) for one token a step"
        )
    loader = Loader.on(device, threads, max_context, trust_remote_code, progress, cache_memory)
    decoder = str(folder / pipo.DECODER)
    files = loader.files(decoder, precision or loader.profile.precision)
    module = mtp_module(files, weights=loader.backend.weights, progress=progress)
    if module is None:
        raise ModelError(
            f"{decoder} has no module for second tokens", "train it again with: specport quantize pipo"
        )
    loaded = loader.target_with(files, exact, mtp=module, pairs=pairs)
    if loaded.model.mtp is None:
        raise ModelError(
            f"pair models do not run on {loader.profile.name}", "choose another --device, such as xeon"
        )
    found = PairModel(loaded.model, pairs, limit=max_context, module=threshold <= 1.0)
    engine = Engine(found, decoding=PairDecoding(found, threshold))
    kept = f"from confidence {threshold:g} on" if threshold <= 1.0 else "never"
    source = pairs.config.source or "the unmodified model"
    notes = [f"lossy (PIPO): pairs of tokens, a second one is kept {kept}; the text is not that of {source}"]
    notes += loaded.notes
    if device != "auto" and (note := loader.profile.mismatch(cpu_name())):
        notes.append(note)
    return Pipeline(
        engine,
        load_tokenizer(files.folder),
        model_name=folder.resolve().name,
        device_name=loader.profile.name,
        lossy=METHOD,
        notes=notes,
    )
