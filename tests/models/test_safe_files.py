"""Folders that somebody else wrote: no name leads out of them, and nothing is read but regular files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from specport.drafters.retrieval.datastore import MANIFEST_FILE, ORDER_FILE, TOKENS_FILE, open_datastore
from specport.errors import ModelError
from specport.models import bundle, manifest
from specport.models.bundle import BUNDLE_FILE
from specport.models.gguf import file as gguf_file
from specport.models.json_file import read_json
from specport.models.safe_files import UnsafeFile, check_folder, check_name, inside, regular
from specport.runtime.conversion import resolve

BAD = (
    "/dev/zero", "/etc/passwd", "../x", "a/../../x", "a/..", "..", ".", "", "./a", "a//b", "a/",
    "C:\\x", "C:x", "c:/x", "..\\x", "a\\b", "\\\\host\\share\\x", "x:stream", "a\0b", "a\nb",
    "CON", "nul", "aux.bin", "COM1", "lpt9.txt", "com¹", "sub/PRN", "NUL .txt", "x.", "x ", "sub./x",
    "a?b", "a*b", None, 3, ["a"],
)  # fmt: skip
GOOD = ("a", "openvino_model.bin", "sub/b.json", ".hidden", "console.txt", "com10", "auxiliary", "ä b.bin")


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: object) -> None:
    with pytest.raises(UnsafeFile):
        check_name(name)
    with pytest.raises(UnsafeFile):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", GOOD)
def test_other_names_are_taken(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x")
    assert inside(tmp_path, name) == path
    check_folder(tmp_path)
    with pytest.raises(FileNotFoundError):
        inside(tmp_path, f"{name}-not")


def linked(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target, target_is_directory=target.is_dir())
    except OSError:
        pytest.skip("links are not allowed here")


def odd_files(folder: Path) -> list[Path]:
    """What is no regular file, as far as this system has it, in `folder`."""
    (folder / "directory").mkdir()
    found = [folder / "directory"]
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe")
        found.append(folder / "pipe")
    if Path("/dev/zero").exists():
        linked(folder / "zero", Path("/dev/zero"))
        found.append(folder / "zero")
    return found


def test_links_devices_pipes_and_folders_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_bytes(b"x")
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in odd_files(folder):
        with pytest.raises(UnsafeFile):
            inside(folder, path.name)
        with pytest.raises(UnsafeFile):
            regular(path)
    linked(folder / "sub", tmp_path / "real")
    linked(folder / "x", tmp_path / "real" / "x")
    for name in ("sub/x", "x"):
        with pytest.raises(UnsafeFile, match="is a link"):
            inside(folder, name)
    assert regular(folder / "x") == folder / "x"  # in a folder that the user made
    linked(tmp_path / "whole", tmp_path / "real")
    assert inside(tmp_path / "whole", "x").read_bytes() == b"x"  # the folder may be a link


def test_the_links_of_the_hubs_cache_are_taken(tmp_path: Path) -> None:
    place = tmp_path / "models--a--b"
    snapshot = place / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    (place / "blobs" / "hash").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"s")
    linked(snapshot / "x", Path("../../blobs/hash"))
    check_folder(snapshot)
    assert inside(snapshot, "x").read_bytes() == b"x"
    linked(snapshot / "y", Path("../../../secret"))
    with pytest.raises(UnsafeFile, match="is a link"):
        check_folder(snapshot)


def forged_manifest(folder: Path, change: Callable[[dict], None], name: str) -> None:
    """The folder's manifest with a change, and the check that goes with it."""
    manifest.write(folder, {"tokenizer": "toy", "layers": [0], "head": None}, name)
    body = json.loads((folder / name).read_text())
    body.pop("check")
    change(body)
    manifest.store(folder / name, body)


@pytest.mark.parametrize("name", ["/dev/zero", "../secret", "link", "C:\\x"])
@pytest.mark.parametrize("manifest_name", [BUNDLE_FILE, MANIFEST_FILE])
def test_a_forged_manifest_is_refused(tmp_path: Path, name: str, manifest_name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"s")
    (folder / "x").write_bytes(b"x")
    linked(folder / "link", tmp_path / "secret")
    # Sizes that fit and a time that does not: it would be hashed, /dev/zero for ever.
    size = 1 if name != "/dev/zero" else 0
    entry = {"size": size, "mtime_ns": 1, "sha256": manifest.file_sha256(tmp_path / "secret")}
    forged_manifest(folder, lambda body: body["files"].update({name: entry}), manifest_name)
    assert manifest.damage(folder, manifest_name) not in (None, "its manifest is missing or damaged")


@pytest.mark.parametrize("files", [[1], {"x": 3}, {"x": {"size": "a"}}, {"x": {}}, "x"])
def test_a_manifest_of_another_form_is_damaged(tmp_path: Path, files: object) -> None:
    (tmp_path / "x").write_bytes(b"x")
    forged_manifest(tmp_path, lambda body: body.update(files=files), MANIFEST_FILE)
    assert manifest.damage(tmp_path, MANIFEST_FILE) == "its manifest is missing or damaged"


def test_a_manifest_that_is_a_device_or_a_pipe_is_none(tmp_path: Path) -> None:
    for path in odd_files(tmp_path):
        assert manifest.read(tmp_path, path.name) is None


def test_a_datastore_whose_numbers_are_a_link_is_refused(tmp_path: Path) -> None:
    """The manifest does not name them, so that nothing in it is wrong."""
    store = tmp_path / "store"
    store.mkdir()
    np.array([1, 2, 3], dtype="<i4").tofile(tmp_path / TOKENS_FILE)
    np.array([1, 2], dtype="<i4").tofile(tmp_path / ORDER_FILE)
    (store / "readme").write_bytes(b"x")
    manifest.write(store, {"tokenizer": "toy"}, MANIFEST_FILE)
    for name in (TOKENS_FILE, ORDER_FILE):
        linked(store / name, tmp_path / name)
    with pytest.raises(ModelError, match="is a link"):
        open_datastore(store, SimpleNamespace(fingerprint="toy"), 10)  # type: ignore[arg-type]


def test_a_bundle_with_a_link_that_its_manifest_does_not_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"s")
    (folder / "x").write_bytes(b"x")
    manifest.write(folder, {"format": 1}, BUNDLE_FILE)
    linked(folder / "config.json", tmp_path / "secret")
    with pytest.raises(ModelError, match=r"config.json is a link"):
        bundle.read(folder)


def test_devices_and_pipes_for_json_weights_and_gguf_are_refused(tmp_path: Path) -> None:
    for number, path in enumerate(odd_files(tmp_path)):
        with pytest.raises(ModelError, match="not a regular file"):
            read_json(path)
        with pytest.raises(ModelError, match="not a regular file"):
            gguf_file.read_header(path)
        folder = tmp_path / f"model{number}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        path.rename(folder / "model.safetensors")
        with pytest.raises(ModelError, match="not a regular file"):
            resolve(str(folder))


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd"])
def test_an_index_of_weights_stays_in_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").write_bytes(b"")
    index = {"weight_map": {"a": "a.safetensors", "b": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="no name of a file"):
        resolve(str(tmp_path))
