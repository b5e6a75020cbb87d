"""One Ray cluster for all tests that need one: on this machine, with room for eight processes of one core."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """The address of the cluster, whose processes find the tests' toys."""
    pytest.importorskip("ray", reason="needs the extra ray")
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {
        "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 8, "include_dashboard": False})
        try:
            yield str(started.address)
        finally:
            started.shutdown()
