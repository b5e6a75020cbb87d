"""Token ids of GGUF models equal llama.cpp's. The golden ids come from support/make_tokenizer_golden.py."""

import json
import os
from pathlib import Path

import pytest

from specport.models.fetch import download
from specport.models.gguf.file import read_header
from specport.text import gguf_tokenizer
from specport.text.tokenizer import Tokenizer, load_tokenizer

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("data", "tokenizer_golden.json").read_text("utf-8"))
MODELS = [
    pytest.param(name, marks=pytest.mark.real_model if name == download.NAME else ())
    for name in GOLDEN["models"]
]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    loaded: dict[str, Tokenizer] = {}

    def get(name: str) -> Tokenizer:
        if name not in loaded:
            folder = tmp_path_factory.mktemp("tokenizer")
            gguf_tokenizer.save(read_header(_gguf(name)), folder)
            loaded[name] = load_tokenizer(folder)
        return loaded[name]

    return get


def _gguf(name: str) -> Path:
    if name == download.NAME:
        return download.default_gguf()
    folder = os.environ.get("SPECPORT_TEST_MODELS")
    if not folder:
        pytest.skip("SPECPORT_TEST_MODELS names no folder with more GGUF files")
    found = sorted(Path(folder).rglob(f"{name}.gguf"))
    if not found:
        pytest.skip(f"no {name}.gguf in SPECPORT_TEST_MODELS")
    return found[0]


@pytest.mark.parametrize("name", MODELS)
def test_plain_text(name, load):
    tokenizer = load(name)
    for text, ids in GOLDEN["models"][name]["plain"]:
        assert tokenizer.encode(text) == ids, text
        bos = tokenizer.encode("")
        assert tokenizer.decode(ids[len(bos) :]) == text


@pytest.mark.parametrize("name", MODELS)
def test_special_tokens(name, load):
    tokenizer = load(name)
    for text, parsed, plain in GOLDEN["models"][name]["special"]:
        assert tokenizer.encode(text) == parsed, text
        assert tokenizer.encode(text, parse_special=False) == plain, text


@pytest.mark.parametrize("name", MODELS)
def test_chat(name, load):
    tokenizer = load(name)
    if not tokenizer.has_chat_template:
        pytest.skip(f"{name} has no chat template")
    for messages, prompt, ids in GOLDEN["models"][name]["chat"]:
        assert tokenizer.render(messages) == prompt
        assert tokenizer.chat(messages) == ids


@pytest.mark.stack
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_tokenizer(name, load, tmp_path):
    transformers = pytest.importorskip("transformers")
    gguf_tokenizer.save(read_header(_gguf(name)), tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in GOLDEN["models"][name]["plain"]:
        assert theirs(text)["input_ids"] == ids
