"""Loads a model on a torch device: its runner, the widths at which it is exact, the memory it may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from specport.backends.torch import devices, runners, weights
from specport.backends.torch.slots.batch import WIDEST, Widths
from specport.backends.torch.slots.cache import SlotCache
from specport.backends.torch.slots.chain import ChainModel, ChainModule
from specport.backends.torch.slots.early_exit import ExitModel
from specport.backends.torch.slots.model import SlotModel
from specport.backends.torch.slots.step import StepModule

from specport.errors import ContextFull, DeviceError
from specport.runtime import numerics
from specport.runtime.profiles import cpu_name
from specport.runtime.registry import Loaded, LoadOptions, settings_key

if TYPE_CHECKING:
    from specport.models.source import ModelFiles

_DEFAULT_CONTEXT = 2048  # for a configuration that names no limit


@dataclass(frozen=True)
class Scheme:
    """What a model may do in a round of decoding. decode: widths, () = those of the profile."""

    decode: tuple[int, ...] = ()
    batch: bool = True
    tree: bool = True


# What is tried for exact mode, in this order, until the logits do not depend on how tokens are split. Matrix
# products may choose their kernels, and with them their rounding, by the number of rows, so that one width
# alone is alike; around the gaps that a tree's mask leaves, attention sums in another order. A Xeon with
# packed weights (`packed_linear.py`) needs no more than to leave out trees.
_EXACT = (Scheme(), Scheme(tree=False), Scheme((8,), batch=False), Scheme((8,), batch=False, tree=False))
_PAST = 122  # tokens before those that the check compares: they cross the end of an attended length


def load(files: ModelFiles, options: LoadOptions) -> Loaded:
    """The model in `files.folder`, ready to step. Raises ModelError or DeviceError.

    An exact target is tried with several sets of widths until the logits do not depend on how tokens are
    split; what was found is kept for each runtime, device, model and setting.
    """
    profile = options.profile
    place = devices.place(profile)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = weights.read(files, place.device, options.head_tokens)
    # Every scheme is tried on the same cache and runner: graphs that one has captured serve the next.
    cache = SlotCache(weights.shape_of(model, place.device, options.exit_layer))
    module = StepModule(model, cache, options.hidden_layers, options.exit_layer)
    must_be_exact = options.exact and options.role == "target"
    # Compiled kernels round by the shape that they were compiled for.
    compiled = devices.compiles(profile) and not must_be_exact
    steps = runners.compiled(module, place.device) if compiled else module
    runner = place.runner(steps)
    kind: Callable[..., SlotModel] = SlotModel
    if options.exit_layer:
        kind = ExitModel
    elif options.role == "draft":
        chains = place.runner(ChainModule(steps, options.head_tokens, place.device))
        kind = partial(ChainModel, chains=chains)
    limit = getattr(model.config, "max_position_embeddings", None) or _DEFAULT_CONTEXT

    def build(widths: Widths, scheme: Scheme) -> SlotModel:
        return kind(
            runner,
            cache,
            vocab_size=model.get_output_embeddings().out_features,
            max_context=min(limit, options.max_context or limit),
            widths=widths,
            exact=must_be_exact,
            batch=scheme.batch,
            tree=scheme.tree,
            static=bool(profile.buckets),
            whole=place.whole,
            hidden_layers=options.hidden_layers,
            exit_layer=options.exit_layer,
            allowed=_allowance(place.free),
        )

    notes = (*place.notes, *([profile.emulation] if profile.emulation else ()))
    if devices.compiles(profile) and not compiled:
        notes = (*notes, "a target in exact mode is not compiled; --fast is")
    buckets = tuple(width for width in profile.buckets if width <= WIDEST)
    if not must_be_exact:
        widths, scheme = Widths(buckets, profile.buckets, 1), Scheme()
        key = _key(files, options, widths, scheme, **({"compiled": True} if compiled else {}))
        return Loaded(build(widths, scheme), notes, key, options.head_tokens)
    for scheme in _EXACT:
        widths = Widths(scheme.decode or buckets, profile.buckets, 2)
        key = _key(files, options, widths, scheme)
        found = build(widths, scheme)
        if numerics.checked(found, key, _PAST):
            if scheme.decode:
                how = f"{max(scheme.decode)} tokens of one sequence"
                notes = (*notes, f"exact mode always steps {how} here, in {files.precision}")
            elif not profile.buckets and not numerics.checked_wide(found, key):
                found = build(replace(widths, read=(numerics.NARROW,)), scheme)
            return Loaded(found, notes, key, options.head_tokens)
    raise DeviceError(
        "no exact mode on this device: logits depend on how tokens are split over steps", "use --fast"
    )


def _allowance(free: Callable[[], int | None]) -> Callable[[int], None]:
    """Refuses a cache that is larger than the memory that is left, before it is allocated."""

    def check(nbytes: int) -> None:
        left = free()
        if left is not None and nbytes > left:
            raise ContextFull(
                f"the key/value cache would take {nbytes / 1e9:.1f} GB, {left / 1e9:.1f} GB are free: "
                "choose a smaller --max-context"
            )

    return check


def _key(files: ModelFiles, options: LoadOptions, widths: Widths, scheme: Scheme, **more: object) -> str:
    """Everything that decides which kernels run: what was found out about them is kept under it."""
    return settings_key(
        options,
        runtime=f"torch {torch.__version__}",
        device=options.profile.name,
        processor=devices.name_of(options.profile) or cpu_name(),
        weights=files.fingerprint,
        precision=files.precision,
        threads=torch.get_num_threads(),
        widths=(widths.decode, widths.read, widths.least),
        scheme=(scheme.batch, scheme.tree),
        **more,
    )
