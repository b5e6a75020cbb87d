"""Removal of decoder layers from OpenVINO IR folders. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

import openvino as ov
from specport.backends.openvino.graph import layers, surgery
from specport.quantize.convert import disk

from specport.models.atomic import write_json
from specport.models.folder_checks import IR_BIN, IR_XML
from specport.models.json_file import read_json
from specport.models.manifest import MANIFEST_FILE


def drop_layers(source: Path, target: Path, dropped: Collection[int]) -> None:
    """Write the model in `source` without these layers to the empty folder `target`.

    Raises ModelError for a graph whose layers cannot be found or dropped.
    """
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.name not in (IR_XML, IR_BIN, MANIFEST_FILE, "config.json"):
            shutil.copyfile(path, target / path.name)
    model = surgery.read_model(source)
    layers.drop(model, dropped)
    with disk.writing(target):
        ov.save_model(model, target / IR_XML, compress_to_fp16=False)
    config = read_json(source / "config.json")
    text = config.get("text_config")
    for table in (config, text if isinstance(text, dict) else {}):
        count = table.get("num_hidden_layers")
        if isinstance(count, int):
            table["num_hidden_layers"] = count - len(dropped)
        if isinstance(table.get("layer_types"), list):
            kinds = table["layer_types"]
            table["layer_types"] = [kind for i, kind in enumerate(kinds) if i not in dropped]
    write_json(target / "config.json", config, indent=2)
