"""Admission: how many sequences run, who waits, and whose turn is next.

Clients take turns, so that one that sends many requests does not keep the others waiting. Requests of one
client keep their order. A request whose sequences do not all fit waits, and nobody overtakes it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque


class QueueFull(Exception):
    """No more sequences may wait."""


class Ticket:
    """A request's place: wait for `admitted`, give back each sequence with `Admission.leave`."""

    def __init__(self, client: str, count: int) -> None:
        self.client, self.count = client, count
        self.admitted = asyncio.Event()


class Admission:
    """Admit sequences. Belongs to one event loop.

    max_running: sequences that run at once. max_queue: sequences that may wait.
    """

    def __init__(self, max_running: int, max_queue: int) -> None:
        self.max_running, self.max_queue = max_running, max_queue
        self.num_running = self.num_waiting = 0
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()  # the next client's turn first

    def enter(self, client: str, count: int) -> Ticket:
        """Return a ticket for a request of `count` sequences, at most `max_running`. Raises QueueFull."""
        ticket = Ticket(client, count)
        at_once = not self._queues and self.num_running + count <= self.max_running
        if not at_once and self.num_waiting + count > self.max_queue:
            raise QueueFull
        self._queues.setdefault(client, deque()).append(ticket)
        self.num_waiting += count
        self._admit()
        return ticket

    def withdraw(self, ticket: Ticket) -> None:
        """Give up a ticket that was not admitted."""
        queue = self._queues.get(ticket.client)
        if queue is not None and ticket in queue:
            queue.remove(ticket)
            self.num_waiting -= ticket.count
            if not queue:
                del self._queues[ticket.client]
            self._admit()

    def leave(self, count: int = 1) -> None:
        """Say that sequences have ended."""
        self.num_running -= count
        self._admit()

    def _admit(self) -> None:
        while self._queues:
            client, queue = next(iter(self._queues.items()))
            ticket = queue[0]
            if self.num_running + ticket.count > self.max_running:
                return
            queue.popleft()
            self.num_waiting -= ticket.count
            self.num_running += ticket.count
            ticket.admitted.set()
            if queue:
                self._queues.move_to_end(client)
            else:
                del self._queues[client]
