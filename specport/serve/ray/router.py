"""Ray Serve's router of requests to replicas, by what these have read and how much they have to do.

Each process that calls replicas has one. What it routes itself it knows at once; what others route, it learns
from the replicas' reports.
"""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from specport.serve.ray.calls import Call
from specport.serve.ray.prefixes import PrefixIndex, ranked, unpacked


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """Choose the replica that has least to do for a prompt."""

    def initialize_state(self, full: int = 1, **_: Any) -> None:
        """Called by Ray Serve with the router's options. full: requests that a replica runs at once."""
        self._full = full
        self._index = PrefixIndex()
        self._reports: dict[str, bytes] = {}
        self._draw = random.Random()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas in the order in which they should be asked."""
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True  # once all have been asked
        names = _names(pending_request)
        queues = {
            each.replica_id: self.replica_queue_len_cache.get(each.replica_id) for each in candidate_replicas
        }
        unknown = [each for each in candidate_replicas if queues[each.replica_id] is None]
        if unknown:
            queues.update(
                {each.replica_id: length for each, length in await self._probe_queue_lens(unknown, 0)}
            )
        by_id = {each.replica_id.unique_id: each for each in candidate_replicas}
        known = {replica_id.unique_id: length for replica_id, length in queues.items() if length is not None}
        silent = [[each] for name, each in by_id.items() if name not in known]
        order = ranked(len(names), self._index.matched(names), known, self._full, self._draw)
        return [*([by_id[name]] for name in order if name in by_id), *silent]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Remember what the replica is going to read. Called by Ray Serve once it has taken the request."""
        self._index.add(_names(pending_request), replica_id.unique_id)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Learn who is there and what they report. Called by Ray Serve."""
        super().update_replicas(replicas)
        there = {each.replica_id.unique_id: each.routing_stats.get("names", b"") for each in replicas}
        if gone := {*self._reports} - {*there}:
            self._index.forget(gone)
        for name, report in there.items():
            if report != self._reports.get(name):
                self._index.add(unpacked(report)[::-1], name)
        self._reports = there

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica. Called by Ray Serve when a call finds it dead."""
        super().on_replica_actor_died(replica_id)
        self._index.forget({replica_id.unique_id})
        self._reports.pop(replica_id.unique_id, None)


def _names(pending: PendingRequest | None) -> tuple[bytes, ...]:
    call = pending.args[0] if pending is not None and pending.args else None
    return call.names if isinstance(call, Call) else ()
