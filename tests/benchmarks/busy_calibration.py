"""Compare step costs that are measured beside other programs with those of an idle machine.

    python tests/benchmarks/busy_calibration.py [--model MODEL] [--device xeon] [--burners 1]

Measures the model's steps alone, then beside processes that burn a core each: once with what was waited for
them taken out, as `specport calibrate` does, and once without. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

from specport.calibration.measure import Measured, measure
from specport.calibration.other_load import waited_seconds
from specport.progress import silent
from specport.runtime.loading import Loader

WIDTHS, CONTEXT, SECONDS = (1, 2, 3, 4, 6, 8, 16), 64, 8.0


def burn(end: float) -> None:
    """Keep a core busy."""
    while time.monotonic() < end:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="as for specport run (default: the embedded model)")
    parser.add_argument("--device", default="xeon")
    parser.add_argument("--precision", help="weight format (default: the device's)")
    parser.add_argument("--burners", type=int, default=1, help="processes that burn a core each")
    args = parser.parse_args()
    loader = Loader.on(args.device, None, None, False, silent)
    _, target = loader.target(args.model, args.precision, True)

    def costs(*, corrected: bool) -> Measured:
        waited = waited_seconds if corrected else (lambda: 0.0)
        return measure(target.model, widths=WIDTHS, contexts=(CONTEXT,), budget_s=SECONDS, waited=waited)

    print(f"{'ms per step':24}" + "".join(f"{width:>8}" for width in WIDTHS) + "   other programs' cores")
    idle = costs(corrected=True)
    show("idle", idle, idle)
    context = multiprocessing.get_context("spawn")
    end = time.monotonic() + 600.0
    burners = [context.Process(target=burn, args=(end,), daemon=True) for _ in range(args.burners)]
    for burner in burners:
        burner.start()
    time.sleep(1.0)
    try:
        show("busy", costs(corrected=True), idle)
        show("busy, as it was timed", costs(corrected=False), idle)
    finally:
        for burner in burners:
            burner.terminate()


def show(name: str, found: Measured, idle: Measured) -> None:
    """Print the costs, and behind them how far they are from the idle machine's."""
    row, base = found.costs.seconds[0], idle.costs.seconds[0]
    off = max(abs(a / b - 1.0) for a, b in zip(row, base, strict=True))
    print(
        f"{name:24}" + "".join(f"{1e3 * s:8.1f}" for s in row) + f"{found.other_cores:8.2f}, off by {off:.0%}"
    )


if __name__ == "__main__":
    main()
