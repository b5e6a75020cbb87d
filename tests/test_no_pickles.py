"""No weights are unpickled and no code of a model runs that nobody asked for, wherever a model is read."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
UNPICKLING = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("joblib", "load")}


def calls() -> list[tuple[str, ast.Call]]:
    return [
        (f"{path.relative_to(ROOT).as_posix()}:{node.lineno}", node)
        for top in ("specport", "quantize", "backends", "examples")
        for path in sorted((ROOT / top).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def test_every_load_says_what_it_trusts() -> None:
    loads, wrong = 0, []
    for where, node in calls():
        assert isinstance(node.func, ast.Attribute)
        given = {word.arg: word.value for word in node.keywords}
        owner = getattr(node.func.value, "id", "")
        if (owner, node.func.attr) in UNPICKLING:
            wrong.append(f"{where} unpickles")
        if owner in ("np", "numpy") and node.func.attr == "load":
            allowed = given.get("allow_pickle")
            if not (isinstance(allowed, ast.Constant) and allowed.value is False):
                wrong.append(f"{where}: allow_pickle")
        if node.func.attr != "from_pretrained":
            continue
        loads += 1
        wrong += [f"{where}: {n}" for n in ("trust_remote_code", "local_files_only") if n not in given]
        if "Model" in owner and "gguf_file" not in given and "use_safetensors" not in given:
            wrong.append(f"{where}: use_safetensors")
    assert loads > 5 and not wrong


@pytest.mark.stack
def test_a_folder_with_pickles_only_is_not_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from specport.quantize.convert import export
    from support.tiny import tiny_models

    from specport.errors import ModelError

    model = tiny_models.hf_model("llama")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        export.load_source(tmp_path, tmp_path, False)
