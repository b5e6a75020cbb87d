"""Load a Whisper model with its drafters by their names."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from specport.core.engine import Engine
from specport.core.policies.drafting import Drafting
from specport.core.ports import Needs
from specport.core.verify.verifier import TargetVerifier
from specport.drafters.build import build_policy
from specport.drafters.context import DraftModel
from specport.drafters.registry import EARLY_EXIT, GRAFT, MTP
from specport.drafters.retrieval.folders import Folders
from specport.drafters.spec import DraftSpec, parse
from specport.errors import InvalidInput, ModelError
from specport.models.json_file import read_json
from specport.models.kinds.parallel import Parallel
from specport.models.kinds.whisper import WhisperShape, find_head_tokens, find_parallel, read_shape
from specport.models.source import ModelFiles
from specport.progress import Progress, silent
from specport.runtime.devices.registry import Loaded, Speech
from specport.runtime.loading import Loader
from specport.speech.whisper.heard import listening
from specport.speech.whisper.logprobs import LogprobSums
from specport.speech.whisper.model import WhisperModel
from specport.speech.whisper.tokens import WhisperTokens
from specport.text.tokenizer import Tokenizer, load_tokenizer

_NOT_FOR_SPEECH = (EARLY_EXIT, GRAFT, MTP)
_BATCH = 8


def load(
    model: str,
    *,
    draft: str | DraftSpec = "auto",
    device: str = "auto",
    draft_device: str | None = None,
    precision: str | None = None,
    draft_precision: str | None = None,
    exact: bool = True,
    policy: str | None = None,
    num_draft_tokens: int | None = None,
    history: str | Path | None = None,
    threads: int | None = None,
    cache_memory: str | None = None,
    batch: int = _BATCH,
    progress: Progress = silent,
) -> WhisperModel:
    """Load a Whisper model and its drafter on a device.

    model:     folder of Hugging Face's or CTranslate2's (faster-whisper's) format, or a hub id. Converted
               once and kept in the cache.
    draft:     "none", "ngram", "suffix" (also from earlier windows), a Whisper model of the same vocabulary,
               "universal(MODEL)" for another vocabulary, several as in "suffix|MODEL", or "auto": suffix. A
               model with the target's encoder, as distil-whisper's, takes its output.
    precision: of the weights, as for `specport.load`; draft_precision: of the draft's, by default INT8 or the
               profile's.
    history:   folder in which "suffix" keeps texts for later runs; None = in memory only.
    batch:     windows that are decoded together, at most.

    Other arguments as for `specport.load`. Raises SpecportError with the next step.
    """
    spec = parse(draft) if isinstance(draft, str) else draft
    for kind in spec.kinds:
        if kind in _NOT_FOR_SPEECH:
            raise InvalidInput(
                f"speech models have no drafter {kind}", "choose ngram, suffix or a smaller Whisper"
            )
    if batch < 1:
        raise InvalidInput(f"batch is {batch}; it must be 1 or more")
    folders = Folders(history, None)
    folders.check(spec)
    loader = Loader.on(device, threads, None, False, progress, cache_memory, speech=True)
    beside = loader
    if draft_device is not None:
        if not spec.models:
            raise InvalidInput("a draft device needs a draft model", "name one with --draft")
        beside = Loader.on(draft_device, threads, None, False, progress, speech=True)
    profile = loader.profile
    if policy is None and num_draft_tokens is None:
        num_draft_tokens = profile.num_draft_tokens
    drafting = Drafting(policy or profile.policy, num_draft_tokens)
    files, target = loader.target(model, precision, exact)
    tokenizer, tokens, shape, _ = _read(files)
    speech = _speech(target, files)
    heard = listening(target.model, speech)
    retrieval, said = folders.open(tokenizer, heard.vocab_size)
    drafts = {name: _draft(name, beside, draft_precision, tokens, shape, speech) for name in spec.models}
    made = build_policy(
        spec, heard, _vocabulary(tokens), drafts,
        drafting=drafting, costs=loader.costs(target), retrieval=retrieval,
    )  # fmt: skip
    sums = LogprobSums()
    verifier = TargetVerifier(heard, made.needs if made else Needs(), sums.watch)
    return WhisperModel(
        Engine(heard, made, verifier, max_running=batch),
        tokens,
        shape,
        sums,
        attention=speech.attention,
        encode=lambda window: window.through(speech),
        batch=batch,
        model_name=files.name,
        device_name=profile.name,
        notes=[*target.notes, *said],
        identity={"weights": files.fingerprint, "precision": files.precision, "exact": exact},
        history=retrieval.history,
    )


def _read(files: ModelFiles) -> tuple[Tokenizer, WhisperTokens, WhisperShape, Parallel | None]:
    shape, tokenizer = read_shape(files.folder), load_tokenizer(files.folder)
    generation = read_json(files.folder / "generation_config.json")
    parallel = find_parallel(files.folder, shape.vocab)
    vocab = shape.vocab if parallel is None else parallel.mask_token_id  # MASK is no token of a text
    return tokenizer, WhisperTokens(tokenizer, vocab, generation), shape, parallel


def _speech(loaded: Loaded, files: ModelFiles) -> Speech:
    """Return what a speech model has beside its decoder. Raises ModelError for any other model."""
    if loaded.speech is None:
        raise ModelError(
            f"{files.name} was not loaded as a speech model on this device", "choose another --device"
        )
    return loaded.speech


def _draft(
    name: str,
    loader: Loader,
    precision: str | None,
    tokens: WhisperTokens,
    shape: WhisperShape,
    target: Speech,
) -> DraftModel:
    """Return a loaded draft. Raises ModelError for one that cannot hear the target's features.

    One whose encoder is the target's hears through that: a draft's precision never reaches the target's text.
    """
    files = loader.files(name, precision_of_draft(loader, precision))
    _, own, size, parallel = _read(files)
    loaded = loader.draft_with(files, find_head_tokens(files.folder, size.vocab))
    speech = _speech(loaded, files)
    if speech.key == target.key:
        speech = target
    elif (size.mel_bins, size.frames) != (shape.mel_bins, shape.frames):
        raise ModelError(
            f"the draft {files.name} hears {size.mel_bins} bands in {size.frames} frames, the target "
            f"{shape.mel_bins} in {shape.frames}",
            "choose a draft of the target's own generation",
        )
    return DraftModel(
        listening(loaded.model, speech),
        _vocabulary(own),
        files.name,
        loader.costs(loaded),
        loaded.head_tokens,
        parallel=parallel,
        mismatch=own.mismatch(tokens),
    )


def precision_of_draft(loader: Loader, asked: str | None = None) -> str:
    """Return the weight format of a draft: what was asked for, or the device's own."""
    default = loader.profile.draft_precision
    # A small decoder loses more by INT4 than its reading saves.
    return asked or ("int8" if default.startswith("int4") else default)


def _vocabulary(tokens: WhisperTokens) -> Tokenizer:
    """Return the tokens as drafters want them: they use what `cross_vocab.translator.Vocabulary` names."""
    return cast(Tokenizer, tokens.vocabulary)
