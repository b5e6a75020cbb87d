"""The cache: entries are whole or absent, whatever happens to the process or the files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from specport.errors import InvalidInput, ModelError
from specport.models import cache, manifest


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(work: Path):
    (work / "sub").mkdir()
    (work / "weights.bin").write_bytes(bytes(range(256)) * 64)
    (work / "sub" / "config.json").write_text("{}")
    return {"name": "tiny", "source": "test"}


def never(work: Path):
    raise AssertionError("built again")


def test_built_once_and_listed():
    entry = cache.entry("tiny", build)
    assert cache.entry("tiny", never) == entry
    assert [(e.name, e.about["source"]) for e in cache.entries()] == [("tiny", "test")]
    assert cache.entries()[0].size > 256 * 64
    assert cache.verify("tiny") is None


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o755), (0o002, 0o755), (0o077, 0o700)])
def test_others_may_read_what_the_umask_lets_them(umask, mode, root):
    before = os.umask(umask)
    try:
        folder = cache.entry("tiny", build).folder
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == mode


def test_remove_frees_the_space(root):
    entry = cache.entry("tiny", build)
    assert cache.remove("tiny") == entry.size
    assert cache.entries() == []
    assert list((root / "tmp").iterdir()) == []
    for name in ("tiny", "../models", ""):
        with pytest.raises(InvalidInput):
            cache.remove(name)


def _truncate(folder):
    os.truncate(folder / "weights.bin", 100)


def _flip(folder):
    data = bytearray((folder / "weights.bin").read_bytes())
    data[500] ^= 1
    (folder / "weights.bin").write_bytes(data)


def _forge(folder):
    path = folder / manifest.MANIFEST_FILE
    path.write_text(path.read_text().replace('"size": 2', '"size": 3'))


DAMAGES = {
    "missing file": lambda folder: (folder / "sub" / "config.json").unlink(),
    "wrong size": _truncate,
    "wrong content": _flip,
    "no manifest": lambda folder: (folder / manifest.MANIFEST_FILE).unlink(),
    "manifest cut": lambda folder: os.truncate(folder / manifest.MANIFEST_FILE, 60),
    "manifest is no object": lambda folder: (folder / manifest.MANIFEST_FILE).write_text("[]"),
    "manifest edited": _forge,
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_entry_is_built_again(kind, root):
    folder = cache.entry("tiny", build).folder
    DAMAGES[kind](folder)
    assert "damage" in cache.entries()[0].about
    assert cache.entry("tiny", build).about == {"name": "tiny", "source": "test"}
    assert cache.verify("tiny") is None
    assert list((root / "tmp").iterdir()) == []


def test_copied_entry_is_hashed_once(monkeypatch):
    folder = cache.entry("tiny", build).folder
    os.utime(folder / "weights.bin", (1, 1))
    hashed = []
    real = manifest.file_sha256
    monkeypatch.setattr(manifest, "file_sha256", lambda path: (hashed.append(path.name), real(path))[1])
    for _ in range(2):
        cache.entry("tiny", never)
    assert hashed == ["weights.bin"]


def test_same_size_and_time_is_found_by_verify():
    folder = cache.entry("tiny", build).folder
    stat = (folder / "weights.bin").stat()
    _flip(folder)
    os.utime(folder / "weights.bin", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.verify("tiny") == "the content of weights.bin has changed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError("broken")])
def test_failed_build_leaves_nothing(error, root):
    def fail(work):
        build(work)
        raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        cache.entry("tiny", fail)
    assert cache.entries() == []
    assert list((root / "tmp").iterdir()) == []


KILLED = """
import sys, time
from specport.models import cache
def build(work):
    (work / "weights.bin").write_bytes(b"half")
    print("building", flush=True)
    time.sleep(60)
    return {}
cache.entry("tiny", build)
"""


def test_killed_build_is_cleaned_up(root):
    child = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE)
    assert child.stdout.readline().strip() == b"building"
    child.kill()
    child.wait()
    child.stdout.close()
    assert cache.entries() == []
    assert len(list((root / "tmp").iterdir())) == 1
    cache.entry("another", build)
    assert list((root / "tmp").iterdir()) == []


def test_an_entry_may_need_another(root):
    def outer(work):
        build(work)
        cache.entry("inner", build)
        assert len(list((root / "tmp").iterdir())) == 1  # ours was not taken for a leftover
        return {}

    cache.entry("outer", outer)
    assert [entry.name for entry in cache.entries()] == ["inner", "outer"]


RACER = """
import sys, time
from specport.models import cache
def build(work):
    with open(sys.argv[1], "a") as file:
        file.write("built;")
    time.sleep(0.5)
    (work / "weights.bin").write_bytes(b"whole")
    return {}
assert (cache.entry("tiny", build).folder / "weights.bin").read_bytes() == b"whole"
"""


def test_processes_that_start_at_once_build_once(tmp_path):
    log = tmp_path / "log"
    racers = [subprocess.Popen([sys.executable, "-c", RACER, str(log)]) for _ in range(3)]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    assert log.read_text() == "built;"


def test_unwritable_cache_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPECPORT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="SPECPORT_CACHE"):
        cache.entry("tiny", build)
