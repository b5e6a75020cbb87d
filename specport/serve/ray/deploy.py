"""Puts the server on a Ray cluster, replaces it there, and takes it off in order."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, HTTPOptions, RequestRouterConfig
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from specport.errors import ModelError
from specport.serve.app import open_paths
from specport.serve.ray.front import Front
from specport.serve.ray.replica import FAILED, Replica, Served
from specport.serve.ray.router import PrefixRouter
from specport.serve.settings import Limits

NAME = "specport"  # of the application on the cluster
TELLS = 30.0  # seconds between two notes on what a deployment waits for
REPORT_SECONDS = 5.0  # between two reports of a replica on what it has read
_REPORTED = 16384  # names of blocks in the reports of all replicas: they go to every front
_REPLICAS_OF_A_FRONT = 16
_ANSWERS = 30.0  # seconds for a front to say something of itself
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Replicas:
    """Hold how many replicas there are, and what each of them gets.

    least, most: replicas; in between, their number follows the load.
    cores:       processor cores of each.
    target:      requests of each that the number of replicas is chosen for.
    """

    least: int
    most: int
    cores: float
    target: float

    @property
    def fronts(self) -> int:
        return math.ceil(self.most / _REPLICAS_OF_A_FRONT)

    @property
    def reports(self) -> int:
        """Return how many names of blocks a replica reports."""
        return max(64, min(1024, _REPORTED // self.most))


def is_running() -> bool:
    """Return whether the cluster has the application."""
    return NAME in serve.status().applications


def has_keys() -> bool:
    """Return whether clients of the application that runs need a key."""
    handle = serve.get_deployment_handle(Front.__name__, NAME)
    return bool(handle.has_keys.remote().result(timeout_s=_ANSWERS))


def start(host: str, port: int) -> None:
    """Start Ray Serve on the cluster. Where it runs already, its address stays."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=HTTPOptions(host=host, port=port), logging_config={"enable_access_log": False})


def deploy(
    served: Served,
    replicas: Replicas,
    tell: Tell,
    *,
    keys: Sequence[bytes] = (),
    hosts: Collection[str] | None = None,
) -> dict[str, Any]:
    """Run the server on the cluster until it is ready. One that runs there is replaced.

    keys: digests, see `Guard`. They stay on the cluster.

    New replicas start before old ones end, and these finish their requests. Returns what a replica says of
    itself. Raises ModelError where no replica can start; one that was there before then goes on.
    """
    target = serve.RunTarget(_application(served, replicas, keys, hosts), NAME, "/")
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    _wait(tell)
    about: dict[str, Any] = serve.get_deployment_handle(Replica.__name__, NAME).about.remote().result()
    return about


def drain(seconds: float) -> None:
    """Let the fronts finish what runs, while new requests are refused."""
    with suppress(Exception):  # the cluster may be gone
        serve.get_deployment_handle(Front.__name__, NAME).broadcast("drain").results(
            timeout_s=seconds + 5, return_exceptions=True
        )


def remove(*, wait: bool = True) -> None:
    """Take the application off the cluster. wait: until its running requests have ended."""
    with suppress(Exception):  # the cluster may be gone
        serve.delete(NAME, _blocking=wait)


def _application(
    served: Served, replicas: Replicas, keys: Sequence[bytes], hosts: Collection[str] | None
) -> serve.Application:
    limits: Limits = served.limits
    ends = {"graceful_shutdown_timeout_s": limits.shutdown_seconds + 5, "graceful_shutdown_wait_loop_s": 0.5}
    model = serve.deployment(
        Replica,
        ray_actor_options={"num_cpus": replicas.cores},
        autoscaling_config=AutoscalingConfig(
            min_replicas=replicas.least, max_replicas=replicas.most, initial_replicas=replicas.least,
            target_ongoing_requests=replicas.target,
        ),
        max_ongoing_requests=limits.max_running,
        max_queued_requests=limits.max_queue,
        max_surge_percent=100,
        max_constructor_retry_count=1,
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter,
            request_router_kwargs={"full": limits.max_running},
            request_routing_stats_period_s=REPORT_SECONDS,
        ),
        **ends,
    ).bind(served)  # fmt: skip
    front = serve.deployment(
        serve.ingress()(Front),
        num_replicas=replicas.fronts,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=limits.max_connections,
        max_surge_percent=100,
        **ends,
    )
    return front.bind(model, limits, keys, hosts, open_paths(page=served.page))


def _wait(tell: Tell) -> None:
    """Wait until all of the application runs. Raises ModelError."""
    told = time.monotonic()
    while True:
        app = serve.status().applications.get(NAME)
        if app is not None and app.status == ApplicationStatus.RUNNING:
            return
        if app is not None and app.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise ModelError(f"no replica can start: {_reason(app)}")
        if time.monotonic() - told > TELLS:
            told = time.monotonic()
            tell(_waits(app))
        time.sleep(0.2)


def _waits(app: ApplicationStatusOverview | None) -> str:
    """Return what a deployment is waiting for."""
    found = app.deployments.get(Replica.__name__) if app is not None else None
    if found is None:
        return "waiting for Ray Serve"
    states = ", ".join(f"{count} {state.lower()}" for state, count in found.replica_states.items())
    return f"waiting for replicas: {states or 'none has begun'}; each needs its cores free (ray status)"


def _reason(app: ApplicationStatusOverview) -> str:
    """Return the error that a user can fix, or the last line of the trace."""
    text = "\n".join([app.message, *(each.message for each in app.deployments.values())])
    if found := re.search(rf"{FAILED}(.*)", text):
        return found[1].strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "see the logs of Ray Serve"
