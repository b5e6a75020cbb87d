"""The pytest plugin of the suite: its options and its marker. What acts on them is in `session.py`.

Registered as a `pytest11` entry point, since a conftest.py is found too late for `--pyargs` to know the
options it adds. Every pytest run of an environment loads it, so it imports nothing and does nothing until
`--specport-device` is given.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("specport", "specport.conformance")
    group.addoption(
        "--specport-device", metavar="DEVICE", help="a name from `specport devices`, or a .toml file"
    )
    group.addoption("--specport-model", metavar="MODEL", help="as for specport run (default: a tiny model)")
    group.addoption(
        "--specport-tiny",
        metavar="KIND",
        default="llama",
        help="of the own model: llama, qwen3.5 or lfm2",
    )
    group.addoption(
        "--specport-draft", metavar="MODEL", help="default: the tiny model's own, or the model itself"
    )
    group.addoption(
        "--specport-xfail", metavar="FILE", help="expected failures: lines of `test_id  # reason`"
    )
    group.addoption("--specport-report", metavar="FILE", help="write the results as JSON")
    group.addoption(
        "--specport-skip-missing", action="store_true", help="skip where the device is not available"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "needs(capability, name=value): skipped on models whose capabilities lack one of these"
    )
    if config.getoption("--specport-device"):
        from specport.conformance.session import Conformance

        config.pluginmanager.register(Conformance.on(config), "specport-conformance-session")
