"""Read a request's JSON from a client that is not trusted: bounded in size, time and depth."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import Request

from specport.serve.openai.errors import ApiError, bad_request, too_many


class BodyReader:
    """Read the bodies of requests. Belongs to one event loop.

    most, most_together: bytes of one body, and of all that are being read. seconds: for a client to send it.
    """

    def __init__(self, most: int, most_together: int, seconds: float) -> None:
        self._most, self._most_together, self._seconds = most, most_together, seconds
        self._held = 0

    async def read(self, request: Request) -> bytes:
        """Return the body of a request. Raises ApiError."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a form could come from any page that the user's browser shows
            raise ApiError(415, "the body must be JSON, with the header Content-Type: application/json")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._most:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._all(request), self._seconds)
        except asyncio.TimeoutError:
            raise ApiError(
                408, f"the request did not arrive within {self._seconds:g} s", headers={"connection": "close"}
            ) from None

    async def _all(self, request: Request) -> bytes:
        parts, size = [], 0
        try:
            async for part in request.stream():
                size += len(part)
                self._held += len(part)
                if size > self._most:
                    raise self._too_large()
                if self._held > self._most_together:
                    raise too_many("too many large requests at once", 1, unread=True)
                parts.append(part)
        finally:
            self._held -= size
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        # Closed: the rest of the body would be read as the next request.
        return ApiError(
            413, f"the request is larger than {self._most} bytes", headers={"connection": "close"}
        )


def parse(data: bytes, max_depth: int) -> dict[str, Any]:
    """Return the object that a body holds. Raises ApiError where it is no plain JSON object."""
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_refuse)
    except UnicodeDecodeError:
        raise bad_request("the body is not UTF-8") from None
    except RecursionError:
        raise bad_request("the JSON of the body is nested too deeply") from None
    except ValueError as error:  # not JSON, or a number of thousands of digits
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise bad_request("the body must be a JSON object")
    if _deeper(found, max_depth):
        raise bad_request(f"the JSON of the body is nested more than {max_depth} levels deep")
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _deeper(value: Any, depth: int) -> bool:
    """Return whether a value is nested deeper than this. Goes down level by level, without recursion."""
    level = [value]
    while level:
        if depth <= 0:
            return True
        depth -= 1
        level = [
            inner
            for each in level
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, (dict, list))
        ]
    return False
