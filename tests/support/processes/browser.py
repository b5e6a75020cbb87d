"""A browser for tests of pages: a Chromium of this machine, driven by playwright."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "msedge")


def executable() -> str | None:
    """Return the path of a Chromium that runs; None where there is none."""
    for name in NAMES:
        path = shutil.which(name)
        # Ubuntu has a command of this name that only says how to install a browser.
        if path and _says_its_version(path):
            return path
    return None


def _says_its_version(path: str) -> bool:
    told = subprocess.run([path, "--version"], check=False, capture_output=True, timeout=60)
    return not told.returncode


@contextmanager
def browsing() -> Iterator[Any]:
    """Start a browser; skip the test where there is none. Not beside `asyncio.run` in the same thread."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = executable()
    if path is None:
        pytest.skip(f"no browser on the path ({', '.join(NAMES)})")
    with sync_api.sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, nor in most containers.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield found
        finally:
            found.close()


class Visit:
    """A page that was opened, with what it asked for and complained about.

    requests: addresses. faults: errors and warnings of its console, and exceptions of its scripts.
    """

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.page.set_default_timeout(30_000)
        self.url, self.requests, self.faults = url, [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._console)
        self.page.goto(f"{url}/")

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def send(self, text: str) -> None:
        """Write a message, and wait for the end of its answer."""
        self.page.get_by_label("Message").fill(text)
        self.page.keyboard.press("Enter")
        self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        self.page.wait_for_selector("body:not(.busy)")

    def close(self) -> None:
        """Check that it asked only its own server, and close it."""
        self.page.close()
        assert self.faults == []
        assert all(each.startswith(f"{self.url}/") for each in self.requests), self.requests
