"""Connects this process with a Ray cluster: one that runs, or one of its own that ends with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from specport.errors import DeviceError, InvalidInput

WINDOWS = os.name == "nt"
INSTALL = "pip install 'specport[ray]'"
THIS_MACHINE = ""  # the address of a cluster that is started for this process alone


@dataclass(frozen=True)
class Cluster:
    """What a connection led to.

    own:     whether the cluster was started for this process, and ends with it.
    address: host:port, for other processes.
    nodes:   the processor cores of each machine that takes work.
    """

    own: bool
    address: str
    nodes: tuple[int, ...]

    def check(self, cores: int, option: str) -> None:
        """Raise InvalidInput where no machine has so many cores: work would wait for ever."""
        if cores > max(self.nodes, default=0):
            raise InvalidInput(
                f"no machine of the Ray cluster has {cores} cores", f"choose fewer with {option}"
            )


def check() -> None:
    """Raise InvalidInput where Ray cannot be used, which takes no time to say."""
    if WINDOWS:
        raise InvalidInput(
            "Ray on Windows is in beta, and specport does not use it there", "use Linux, macOS or WSL 2"
        )
    if find_spec("ray") is None:
        raise InvalidInput("Ray is not installed", INSTALL)


@contextmanager
def connected(address: str = THIS_MACHINE, cores: int | None = None) -> Iterator[Cluster]:
    """Connect with a cluster until the end of the block.

    address: host:port of a cluster that runs, "auto" = the one that runs on this machine.
    cores:   that a cluster of its own says to have (default: this machine's).
    Raises InvalidInput and DeviceError.
    """
    check()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody unless asked for
    import ray

    own = address == THIS_MACHINE
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if own:
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = "on this machine" if own or address == "auto" else f"at {address}"
        raise DeviceError(f"cannot use a Ray cluster {where}: {reason}", "ray status") from error
    try:
        nodes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        yield Cluster(own, ray.get_runtime_context().gcs_address, tuple(int(each) for each in nodes if each))
    finally:
        ray.shutdown()
