"""Load a model on a torch device: choose its runner, exact step widths and memory limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import transformers
from specport.backends.torch import devices, experts, runners, settings, weights
from specport.backends.torch.diffusion.load import load_diffusion
from specport.backends.torch.hidden_head import RecurrentHead, load_head
from specport.backends.torch.mtp import load_mtp
from specport.backends.torch.parity import Parity
from specport.backends.torch.pipo.embedding import install_pairs
from specport.backends.torch.slim import Slim
from specport.backends.torch.slots import states
from specport.backends.torch.slots.batch import WIDEST, Widths
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.chain import ChainModule
from specport.backends.torch.slots.model import SlotModel
from specport.backends.torch.slots.step import StepModule
from specport.backends.torch.weight_updates import Layout, LiveWeights
from specport.backends.torch.whisper.model import WhisperSlots
from specport.backends.torch.whisper.parts import WhisperParts

from specport.core.ports import Block, Model, Row, conditioned
from specport.errors import DeviceError, InvalidInput, ModelError, SpecportError
from specport.models.json_file import read_json
from specport.models.kinds.diffusion import is_diffusion
from specport.models.kinds.whisper import find_encoder_key, is_whisper
from specport.runtime import numerics
from specport.runtime.caches import memory
from specport.runtime.devices.registry import Loaded, LoadOptions, Speech

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

AnySlots = TypeVar("AnySlots", SlotModel, WhisperSlots)


# Schemes for exact mode, tried in order until the logits do not depend on how tokens are split. Matrix
# products may choose their kernel, and thus their rounding, by the number of rows; one width avoids this.
# With the gaps of a tree's mask, attention sums in another order. A Xeon with packed weights
# (`packed_linear.py`) only needs to exclude trees.
_EXACT = (
    settings.Scheme(),
    settings.Scheme(tree=False),
    settings.Scheme((8,), batch=False),
    settings.Scheme((8,), batch=False, tree=False),
)
_FEW = (1, 2, 3, 4, 6, 8, 12, 16)  # widths of a decoder with states, where shapes may vary
_PAST = 122  # tokens before the compared ones, which then cross the end of an attended length


def load(files: ModelFiles, options: LoadOptions) -> Loaded:
    """Return the model in `files.folder`, ready to step. Raises ModelError or DeviceError.

    An exact target is tried with several schemes until the logits do not depend on how tokens are split. The
    result is stored for each runtime, device, model and setting.
    """
    profile = options.profile
    place = devices.place(profile)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    config_file = read_json(files.folder / "config.json")
    if is_whisper(config_file):
        return _load_whisper(files, options, place)
    if is_diffusion(config_file):
        return load_diffusion(files, options, place)
    model = weights.read(files, options.head_tokens)
    layout = Layout(model)
    hidden_head = _hidden_head(model, options, place.device)  # packed layers have no rows to take
    config = model.config.get_text_config(decoder=True)
    limit = settings.context_limit(config, options)
    mtp = load_mtp(model, options, place, limit, settings.budget(place.free, options))
    install_pairs(model, options.pairs, profile.device)  # the module embeds single tokens
    must_be_exact = options.exact and options.role == "target"
    weights.place(model, files.name, place.device, exact=must_be_exact)
    slim = Slim.of(model, files.name, options, place, settings.budget(place.free, options))
    # All schemes are tried on the same cache and runner, so that they share captured graphs.
    with _told(files, config.model_type):
        parity = Parity(model, _versions(files, options))
        module = _step_module(model, options, place, must_be_exact)
    updates = None
    if options.role == "target" and options.pairs is None:
        holders = (part for part in (hidden_head, mtp) if part is not None)
        updates = LiveWeights.of(model, layout, [part.follow for part in holders])
    cache, stateful = module.cache, bool(module.cache.shape.states)
    # The rounding of compiled kernels depends on the shape that they were compiled for.
    compiled = devices.compiles(profile) and not must_be_exact
    steps = runners.compiled(module, place.device) if compiled else module
    runner = place.runner(steps)
    chains = None
    if options.role == "draft" and not options.exit_layer and not stateful:
        chains = place.runner(ChainModule(steps, options.head_tokens, place.device))

    def build(widths: Widths, scheme: settings.Scheme) -> SlotModel:
        found = SlotModel(
            runner,
            cache,
            vocab_size=model.get_output_embeddings().out_features,
            max_context=limit,
            widths=widths,
            exact=must_be_exact,
            batch=scheme.batch,
            tree=scheme.tree and module.trees,
            static=bool(profile.buckets),
            whole=place.whole,
            hidden_layers=options.hidden_layers,
            exit_layer=options.exit_layer,
            chains=chains,
            budget=slim.budget,
            kept_bytes=memory.kept_share(options.cache_bytes or memory.default_share(options.role)),
        )
        found.hidden_head, found.mtp, found.weight_updates = hidden_head, mtp, updates
        return found

    notes = (*place.notes, *([profile.emulation] if profile.emulation else ()))
    if devices.compiles(profile) and not compiled:
        notes = (*notes, "a target is not compiled in exact mode; use --fast for it")
    costs_as = replace(options, hidden_layers=())  # these outputs hardly change what a step costs
    buckets, pieces = _buckets(profile.buckets, stateful)
    if not must_be_exact:
        widths, scheme = Widths(buckets, pieces, 1), settings.Scheme()
        key = settings.key(files, costs_as, widths, scheme, **({"compiled": True} if compiled else {}))
        found = build(widths, scheme)
        if not compiled:  # each shape takes long to compile
            with _told(files, config.model_type):
                _try(found, parity)
        return Loaded(slim.beside(found), notes, key, options.head_tokens)
    with _told(files, config.model_type):
        _try(build(Widths(buckets, pieces, 2), _EXACT[-1]), parity)
    found, key, how = _exact(files, options, build, (buckets, pieces), stateful)
    return Loaded(slim.beside(found), (*notes, *how), key, options.head_tokens)


def _exact(
    files: ModelFiles,
    options: LoadOptions,
    build: Callable[[Widths, settings.Scheme], AnySlots],
    given: tuple[tuple[int, ...], tuple[int, ...]],
    stateful: bool = False,
    seen: Callable[[AnySlots], Model] = lambda model: model,
) -> tuple[AnySlots, str, tuple[str, ...]]:
    """Return the first scheme's model that is exact, the key of its costs, and notes.

    given: as of `_buckets`. seen: the model as one whose sequences are opened with nothing.
    Raises DeviceError where no scheme is exact.
    """
    buckets, pieces = given
    for scheme in _EXACT:
        # What is read again for its states must be read as before.
        widths = Widths(scheme.decode or buckets, (stateful and scheme.decode) or pieces, 2)
        key = settings.key(files, options, widths, scheme)
        found = build(widths, scheme)
        if numerics.checked(seen(found), key, _PAST, progress=options.progress) and (
            # Layers with states may round differently from some width on, which the other steps do not reach.
            not stateful
            or scheme.decode
            or numerics.checked_wide(seen(found), key, progress=options.progress)
        ):
            notes: tuple[str, ...] = ()
            if scheme.decode:
                how = f"{max(scheme.decode)} tokens of one sequence"
                notes = (f"exact mode always steps {how} here, in {files.precision}",)
            elif not options.profile.buckets and (
                width := numerics.checked_width(seen(found), key, progress=options.progress)
            ):
                # What does not hold for the tokens of one sequence does not for those of several.
                found = build(replace(widths, read=(width,)), replace(scheme, batch=False))
            costs_as = replace(options, hidden_layers=())  # these outputs hardly change what a step costs
            return found, settings.key(files, costs_as, widths, scheme), notes
    raise DeviceError(
        "no exact mode on this device: logits depend on how tokens are split over steps", "use --fast"
    )


def _load_whisper(files: ModelFiles, options: LoadOptions, place: devices.Place) -> Loaded:
    """Return Whisper's decoder, ready to step, with its encoder. Raises ModelError or DeviceError."""
    if options.exit_layer or options.hidden_layers:
        raise ModelError("a speech model has no early exit and no hidden states")
    profile = options.profile
    must_be_exact = options.exact and options.role == "target"
    parts = WhisperParts.read(files, place.device, options.head_tokens, exact=must_be_exact)
    limit = min(parts.shape.context, options.max_context or parts.shape.context)
    runner = place.runner(parts.step)

    def build(widths: Widths, scheme: settings.Scheme) -> WhisperSlots:
        return WhisperSlots(
            runner,
            parts,
            max_context=limit,
            widths=widths,
            exact=must_be_exact,
            batch=scheme.batch,
            tree=scheme.tree,
            static=bool(profile.buckets),
            whole=place.whole,
            budget=settings.budget(place.free, options),
        )

    def seen(model: WhisperSlots) -> Model:
        noise = torch.randn(parts.shape.frames, parts.shape.width, generator=torch.Generator().manual_seed(0))
        return conditioned(model, lambda _: noise.numpy())

    given = _buckets(profile.buckets, stateful=False)
    notes = (*place.notes, *([profile.emulation] if profile.emulation else ()))
    if must_be_exact:
        found, key, how = _exact(files, options, build, given, seen=seen)
    else:
        widths, how = Widths(*given, 1), ()
        found, key = build(widths, settings.Scheme()), settings.key(files, options, widths, settings.Scheme())
    speech = Speech(parts.encode, parts.attention, find_encoder_key(files.folder))
    return Loaded(found, (*notes, *how), key, options.head_tokens, speech=speech)


def _step_module(model: Any, options: LoadOptions, place: devices.Place, exact: bool) -> StepModule:
    """Return a decoder's step on an empty cache. Raises ModelError where it cannot run so."""
    if place.whole or (exact and place.device == "cpu"):
        experts.install(model, captured=place.whole)
    width = model.config.get_text_config(decoder=True).hidden_size
    cache = SlotCache(model.dtype, place.device, width if options.exit_layer else 0)
    cache.states.chunked = not (exact or place.whole)
    return StepModule(model, cache, options.hidden_layers, options.exit_layer)


@contextmanager
def _told(files: ModelFiles, kind: str) -> Iterator[None]:
    """Name the model in a ModelError about its architecture."""
    try:
        yield
    except ModelError as error:
        hint = error.hint or "use another model, or --device xeon"
        raise ModelError(f"{files.name} ({kind}) does not run on torch: {error.message}", hint) from error


def _try(model: SlotModel, parity: Parity) -> None:
    """Run a first step. Raises ModelError where the model's own code does not run here, or differently."""
    try:
        parity.check(model)
        if model.passes.runner.captures:  # what waits for the device cannot be a graph
            handle = model.open()
            model.step([Row(handle, Block.chain([0]))])
            model.close(handle)
    except SpecportError:
        raise
    except Exception as error:  # any code of transformers may not be made for these steps
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"its layers do not run as a step on this device: {reason}") from error


def _versions(files: ModelFiles, options: LoadOptions) -> str:
    """Return a key of the model, the device and the packages."""
    packages = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return (
        f"{packages}, {options.profile.name}, {files.precision}, {files.fingerprint}, {options.head_tokens}"
    )


def _buckets(given: tuple[int, ...], stateful: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the widths of decode steps and of the pieces of long rows, () = any, from a profile's.

    A decoder with states keeps one a token of a decode step, and computes tokens one after the other: a graph
    of many tokens would be too large.
    """
    if not stateful:
        return tuple(width for width in given if width <= WIDEST), given
    few = tuple(width for width in given or _FEW if width <= states.WIDEST)
    return few, few if given else ()


def _hidden_head(model: Any, options: LoadOptions, device: str) -> RecurrentHead | None:
    """Return the recurrent head that is to draft for this decoder; None where there is none."""
    files = options.hidden_head
    if files is None or files.bundle is None or files.bundle.recurrent is None:
        return None
    if options.exit_layer:
        raise InvalidInput("a head on hidden states and an early exit exclude each other", "choose one")
    return load_head(files.folder, files.bundle.recurrent, files.bundle.head_tokens, model, device)
