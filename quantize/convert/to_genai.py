"""Conversion of a model folder to the layout of openvino-genai."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from specport.quantize.convert import disk, package_faults

from specport.errors import SpecportError
from specport.models.bundle import BUNDLE_FILE
from specport.models.manifest import MANIFEST_FILE


def genai(folder: Path, out: Path, *, link: bool = False) -> Path:
    """Write an IR folder with the tokenizer models that openvino-genai reads; return `out`.

    link: hard-link files instead of copying them, where the file system can.

    Raises SpecportError where openvino-tokenizers, which comes with openvino-genai, is missing.
    """
    package_faults.mend()
    try:
        import openvino as ov
        import openvino_tokenizers
        from transformers import AutoTokenizer, logging
    except ImportError as error:
        raise SpecportError(
            f"the layout of openvino-genai needs more packages: {error}", "pip install 'specport[bench]'"
        ) from error
    logging.set_verbosity_error()
    out.mkdir(parents=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in (BUNDLE_FILE, MANIFEST_FILE):
            _put(path, out / path.name, link)
    if not (out / "openvino_tokenizer.xml").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        converted = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
        for name, model in zip(("tokenizer", "detokenizer"), converted, strict=True):
            with disk.writing(out):
                ov.save_model(model, out / f"openvino_{name}.xml")
    return out


def _put(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # another file system
            pass
    shutil.copyfile(source, target)
