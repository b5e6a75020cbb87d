"""Compare weight formats, and choose the fastest that costs no quality.

The measurement is that of `specport quantize compare`; its result is kept. A format costs no quality where
its KL divergence to the source exceeds that of the device's own format by a tenth at most, and it agrees with
the source in the most likely token at most half a point less often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

from msgspec import Meta, Struct

from specport.models.atomic import write_json
from specport.outside import Format
from specport.progress import Progress
from specport.quantize.evaluate.compare import PACKAGES, compare
from specport.quantize.evaluate.ranking import TOLERANCE
from specport.runtime.loading import Loader
from specport.runtime.versions import installed
from specport.tune.heats import circumstances, folder_for

FILE, FORMAT = "weights.json", 1
TOP_TOLERANCE = 0.005  # of the tokens
LEAST_GAIN = 0.02  # of the cost of steps, from which on a format is worth a change
MOST_PROMPTS = 8
BOUNDS = (
    f"KL at most {1 + TOLERANCE:.1f} of the device's own format's, the same top token at most "
    f"{TOP_TOLERANCE:.1%} less often"
)


@dataclass(frozen=True)
class Weights:
    """Hold one weight format.

    cost: of steps of 1 to 8 tokens, as a share of the device's own format. tpot_ms, ttft_ms: plain decoding.
    kl, same_top: fidelity to the source. keeps: whether it costs no quality.
    """

    precision: str
    size_mb: float
    cost: float
    tpot_ms: float
    ttft_ms: float
    kl: float
    same_top: float
    keeps: bool


class _Stored(Struct):
    rows: Annotated[list[Weights], Meta(min_length=1)]


_STORED = Format(_Stored, "a comparison of weight formats", version=FORMAT)


def measure(
    model: str | None,
    formats: Sequence[str],
    prompts: Sequence[str],
    loader: Loader,
    device: str,
    exact: bool,
    progress: Progress,
) -> list[Weights]:
    """Return the measured formats, the first of `formats` as the baseline. Raises SpecportError."""
    texts = list(prompts[:MOST_PROMPTS])
    source = loader.files(model, formats[0])
    about = {
        "kind": "weights", "weights": source.fingerprint, "formats": [*formats], "prompts": texts,
        **circumstances(loader, exact), "versions": installed(PACKAGES),
    }  # fmt: skip
    path = folder_for(about) / FILE
    if stored := _STORED.find(path):
        return stored.rows
    found = compare(
        model, precisions=formats, baseline=formats[0], prompts=texts, exact=exact, device=device,
        threads=loader.threads, trust_remote_code=loader.trust_remote_code, progress=progress,
    )  # fmt: skip
    base = next(row for row in found.rows if row.precision == found.baseline)
    rows = [
        Weights(
            row.precision, row.size_mb, row.cost, row.tpot.median, row.ttft.median, row.fidelity.kl,
            row.fidelity.same_top,
            row.keeps_quality and row.fidelity.same_top >= base.fidelity.same_top - TOP_TOLERANCE,
        )
        for row in found.rows
    ]  # fmt: skip
    write_json(path, {"format": FORMAT, "rows": [asdict(row) for row in rows]})
    return rows


def best(rows: Sequence[Weights], own: str) -> Weights:
    """Return the fastest format that keeps the quality; the device's own where the gain is small."""
    base = next(row for row in rows if row.precision == own)
    fastest = min((row for row in rows if row.keeps), key=lambda row: row.cost, default=base)
    return fastest if fastest.cost < base.cost - LEAST_GAIN else base


def remark(row: Weights, chosen: str, own: str) -> str:
    """Return one remark on a format for the table."""
    if row.precision == chosen:
        return "chosen"
    if row.precision == own:
        return "the device's own"
    if row.keeps:
        return (
            "same quality, not faster"
            if row.cost >= 1.0 - LEAST_GAIN
            else "same quality, slower than the chosen"
        )
    return "faster but changes the text" if row.cost < 1.0 else "slower, and changes the text"
