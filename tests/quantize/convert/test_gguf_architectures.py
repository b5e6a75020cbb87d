"""GGUF files of every architecture compute what the model computes that they were made from."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from specport.quantize.convert import gguf_config, gguf_weights
from specport.quantize.convert.export import load_source
from support import tiny_gguf

from specport.errors import ModelError
from specport.models import source
from specport.models.gguf import split

pytestmark = [pytest.mark.stack, pytest.mark.filterwarnings("ignore")]

PROMPT = [0, 7, 90, 41, 33, 200, 12, 5, *range(20, 60)]  # more than two windows


def logits(model) -> np.ndarray:
    model.set_attn_implementation("eager")  # the one that knows soft caps
    with torch.no_grad():
        return model.eval()(torch.tensor([PROMPT])).logits[0].float().numpy()


def same(model, other, error=1e-4) -> None:
    want, got = logits(model), logits(other)
    assert np.abs(want - got).max() < error * np.abs(want).max()


@pytest.mark.parametrize("arch", gguf_config.ARCHITECTURES)
def test_gguf_computes_what_the_model_computes(arch, tmp_path):
    model = tiny_gguf.hf_model(arch)
    tiny_gguf.write(tmp_path / "m.gguf", arch, model)
    loaded = load_source(tmp_path / "m.gguf", tmp_path, False)
    same(model, loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    want = model.config.to_dict()
    for key in ("vocab_size", "sliding_window", "layer_types", "tie_word_embeddings"):
        if getattr(model.config, key, None) is not None and key in want:
            assert getattr(loaded.config, key) == want[key]


def test_the_architectures_are_those_that_users_are_told():
    assert {*source.GGUF_ARCHITECTURES} == {*gguf_config.ARCHITECTURES}
