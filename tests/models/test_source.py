"""Which model a user means, and what is said when it cannot be used."""

import json
import os
import shutil
import struct
import time

import pytest
from support.tiny import tiny_gguf, tiny_models

from specport.errors import InvalidInput, ModelError
from specport.models import source
from specport.models.fetch import hub
from specport.models.gguf import split
from specport.models.gguf.file import read_architecture, read_header
from specport.models.source import original
from specport.runtime.conversion import resolve


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def ir(tmp_path):
    folder = tmp_path / "my-ir"
    tiny_models.save_tokenizer(folder)
    (folder / "openvino_model.xml").write_text('<?xml version="1.0"?>\n<net name="m">\n</net>\n')
    (folder / "openvino_model.bin").write_bytes(bytes(range(256)) * 100)
    (folder / "config.json").write_text("{}")
    return folder


def refused(spec, **options):
    with pytest.raises((ModelError, InvalidInput)) as caught:
        resolve(str(spec), **options)
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.hint
    return text


def test_ir_is_used_as_it_is(ir, tmp_path):
    found = resolve(str(ir))
    assert (found.folder, found.name, found.precision, found.source) == (ir, "my-ir", "ir", str(ir))
    shutil.copytree(ir, tmp_path / "copy")
    assert resolve(str(tmp_path / "copy")).fingerprint == found.fingerprint
    (ir / "openvino_model.bin").write_bytes(bytes(25600))
    assert resolve(str(ir)).fingerprint != found.fingerprint


@pytest.mark.parametrize("name", ["openvino_model.bin", "config.json", "tokenizer.json"])
def test_incomplete_ir(name, ir):
    (ir / name).unlink()
    assert name in refused(ir)


def test_truncated_ir(ir):
    os.truncate(ir / "openvino_model.xml", 20)
    assert "truncated" in refused(ir)


@pytest.mark.parametrize(
    "spec", ["missing.gguf", "./no/such/folder", "/no/such", "word", "a/b/c", "", "x/y.gguf", "~nobody/x y"]
)
def test_what_does_not_exist(spec):
    assert "no file or folder" in refused(spec)


def test_unknown_precision(ir):
    assert "int8" in refused(ir, precision="int3")


def test_folders_without_a_model(tmp_path):
    assert "no config.json" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "safetensors" in refused(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    assert "2 .gguf files" in refused(tmp_path)


def test_bad_gguf_files(tmp_path):
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path)
    whole = path.read_bytes()
    assert read_header(path).architecture == "llama"
    for data in (b"", b"PK\x03\x04", b"GGU", bytes(100)):
        path.write_bytes(data)
        assert "not a GGUF" in refused(path)
    for size in (4, 10, 23, 24, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert "truncated or damaged" in refused(path), size
    path.write_bytes(b"GGUF" + struct.pack(">I", 3) + whole[8:])  # big-endian
    assert "version" in refused(path)
    for at in (8, 16, 24):  # counts and lengths that no file can hold
        path.write_bytes(whole[:at] + b"\xff" * 8 + whole[at + 8 :])
        assert "truncated or damaged" in refused(path), at


def test_a_converted_gguf_is_found_without_parsing_its_vocabulary(ir, tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    tiny_gguf.write(path)

    def convert(given, target, *_, **__):
        shutil.copytree(ir, target, dirs_exist_ok=True)
        return {}

    found = source.resolve_with(convert, str(path))
    monkeypatch.setattr(source.gguf_split, "read", pytest.fail)
    monkeypatch.setattr(source.gguf_file, "read_header", pytest.fail)
    assert source.resolve_with(pytest.fail, str(path)) == found

    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert read_architecture(path) == "llama"
    path.write_bytes(whole[:40])
    with pytest.raises(ModelError, match="truncated or damaged"):
        read_architecture(path)


@pytest.mark.parametrize("arch", ["rwkv6", "qwen35", "gpt-oss", "t5", "deci", "bert", "clip"])
def test_unsupported_gguf(arch, tmp_path):
    tiny_gguf.write(tmp_path / "m.gguf", arch)
    text = refused(tmp_path / "m.gguf")
    assert f"GGUF architecture {arch!r} is not supported (use the model's Hugging Face folder; " in text


def test_gguf_without_its_tokenizer(tmp_path):
    tiny_gguf.write(tmp_path / "m.gguf")
    header = read_header(tmp_path / "m.gguf")
    split.write_weights(header, tmp_path / "slim.gguf", 49)
    slim = read_header(tmp_path / "slim.gguf")
    assert slim.tensors == header.tensors
    assert slim.metadata["llama.vocab_size"] == 49
    assert {key.partition(".")[0] for key in slim.metadata} == {"general", "llama"}
    assert "general.name" not in slim.metadata
    original, copy = ((h.path.read_bytes()[h.data[0].start :]) for h in (header, slim))
    assert original == copy

    import gguf

    assert [t.name for t in gguf.GGUFReader(tmp_path / "slim.gguf").tensors] == ["token_embd.weight"]


def test_hub_out_of_reach(monkeypatch):
    monkeypatch.setattr(hub, "ANSWER_S", 1.0)
    hub_api = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub_api.HfApi, "model_info", lambda *args, **options: time.sleep(30))
    monkeypatch.setattr(hub_api, "snapshot_download", _not_cached)
    start = time.monotonic()
    text = refused("some-org/some-model")
    assert "cannot be reached" in text
    assert "local folder" in text
    assert time.monotonic() - start < 20


def _not_cached(*args, **options):
    from huggingface_hub.errors import LocalEntryNotFoundError

    raise LocalEntryNotFoundError("not there")


def test_hub_files_are_chosen(monkeypatch, ir):
    assert "*.safetensors" in hub.needed_files(
        "o/n", {"config.json", "model.safetensors", "pytorch_model.bin"}
    )
    assert "*.safetensors" not in hub.needed_files("o/n", {*hub.IR_FILES, "model.safetensors"})
    for names in ({"model.Q4.gguf"}, {"pytorch_model.bin"}, {"onnx/model.safetensors"}):
        with pytest.raises(ModelError):
            hub.needed_files("o/n", names)
    monkeypatch.setattr(source.hub, "fetch", lambda spec, progress: ir)
    found = resolve("org/name@v1.0")
    assert (found.name, found.source) == ("name", "org/name@v1.0")


def test_hub_progress_draws_nothing(capfd):
    from tqdm.contrib.concurrent import thread_map

    shares = []
    bar = hub.reporting_bar(shares.append)
    thread_map(str, range(5), tqdm_class=bar, max_workers=2)
    assert max(shares) == 1.0
    assert capfd.readouterr() == ("", "")


def test_precision_noted_in_the_manifest(ir):
    (ir / "specport-model.json").write_text(json.dumps({"about": {"precision": "int4"}}))
    assert resolve(str(ir)).precision == "int4"


def test_original_weights(ir, tmp_path):
    with pytest.raises(ModelError, match="converted weights only"):
        original(str(ir))
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "one.gguf").touch()
    assert original(str(folder)) == original(str(folder / "one.gguf")) == folder / "one.gguf"
    (folder / "model.safetensors").touch()
    assert original(str(folder)) == folder
    with pytest.raises(ModelError, match="no file or folder"):
        original("no/such/thing/here")
