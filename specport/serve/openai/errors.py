"""Errors as OpenAI's API returns them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.responses import Response

from specport.errors import InvalidInput, PromptTooLong, UnusableTools

_T = TypeVar("_T")
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """An error that ends a request.

    param: the field that is wrong. code: OpenAI's name of the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else _TYPES.get(self.status, "invalid_request_error")
        return {
            "error": {"message": self.message, "type": kind, "param": self.param, "code": self.code},
        }


class JsonResponse(Response):
    """A reply in JSON. Lone surrogates, which a client may have sent, are written as escapes."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json_bytes(content)


def json_bytes(content: Any) -> bytes:
    """Return compact JSON in UTF-8."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def response(error: ApiError) -> JsonResponse:
    """Return the reply for an error."""
    return JsonResponse(error.body(), error.status, error.headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def not_supported(name: str, why: str = "is not supported") -> ApiError:
    """Return the error for a field that this server does not have."""
    return bad_request(f"{name} {why}", name, "unsupported_parameter")


def unavailable(why: str) -> ApiError:
    """Return the error for a server that takes no requests at present, as in "shutting down"."""
    return ApiError(503, f"the server is {why}", code="unavailable", headers={"retry-after": "2"})


def too_many(message: str, seconds: int, *, unread: bool = False) -> ApiError:
    """Return the error for one request too many.

    seconds: after which the client may try again. unread: the body was not read, so the connection ends.
    """
    headers = {"retry-after": str(seconds), **({"connection": "close"} if unread else {})}
    return ApiError(429, message, code="rate_limit_exceeded", headers=headers)


def busy(seconds: int) -> ApiError:
    """Return the error for a request that finds the queue full."""
    return too_many("too many requests wait; try again later", seconds)


def too_late() -> ApiError:
    """Return the error for a request whose time is up."""
    # The client would else send the same request again, which takes as long.
    return ApiError(
        408, "the request took too long", code="request_timeout", headers={"x-should-retry": "false"}
    )


def from_input(error: InvalidInput, param: str | None = None) -> ApiError:
    """Return the error for what the library refused. Its hints are for the command line.

    param: the field that is wrong, where the error does not say.
    """
    code = "context_length_exceeded" if isinstance(error, PromptTooLong) else None
    if isinstance(error, UnusableTools):
        param = "tools"
    return bad_request(error.message, param, code)


def naming(param: str, work: Callable[[], _T]) -> _T:
    """Return what `work` returns. Raises ApiError, which names the field, for what the library refuses."""
    try:
        return work()
    except InvalidInput as error:
        raise from_input(error, param) from error


def from_validation(error: ValidationError) -> ApiError:
    """Return the error for the first field that is wrong."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = _name(first["loc"])
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown field: {name}", name, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"{name} is missing", name, "missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return bad_request(f"{name}: {message}", name, "invalid_value")


def _name(place: tuple[int | str, ...]) -> str:
    """Return a place as in messages[0].content."""
    name = ""
    for part in place:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name
