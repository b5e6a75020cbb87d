"""How much memory a cache may take, and how a user says it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from support.toys.toy_backend import toy_backend  # noqa: F401  (a fixture)

import specport
from specport.errors import InvalidInput
from specport.runtime.caches import memory


@pytest.fixture(autouse=True)
def _free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**10, total=10**12))
    monkeypatch.setattr(memory, "cgroup_free_bytes", lambda: None)


def test_shares_are_of_what_is_free() -> None:
    assert memory.free_bytes() == 10**10
    assert (memory.default_share("target"), memory.default_share("draft")) == (4 * 10**9, 2 * 10**9)


def test_weights_that_are_still_to_be_read_are_not_free() -> None:
    assert memory.default_share("target", 5 * 10**9) == 2 * 10**9
    assert memory.default_share("target", 11 * 10**9) == 4 * 10**8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GB", 4 * 10**9), ("512MB", 512 * 10**6), ("1.5 gb", 15 * 10**8), ("2GiB", 2**31),
        ("64kib", 2**16), ("1TB", 10**12), ("30%", 3 * 10**9), (" 0.5 % ", 5 * 10**7), ("100%", 10**10),
    ],
)  # fmt: skip
def test_amounts(text: str, expected: int) -> None:
    assert memory.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "4", "GB", "-1GB", "0GB", "0%", "101%", "4 lots", "1e3MB", "4GB free", "nan%", "٤GB"]
)
def test_what_is_no_amount_is_said(text: str) -> None:
    with pytest.raises(InvalidInput, match="4GB"):
        memory.parse(text)


def group(folder: Path, limit: str, usage: int, inactive: int = 0, *, version: int = 2) -> None:
    """Write a control group as the kernel shows it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
    entry = {1: "total_inactive_file", 2: "inactive_file"}[version]
    stat = f"anon 5\n{entry} {inactive}"
    for name, text in zip((*names, "stat"), (limit, usage, stat), strict=True):
        (folder / f"memory.{name}").write_text(f"{text}\n")


def cgroup_free(root: Path, membership: str) -> int | None:
    (root / "self").write_text(membership)
    return FREE(root, root / "self")


FREE = memory.cgroup_free_bytes  # the fixture replaces it
NO_LIMIT_V1 = str((1 << 63) - 4096)


def test_a_container_of_version_2(tmp_path: Path) -> None:
    """The container sees its own group as the root."""
    group(tmp_path, "4000", 1500, 200)
    assert cgroup_free(tmp_path, "0::/\n") == 2700
    group(tmp_path, "max", 1500)
    assert cgroup_free(tmp_path, "0::/\n") is None
    group(tmp_path, "1000", 1500)
    assert cgroup_free(tmp_path, "0::/\n") == 0


def test_the_narrowest_group_above_counts(tmp_path: Path) -> None:
    group(tmp_path / "a", "5000", 4000)
    group(tmp_path / "a/b", "9000", 100)
    group(tmp_path / "a/b/c", "max", 50)
    group(tmp_path / "other", "1", 1)
    assert cgroup_free(tmp_path, "0::/a/b/c\n") == 1000
    group(tmp_path / "a/b", "500", 100)
    assert cgroup_free(tmp_path, "0::/a/b/c\n") == 400


@pytest.mark.parametrize("path", ["/", "/docker/0123", "/docker"])
def test_a_container_of_version_1(tmp_path: Path, path: str) -> None:
    """The path may be the host's, which the container does not see."""
    group(tmp_path / "memory", "3000", 1000, 300, version=1)
    (tmp_path / "memory/docker").mkdir()
    mixed = f"12:cpu,cpuacct:/x\n4:hugetlb,memory:{path}\n1:name=systemd:/\n0::/\n"
    assert cgroup_free(tmp_path, mixed) == 2300
    group(tmp_path / "memory", NO_LIMIT_V1, 1000, version=1)
    assert cgroup_free(tmp_path, mixed) is None


@pytest.mark.parametrize("membership", ["", "nonsense\n", "0::/\n", "3:memory:/x\n", "0::/a:b\n"])
def test_without_readable_limits_there_is_none(tmp_path: Path, membership: str) -> None:
    assert FREE(tmp_path, tmp_path / "nowhere") is None
    assert cgroup_free(tmp_path, membership) is None
    group(tmp_path, "many", 1)
    group(tmp_path / "memory", "", 1, version=1)
    assert cgroup_free(tmp_path, membership) is None


@pytest.mark.parametrize(("limited", "expected"), [(None, 10**10), (10**9, 10**9), (10**11, 10**10)])
def test_the_limit_of_a_container_counts_on_linux(
    monkeypatch: pytest.MonkeyPatch, limited: int | None, expected: int
) -> None:
    monkeypatch.setattr(memory, "cgroup_free_bytes", lambda: limited)
    for platform, free in (("linux", expected), ("win32", 10**10)):
        monkeypatch.setattr(memory.sys, "platform", platform)
        assert memory.free_bytes() == free


@pytest.mark.usefixtures("toy_backend")
def test_who_has_no_memory_for_the_whole_context_is_told() -> None:
    with specport.load(device="xeon", draft="none", cache_memory="1KB") as pipeline:
        (note,) = pipeline.notes
        assert "texts of 1,000 tokens" in note and "holds 2,300" in note and "--cache-memory" in note
    with specport.load(device="xeon", draft="none", cache_memory="3KB") as pipeline:
        assert pipeline.notes == []
