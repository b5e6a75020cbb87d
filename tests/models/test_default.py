"""The embedded default model: fetched and converted once, then ready in a moment."""

import subprocess
import sys
import time

import pytest

from specport.models import cache, manifest
from specport.models.fetch import download
from specport.models.folder_checks import ir_problem
from specport.runtime.conversion import resolve
from specport.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.real_model


def test_default_model_is_whole_and_right():
    found = resolve()
    assert resolve("default") == found
    assert (found.name, found.precision, found.source) == (download.NAME, "int8", "default")
    assert ir_problem(found.folder) is None
    assert manifest.read(found.folder)["about"]["versions"]["nncf"]
    assert cache.verify(found.folder.name) is None
    tokenizer = load_tokenizer(found.folder)
    assert tokenizer.eos_ids == {0, 2}
    assert tokenizer.vocab_size == 49152
    chat = tokenizer.chat([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(chat).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    )
    assert chat[:2].count(1) == 1  # <|im_start|> is this model's BOS: one, not two


def test_second_start_is_quick():
    resolve()
    code = (
        "from specport.runtime.conversion import resolve\n"
        "from specport.text.tokenizer import load_tokenizer\n"
        "load_tokenizer(resolve().folder).encode('hello')"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert time.monotonic() - start < 5.0  # measured: 0.6 s on two idle cores
