"""A damaged GGUF file gives one clear error or a model, never another exception."""

import random

import pytest
from specport.quantize.convert.from_gguf import config
from support.tiny import tiny_gguf

from specport.errors import ModelError
from specport.models.gguf import split
from specport.text import gguf_tokenizer
from specport.text.gguf_vocabulary import Vocabulary

SHAPE = {
    "llama.embedding_length": 32, "llama.block_count": 1, "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip


def read(path) -> str:
    """The error in one line, "" for none."""
    try:
        header = split.read(path)
        config.entries(header)
        gguf_tokenizer.build(Vocabulary(header))
    except ModelError as error:
        return str(error)
    return ""


@pytest.fixture
def whole(tmp_path) -> bytes:
    tiny_gguf.write(tmp_path / "m.gguf", **SHAPE)
    assert not read(tmp_path / "m.gguf")
    return (tmp_path / "m.gguf").read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_bytes_that_are_changed(seed, whole, tmp_path):
    rng, path = random.Random(seed), tmp_path / "m.gguf"
    end = len(whole) - len(tiny_gguf.vocabulary()) * 32 * 4  # of the header
    outcomes = {"read": 0, "refused": 0}
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(4, end)] = rng.choice((0, 1, 2, 8, 9, 127, 255, rng.randrange(256)))
        path.write_bytes(data)
        said = read(path)
        assert "\n" not in said
        outcomes["refused" if said else "read"] += 1
    assert min(outcomes.values()) > 5


@pytest.mark.parametrize("value", ["text", -1, 2.5, True, [1, 2], ["a"], 1 << 31])
def test_values_of_the_wrong_kind(value, whole, tmp_path):
    from specport.models.gguf.file import read_header

    (tmp_path / "m.gguf").write_bytes(whole)
    keys = [*read_header(tmp_path / "m.gguf").metadata]
    for key in keys:
        if value == -1 and key.startswith("general."):
            continue
        try:
            tiny_gguf.write(tmp_path / "m.gguf", **{**SHAPE, key: value})
        except Exception:  # the writer itself refuses
            continue
        assert "\n" not in read(tmp_path / "m.gguf")
