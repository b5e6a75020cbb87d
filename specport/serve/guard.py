"""Who may ask: keys, and the hosts under which a server without keys answers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection, Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from specport.errors import InvalidInput
from specport.outside import read_given
from specport.outside.places import expanded
from specport.serve.openai.errors import ApiError, response

NO_KEYS = "note: other machines can use this server, and there are no keys (--api-key-file)"
_MOST_BYTES = 1 << 20  # of a file of keys
CLIENT = "specport.client"  # where the scope of a request says who asks


class Guard:
    """Let in whoever has a key. Without keys, let in all who ask for one of the hosts.

    keys:  () = no key is needed. Bytes are what `digests` gives for a key.
    hosts: names and addresses; None = any. A page of another site that the user's browser shows could
           otherwise ask a server on the same machine, under a name of its own (DNS rebinding).
    open_paths: need no key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str | bytes] = (),
        hosts: Collection[str] | None = None,
        open_paths: Collection[str] = (),
    ) -> None:
        self._app, self._open = app, frozenset(open_paths)
        self._keys = digests(keys)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope[CLIENT] = str((scope.get("client") or ("",))[0])
        error = None
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            error = ApiError(
                403, "this server answers under its own address only (specport serve --allowed-host NAME)"
            )
        elif self._keys and scope["path"] not in self._open:
            key = _digest(_bearer(headers.get("authorization", "")).encode("latin-1"))
            # Every key is compared, so that the time tells nothing.
            if any([hmac.compare_digest(key, each) for each in self._keys]):  # noqa: C419
                scope[CLIENT] = key.hex()
            else:
                error = ApiError(
                    401,
                    "wrong or missing API key",
                    code="invalid_api_key",
                    headers={"www-authenticate": "Bearer"},
                )
        await (self._app if error is None else response(error))(scope, receive, send)


def digests(keys: Sequence[str | bytes]) -> list[bytes]:
    """Return what tells keys without giving them away. Bytes are digests already."""
    return [
        key if isinstance(key, bytes) else _digest(key.encode("utf-8", "surrogateescape")) for key in keys
    ]


def read_keys(path: Path) -> list[str]:
    """Return the keys of a file, one a line; lines with # are comments. Raises InvalidInput."""
    try:
        lines = read_given(expanded(path), _MOST_BYTES).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or too large
        reason = getattr(error, "strerror", None) or error
        raise InvalidInput(f"cannot read the file of API keys {path}: {reason}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise InvalidInput(f"{path} has no API key", "write one a line")
    return keys


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bearer(header: str) -> str:
    scheme, _, key = header.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host(header: str) -> str:
    """Return the name in a Host header, without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0].lower() if ":" in header else header.lower()
