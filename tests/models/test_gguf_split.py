"""Split GGUF models: any part or their folder names the whole; what is not whole is refused by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from support.tiny import tiny_gguf

from specport.errors import ModelError
from specport.models import source
from specport.models.gguf import split
from specport.models.gguf.file import read_header

VALUES = [np.arange(32, dtype=np.float32) + 100 * i for i in range(5)]  # of one-dimensional tensors


@pytest.fixture
def parts(tmp_path) -> list[Path]:
    return write(tmp_path / "parts")


def write(folder: Path, arch: str = "llama", count: int = 5) -> list[Path]:
    """Five tensors in three parts, as gguf-split writes them."""
    import gguf

    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(str(folder / "m.gguf"), arch, split_max_tensors=2)
    writer.add_context_length(64)
    for i in range(count):
        writer.add_tensor(f"t{i}", VALUES[i])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.iterdir())


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        split.read(path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return str(caught.value)


def test_parts_are_joined(parts, tmp_path):
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        header = split.read(part)
        assert header.architecture == "llama"
        assert [*header.tensors] == [f"t{i}" for i in range(5)]
        for i, values in enumerate(VALUES):
            assert (header.floats(f"t{i}") == values).all()
    split.write_weights(header, tmp_path / "joined.gguf", 7)
    joined = read_header(tmp_path / "joined.gguf")
    assert joined.metadata["llama.vocab_size"] == 7
    assert joined.metadata["llama.context_length"] == 64
    for i, values in enumerate(VALUES):
        assert (joined.floats(f"t{i}") == values).all()

    import gguf

    theirs = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "joined.gguf").tensors}
    assert all((theirs[f"t{i}"] == values).all() for i, values in enumerate(VALUES))


def test_any_part_and_the_folder_are_one_model(parts, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    given = []

    def convert(path, *_, **__):
        given.append(path)
        raise ModelError("stop")

    for spec in (*parts, parts[0].parent):
        with pytest.raises(ModelError, match="stop"):
            source.resolve_with(convert, str(spec))
        assert source.original(str(spec)) == parts[0]
    assert given == [parts[0]] * 4
    assert not [*(tmp_path / "cache" / "models").iterdir()]
    shutil.copyfile(parts[0], parts[0].parent / "other.gguf")
    with pytest.raises(ModelError, match=r"4 .gguf files"):
        source.resolve_with(convert, str(parts[0].parent))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_missing_part_is_named(number, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    parts[number].unlink()
    left = [part for part in parts if part.exists()]
    for spec in (*left, parts[0].parent):
        with pytest.raises(ModelError, match=f"missing: {parts[number].name}"):
            source.resolve_with(pytest.fail, str(spec))
    assert f"missing: {parts[number].name}" in refused(left[0])


def test_parts_of_other_models_are_refused(parts, tmp_path):
    others = write(tmp_path / "others", "qwen2", count=4)
    assert len(others) == 2
    shutil.copyfile(others[1], parts[1])
    assert "m-00002-of-00003.gguf is part 2 of 2, not part 2 of 3" in refused(parts[0])
    shutil.copyfile(parts[2], parts[1])
    assert "is part 3 of 3, not part 2 of 3" in refused(parts[0])
    tiny_gguf.write(parts[1])
    assert "is no part of a split model" in refused(parts[0])
    write(tmp_path / "again", count=5)
    same = tmp_path / "again" / parts[1].name
    shutil.copyfile(same, parts[1])
    assert len(split.read(parts[0]).tensors) == 5


def test_wrong_numbers_are_refused(parts, tmp_path):
    whole = parts[0].read_bytes()
    for key, size, value, said in (
        (b"split.count", 2, 4, "is of a model in 4 parts, but its name says 3"),
        (b"split.no", 2, 1, "is part 2 of 3, not part 1 of 3"),
        (b"split.tensors.count", 4, 9, "another model"),
    ):
        at = whole.index(key) + len(key) + 4
        parts[0].write_bytes(whole[:at] + value.to_bytes(size, "little") + whole[at + size :])
        assert said in refused(parts[0])
    parts[0].write_bytes(whole)
    split.read(parts[0])
    for part in parts:  # none of the parts knows better
        data = part.read_bytes()
        at = data.index(b"split.tensors.count") + len(b"split.tensors.count") + 4
        part.write_bytes(data[:at] + (6).to_bytes(4, "little") + data[at + 4 :])
    assert "hold 5 tensors instead of 6" in refused(parts[0])


@pytest.mark.parametrize(("name", "value"), [("split.count", "three"), ("split.no", [1, 2])])
def test_numbers_of_the_wrong_kind(name, value, tmp_path):
    for i in (1, 2):
        changes = {"split.count": 2, "split.no": i - 1, name: value}
        tiny_gguf.write(tmp_path / f"m-0000{i}-of-00002.gguf", **changes)
    assert f"{name} is" in refused(tmp_path / "m-00001-of-00002.gguf")


def test_names_that_are_not_of_parts(parts, tmp_path):
    lone = tmp_path / "lone.gguf"
    shutil.copyfile(parts[0], lone)
    assert "is of a model in 3 parts, but its name is not" in refused(lone)
    tiny_gguf.write(tmp_path / "m-00001-of-00001.gguf")
    assert split.read(tmp_path / "m-00001-of-00001.gguf").architecture == "llama"
    tiny_gguf.write(tmp_path / "m-00001-of-00002.gguf")
    shutil.copyfile(tmp_path / "m-00001-of-00002.gguf", tmp_path / "m-00002-of-00002.gguf")
    assert "is of a model in one file, but its name says 2" in refused(tmp_path / "m-00001-of-00002.gguf")
    for name in ("m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-99999-of-99999.gguf"):
        (tmp_path / name).write_bytes(b"")
        assert "cannot be" in refused(tmp_path / name)
