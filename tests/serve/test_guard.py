"""Who is let in: keys, host names, and files of keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.processes.served import run, served, toy

from specport.errors import InvalidInput
from specport.serve.guard import is_loopback, read_keys

KEYS = ["secret one", "sécret"]


def test_only_a_key_opens_the_server() -> None:
    async def start() -> None:
        async with served(toy(), keys=KEYS) as s:

            async def status(path: str, header: bytes | None) -> int:
                headers = {} if header is None else {"authorization": header}
                reply = await s.client.get(path, headers=headers)
                if reply.status_code == 401:
                    assert reply.json()["error"]["code"] == "invalid_api_key"
                    assert "secret" not in reply.text and reply.headers["www-authenticate"] == "Bearer"
                return reply.status_code

            good = [b"Bearer secret one", b"bearer secret one", "Bearer sécret".encode()]
            bad = [None, b"", b"Bearer", b"Bearer ", b"Bearer secret", b"Bearer secret one x",
                   b"Basic secret one",
                   b"secret one", b"Bearer \xff\xfe"]  # fmt: skip
            for path in ("/v1/models", "/metrics", "/v1/nothing"):
                assert {await status(path, header) for header in bad} == {401}
            assert {await status("/v1/models", header) for header in good} == {200}
            assert await status("/health", None) == await status("/", None) == 200
            assert (await s.chat("abc", max_tokens=3)).status_code == 401
            assert s.service.pipeline.engine.num_unfinished == 0

    run(start())


def test_a_server_for_this_machine_answers_under_its_own_names_only() -> None:
    async def start() -> None:
        async with served(toy(), hosts={"127.0.0.1", "localhost", "::1"}) as s:
            for host, status in (
                ("127.0.0.1:8000", 200), ("localhost", 200), ("LOCALHOST:1", 200), ("[::1]:8000", 200),
                ("evil.example:8000", 403), ("127.0.0.1.evil.example", 403), ("", 403), ("[::2]", 403),
            ):  # fmt: skip
                reply = await s.client.get("/v1/models", headers={"host": host})
                assert reply.status_code == status, host

    run(start())


def test_keys_come_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes("\ufeff# the team\r\nsecret one \r\n\r\nsécret\n".encode())
    assert read_keys(file) == KEYS
    file.write_text("# none\n\n")
    with pytest.raises(InvalidInput, match="has no API key"):
        read_keys(file)
    endless = Path("/dev/zero")
    if endless.exists():
        with pytest.raises(InvalidInput, match="larger than"):
            read_keys(endless)
    file.write_bytes(b"\xff\xfe")
    for wrong in (file, tmp_path / "missing", tmp_path, Path("a\0b")):
        with pytest.raises(InvalidInput, match=r"cannot (read the file of API keys|use the path)"):
            read_keys(wrong)


def test_addresses_of_this_machine() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.1", "example.org", "")))
