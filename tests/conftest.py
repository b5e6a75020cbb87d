"""What every run of the tests says of itself."""

from __future__ import annotations

import gc
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from support.processes.forked_jobs import forked_jobs

from specport.runtime.devices.profiles import cpu_flags, cpu_name

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # the workers share the cores: torch's threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
SHORT = ("core", "models", "outside", "runtime", "text", "traffic")

# Tests import transformers themselves, and need no torchvision: one built for another torch would break them.
sys.modules.setdefault("torchvision", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-seconds", type=float, default=0.0, metavar="S",
        help="how long each test in tests/fuzz goes on with new inputs (default: a fixed few)",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """End the run where a worker crashes: by files, xdist 3.8 waits for ever after it has replaced one.

    And run the files in their own order. xdist begins with those that have the most tests; the few tests that
    take a minute or more came last, when one core had nothing left to do.
    """
    if getattr(config.option, "maxworkerrestart", "") is None:
        config.option.maxworkerrestart = "0"
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The processor, last of all: exactness and speed depend on it, and the end of a log is what is kept."""
    failed = Counter(
        report.nodeid.partition("::")[0]
        for kind in ("failed", "error")
        for report in terminalreporter.stats.get(kind, ())
    )
    for file, count in sorted(failed.items()):
        terminalreporter.write_line(f"{file}: {count} failed")
    instructions = ", ".join(sorted(cpu_flags())) or "instructions not known"
    terminalreporter.write_line(f"on {cpu_name()}, {os.cpu_count()} cores, {instructions}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run rooms of many short files last, so that all cores have something to do until the end."""
    items.sort(key=lambda item: any(item.path.is_relative_to(TESTS / room) for room in SHORT))


def pytest_collection_finish() -> None:
    freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    result = yield
    if nextitem is None or nextitem.path != item.path:
        freeze()
    return result


_frozen: set[str] = set()  # modules that were imported then


def freeze() -> None:
    """Let the garbage collector leave alone what was imported since the last time, for good.

    That is a million objects, and half a second each time that conversion collects.
    """
    if len(sys.modules.keys() - _frozen) > 200:
        gc.collect()
        gc.freeze()
        _frozen.update(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def _forked_jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start Python and its packages once for many jobs, where the system can fork."""
    base = tmp_path_factory.getbasetemp()
    started = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "started"
    started.mkdir(exist_ok=True)
    with forked_jobs(started) if sys.platform == "linux" else nullcontext():
        yield
