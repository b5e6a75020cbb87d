"""A replica: one model with the application that a server of its own has, called by fronts."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ray import serve

from specport.errors import SpecportError
from specport.serve.app import make_app
from specport.serve.metrics import PREFIX, ServerMetrics
from specport.serve.ray.calls import Call, Head, answered
from specport.serve.ray.prefixes import Recent, packed
from specport.serve.service import Service
from specport.serve.settings import Limits, Sampling

FAILED = "specport: "  # begins the line of an error that a user can fix
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """Hold what a replica serves. Plain data.

    model, options: the arguments of `specport.load`.
    name:    of the model for clients; None = its own.
    reports: names of blocks that a replica reports.
    loader:  "module:function", called in place of `specport.load`.
    """

    model: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None
    limits: Limits = Limits()  # noqa: RUF009
    sampling: Sampling = Sampling()  # noqa: RUF009
    metrics_prefix: str = PREFIX
    page: bool = True
    reports: int = 1024
    loader: str = "specport:load"


class Replica:
    """The deployment. Belongs to the event loop that Ray Serve runs it in."""

    async def __init__(self, served: Served) -> None:  # type: ignore[misc]
        self._names = Recent(served.reports)
        self._engine = serve.get_replica_context().replica_id.unique_id
        try:
            self._pipeline = await asyncio.to_thread(_load, served)
        except SpecportError as error:
            raise RuntimeError(f"{FAILED}{' '.join(str(error).split())}") from None
        self._name = served.name or self._pipeline.model_name
        metrics = ServerMetrics(self._name, served.metrics_prefix, self._engine)
        self._service = Service(self._pipeline, served.limits, metrics)
        self._app = make_app(self._service, self._name, sampling=served.sampling, page=served.page)
        await self._service.start()
        await self._service.ready()  # the first request does not wait for what is made at first use

    async def answer(self, call: Call) -> AsyncIterator[Head | bytes]:
        """Yield the reply to a request."""
        self._names.add(call.names)
        async for part in answered(self._app, call):
            yield part

    async def metrics(self) -> bytes:
        """Return this replica's metrics as Prometheus reads them."""
        return self._service.metrics.exposition()

    async def about(self) -> dict[str, Any]:
        """Return what a user wants to know: what is served and how."""
        pipeline = self._pipeline
        return {
            "name": self._name, "device": pipeline.device_name, "draft": pipeline.draft_name,
            "mode": pipeline.mode, "notes": [*pipeline.notes], "engine": self._engine, "pid": os.getpid(),
        }  # fmt: skip

    def record_routing_stats(self) -> dict[str, Any]:
        """Report which blocks were read last. Ray Serve hands this to the routers of all fronts."""
        return {"names": packed([*self._names])}

    async def __del__(self) -> None:
        """End in order. Ray Serve calls this once the running requests have ended, or their time is up."""
        if service := getattr(self, "_service", None):
            await service.stop()
            self._pipeline.close()


def _load(served: Served) -> Any:
    module, _, function = served.loader.partition(":")
    load = getattr(importlib.import_module(module), function)
    return load(served.model, progress=lambda what, share: None, **served.options)
