"""Shows what OpenVINO makes of a hybrid: the states of its IR, the paged operators, their inputs and shapes.

    python tests/benchmarks/models/hybrid_operators.py qwen3.5 lfm2 [FOLDER of an IR ...]

A name is that of a tiny model of the conformance suite, which is made and converted below --work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from specport.backends.openvino.graph import surgery
from specport.backends.openvino.paged.cache import is_cache
from specport.backends.openvino.paged.states import is_state
from specport.quantize.convert.openvino_core import core

from specport.conformance.models import tiny
from specport.runtime.conversion import resolve

PAGED = ("PagedAttentionExtension", "PagedGatedDeltaNet", "PagedCausalConv1D")


def shown(folder: Path) -> Iterator[str]:
    model = surgery.read_model(folder)
    for variable in model.get_variables():
        facts = variable.get_info()
        yield f"  state {facts.variable_id}: {facts.data_shape}"
    paged = surgery.to_paged(model)
    kinds: set[str] = set()
    for node in paged.get_ops():
        kind = node.get_type_name()
        if kind in PAGED and kind not in kinds:
            kinds.add(kind)
            yield f"  {kind} {node.get_friendly_name()} {node.get_attributes()}"
            for port in node.input_values():
                yield f"    {port.get_node().get_friendly_name()}: {port.get_partial_shape()}"
    compiled = core().compile_model(paged, "CPU")
    for port in compiled.inputs:
        role = "key/value cache" if is_cache(port) else "states" if is_state(port) else "input"
        yield f"  {role} {port.any_name}: {port.get_element_type()} {port.get_partial_shape()}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", help="qwen3.5, lfm2, llama, or the folder of an IR")
    parser.add_argument("--work", type=Path, default=Path("hybrid_operators"))
    options = parser.parse_args(arguments)
    for name in options.models:
        folder = Path(name)
        if name in tiny.KINDS:
            target, _ = tiny.write(options.work / name, name)
            folder = resolve(str(target), precision="fp32").folder
        print(name)
        for line in shown(folder):
            print(line)


if __name__ == "__main__":
    main()
