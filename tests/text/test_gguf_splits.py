"""Ids of tiny vocabularies equal llama.cpp's, for each way of splitting. From support/make_gguf_oracle.py."""

import json
from pathlib import Path

import pytest
from support.tiny import tiny_gguf

from specport.models.gguf.file import read_header
from specport.text import gguf_splits, gguf_tokenizer
from specport.text.tokenizer import Tokenizer, load_tokenizer

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("data", "gguf_splits_golden.json").read_text("utf-8"))
# llama.cpp hides spaces beyond ASCII from ranges of characters; the models' own tokenizers do not.
WIDE_SPACES = {"pre=deepseek-coder", "pre=deepseek-llm"}
NAMES = [name for row in GOLDEN["rows"] for name in row["names"]]


def tokenizer(folder: Path, name: str) -> Tokenizer:
    """The vocabulary of a name in the golden file: `pre=NAME` or `spm=True`."""
    kind, _, value = name.partition("=")
    values = GOLDEN["words"] if kind == "pre" else GOLDEN["pieces"]
    values = {**values, "pre": value} if kind == "pre" else {**values, "add_space_prefix": value == "True"}
    changes = {f"tokenizer__ggml__{key}": value for key, value in values.items()}
    tiny_gguf.write(folder / "m.gguf", "llama", **changes)
    gguf_tokenizer.save(read_header(folder / "m.gguf"), folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: row["names"][0])
def test_ids_are_those_of_llama_cpp(row, tmp_path):
    """Names in a row split alike; each alias is tried once."""
    for name in row["names"]:
        mine = tokenizer(tmp_path, name)
        start = 1 if name.startswith("spm") else 0
        for text, ids in zip(GOLDEN["texts"], row["plain"], strict=True):
            if name in WIDE_SPACES and "\u2003" in text:
                continue
            assert mine.encode(text) == ids, (name, text)
            prefix = " " if name == "spm=True" else ""
            assert mine.decode(ids[start:]) == prefix + text
        for text, ids in zip(GOLDEN["special"], row["special"], strict=True):
            assert mine.encode(text) == ids, (name, text)


def test_every_name_is_tried():
    assert {f"pre={name}" for name in (*gguf_splits.SPLITS, *gguf_splits.NAMES)} == {
        name for name in NAMES if name.startswith("pre=")
    }
    assert gguf_splits.NAMES.keys().isdisjoint(gguf_splits.SPLITS)
    known = gguf_splits.SPLITS.keys() | gguf_splits.NAMES.keys()
    flagged = {*gguf_splits.IGNORE_MERGES, *gguf_splits.BOS_BY_DEFAULT, *gguf_splits.OF_ARCHITECTURE.values()}
    assert flagged <= known
