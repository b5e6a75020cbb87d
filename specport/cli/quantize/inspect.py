"""`specport quantize inspect`: show what a draft is, and what was measured of it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from specport.cli import options, terminal
from specport.cli.quantize import diffusion, layerskip, speech
from specport.errors import InvalidInput

if TYPE_CHECKING:
    from specport.models.bundle import Bundle
    from specport.models.bundle_facts import Adapted, Distilled, Measured, StepTimes
    from specport.models.kinds.mtp_head import MtpHead
    from specport.models.kinds.parallel import Parallel
    from specport.models.kinds.recurrent import Recurrent


def add_parser(actions: options.Subparsers) -> None:
    inspect = actions.add_parser(
        "inspect", help="show a bundle, or what layerskip, speech or diffusion made, and its measurements"
    )
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(args: argparse.Namespace) -> int:
    from specport.models import bundle
    from specport.quantize.speech import about as about_speech
    from specport.quantize.train.diffusion import about as about_diffusion
    from specport.quantize.train.layerskip import about as about_layerskip

    folder, as_json = args.folder, args.json
    if (folder / about_layerskip.NAME).is_file():
        layerskip.show(about_layerskip.read(folder), as_json)
        return 0
    if (folder / about_speech.NAME).is_file():
        speech.show(about_speech.read(folder), as_json)
        return 0
    if (folder / about_diffusion.NAME).is_file():
        diffusion.show(about_diffusion.read(folder), as_json)
        return 0
    if not (folder / bundle.BUNDLE_FILE).is_file():
        raise InvalidInput(f"{folder} is not a draft bundle", "specport quantize --out DIR makes one")
    found = bundle.read(folder, thorough=True)
    if as_json:
        terminal.write(json.dumps(asdict(found), indent=1) + "\n")
    else:
        show(found)
    return 0


def show(bundle: Bundle) -> None:
    """Print a bundle's manifest as lines of a name and a text."""
    from specport.models import bundle_facts

    measured = bundle_facts.MEASURED.of(bundle.measured, "measured")
    distilled = bundle_facts.DISTILLED.of(bundle.distilled, "distilled")
    adapted = bundle_facts.PROVENANCE.of(bundle.provenance, "provenance").adapted
    head = "whole" if bundle.head is None else f"cut to {sum(b - a for a, b in bundle.head)} tokens"
    lines = [
        ("draft for", bundle.target),
        ("made from", f"{bundle.source}, {bundle.precision}"),
        ("head", head),
    ]
    if bundle.mtp:
        lines += _mtp_lines(bundle.mtp, distilled)
    elif bundle.recurrent:
        lines += _recurrent_lines(bundle.recurrent, distilled)
    else:
        kept = ", ".join(map(str, bundle.layers))
        lines.insert(2, ("layers", f"{len(bundle.layers)} of {bundle.num_layers}: {kept}"))
        if bundle.distilled:
            lines += _distilled_lines(distilled)
    if bundle.parallel:
        lines += _parallel_lines(bundle.parallel, distilled)
    if bundle.measured:
        lines += _measured_lines(measured)
    if adapted:
        lines.append(("adapted", _adapted(adapted)))
    if measured.ms_by_width and bundle.reach:
        lines += _costs(bundle, measured.ms_by_width)
    for name, text in lines:
        terminal.write(f"{name:>11}  {text}\n")


def _distilled_lines(distilled: Distilled) -> list[tuple[str, str]]:
    lines = []
    if len(distilled.mlp_channels) == 2:
        kept, total = distilled.mlp_channels
        lines.append(("channels", f"{kept} of {total} channels of each feed-forward block"))
    after = f"{distilled.agreement:.1%}"
    if distilled.trained:
        change = f"{distilled.agreement_before:.1%} to {after}"
        return [*lines, ("distilled", f"on {distilled.tokens_read} tokens: agreement {change}")]
    return [*lines, ("distilled", f"fitted only: agreement {after}")]


def _parallel_lines(parallel: Parallel, distilled: Distilled) -> list[tuple[str, str]]:
    degrees = ", ".join(f"{degree:.2f}" for degree in parallel.temperatures)
    text = f"{parallel.depth} tokens a pass, MASK {parallel.mask_token_id}, temperatures {degrees}"
    lines = [("parallel", text), *_survival_lines(distilled)]
    if parallel.bigrams and distilled.survival_unranked:
        ranked, without = (1.0 + sum(s) for s in (distilled.survival, distilled.survival_unranked))
        lines.append(("ranked", f"by pairs of tokens: {ranked:.2f} tokens a round, {without:.2f} without"))
    return lines


def _recurrent_lines(shape: Recurrent, distilled: Distilled) -> list[tuple[str, str]]:
    layers = ", ".join(map(str, shape.layers))
    lines = [
        ("reads", f"the target's hidden states of layers {layers}; no prompt of its own"),
        ("size", f"{shape.num_parameters / 1e6:.1f} million parameters, {shape.blocks} x {shape.inner} wide"),
    ]
    if distilled.tokens_read:
        lines.append(("trained", f"on {distilled.tokens_read} tokens, to depth {shape.depth}"))
    return lines + _survival_lines(distilled)


def _mtp_lines(head: MtpHead, distilled: Distilled) -> list[tuple[str, str]]:
    lines = [
        ("reads", "the target's hidden states, and the prompt beside it: a head for multi-token prediction")
    ]
    if distilled.parameters:
        lines.append(("size", f"{distilled.parameters / 1e6:.1f} million parameters: one layer and its join"))
    if distilled.tokens_read:
        text = f"by {head.loss} on {distilled.tokens_read} tokens, to depth {head.depth}"
        lines.append(("trained", text))
    return lines + _survival_lines(distilled)


def _survival_lines(distilled: Distilled) -> list[tuple[str, str]]:
    if not distilled.survival:
        return []
    before, after = (
        ", ".join(f"{share:.2f}" for share in shares)
        for shares in (distilled.survival_before, distilled.survival)
    )
    return [("survival", f"{after} at depth 1, 2, ... of held-out text; {before} before training")]


def _adapted(facts: Adapted) -> str:
    """Return what the last `specport adapt` gave; the figures above are those of the build."""
    (own, own_now), (old, old_now) = facts.own, facts.old
    found = f"{own:.2f} to {own_now:.2f} tokens a step on own texts, {old:.2f} to {old_now:.2f} on old text"
    return f"{facts.date}, {facts.times} times; the last time {found}"


def _measured_lines(measured: Measured) -> list[tuple[str, str]]:
    by_depth = ", ".join(f"{share:.2f}" for share in measured.acceptance_by_depth)
    length = f"mean acceptance length {measured.mean_acceptance_length:.2f}"
    low, high = measured.speed_up_range
    cost = f"{measured.cost:.2f} of the target's {measured.target_ms:.1f} ms"
    same = f"{measured.same_text}/{measured.prompts} prompts"
    return [
        ("draft step", f"{measured.draft_ms:.1f} ms, {cost}"),
        ("acceptance", f"{by_depth} at depth 1, 2, ...; {length}"),
        ("decode", f"{measured.speed_up:.2f} times plain decoding ({low:.2f} to {high:.2f}), planned"),
        ("same text", f"{same}, {measured.max_new_tokens} tokens each"),
        ("measured", f"{measured.date} on {measured.device}, {measured.processor}"),
    ]


def _costs(bundle: Bundle, ms: StepTimes) -> list[tuple[str, str]]:
    """Return lines about the cost of steps by width, and the speed that follows from it.

    ms: as in `evaluate.pair`.
    """
    from specport.quantize.evaluate.ranking import speed_ups

    lines = []
    for name, times in (("draft", ms.draft), ("target", ms.target)):
        costs = ", ".join(f"{cost:.1f}" for cost in times)
        lines.append((f"{name} cost", f"{costs} ms for {ms.width[0]} to {ms.width[-1]} new tokens"))
    draft, target = (dict(zip(ms.width, times, strict=False)) for times in (ms.draft, ms.target))
    speeds = speed_ups(bundle.reach, draft, target, parallel=bundle.parallel is not None)
    best = max(range(len(speeds)), key=speeds.__getitem__)
    shown = ", ".join(f"{speed:.2f}" for speed in speeds)
    lines.append(
        ("expected", f"{shown} times plain decoding with 1, 2, ... draft tokens a round; best {best + 1}")
    )
    return lines
