"""One turn of kernel programming: puts, then what they replace, then drops, in pipelined batches.

While one batch is in the kernel (worker thread, outside the interpreter's lock) the next one is compared and
packed, so that two cores share the work and the event loop gets its turn between batches.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, NamedTuple

from agent.netlink.rtnetlink import APPEND, CREATE, DELETE, Operation
from agent.netlink.sockets import BATCH, Failure, batch
from agent.sinks.ownership import Ledger, rewrite
from felix_like.delta import delta
from felix_like.model.desired import Route, RouteKey

Send = Callable[[bytes, int], Awaitable[list[Failure]]]
"""Hands packed messages and their count to the kernel; a callable that starts at once."""


class Job(NamedTuple):
    """One message and what it means for the ledger."""

    purpose: Literal["create", "append", "trim", "clear", "drop", "extra"]
    message: Route
    wanted: Route | None
    """What the key has once all is done; None: nothing."""

    @property
    def operation(self) -> Operation:
        return _OPERATIONS[self.purpose]


_OPERATIONS = {
    "create": CREATE,
    "append": APPEND,
    "trim": DELETE,
    "clear": DELETE,
    "drop": DELETE,
    "extra": DELETE,
}


@dataclass(slots=True)
class Outcome:
    """What a turn achieved. `clashes`: somebody holds the key; who, has to be looked up."""

    put: set[RouteKey] = field(default_factory=set)
    dropped: set[RouteKey] = field(default_factory=set)
    failed: dict[RouteKey, str] = field(default_factory=dict)
    clashes: set[RouteKey] = field(default_factory=set)
    shared: set[RouteKey] = field(default_factory=set)
    """IPv6: our route carries a next hop that is not ours and that we therefore leave."""
    messages: int = 0


class Turn:
    """Makes the kernel as wanted for the dirty keys, and the ledger with it. Use once."""

    def __init__(self, ledger: Ledger, wanted: Mapping[RouteKey, Route], send: Send) -> None:
        self._ledger = ledger
        self._wanted = wanted
        self._send = send
        self._changes: dict[RouteKey, tuple[Route, Route | None]] = {}
        """Key -> the new route, and what of the old one has to go after it."""
        self._collisions: list[tuple[Route, Route]] = []
        self._drops: list[RouteKey] = []
        self._doubled: set[RouteKey] = set()
        """IPv4 keys with two routes of ours: a delete takes the first that fits, so look what is left."""
        self.outcome = Outcome()

    async def run(self, dirty: Collection[RouteKey]) -> Outcome:
        """Raises OSError when an answer of the kernel is lost: then only a read-back tells the truth."""
        await self._push(self._puts(dirty))
        await self._push(_slices(Job("clear", old, new) for old, new in self._collisions))
        await self._push(
            _slices(
                Job("create", new, new) for _, new in self._collisions if new.key not in self._ledger.have
            )
        )
        await self._push(_slices(self._trims()))
        have = self._ledger.have
        await self._push(_slices(Job("drop", have[key], None) for key in self._drops if key in have))
        await self._push(_slices(self._extras()))
        self.outcome.clashes |= self._doubled
        return self.outcome

    def _puts(self, dirty: Collection[RouteKey]) -> Iterator[list[Job]]:
        keys = iter(dirty)
        ledger, inherited = self._ledger, self._ledger.inherited
        while chunk := list(islice(keys, BATCH)):
            change = delta(ledger.have, self._wanted, among=chunk)
            self._drops += (key for key in change.drop if key not in inherited)
            jobs = []
            for key, new in change.put.items():
                old = ledger.have.get(key)
                if old is None:
                    jobs.append(Job("create", new, new))
                    continue
                step = rewrite(old, new)
                if step.remove_first:
                    self._collisions.append((old, new))
                elif step.add is not None:
                    self._changes[key] = (new, step.remove)
                    jobs.append(Job("append", step.add, new))
                else:
                    self._changes[key] = (new, step.remove)
            if jobs:
                yield jobs

    def _trims(self) -> Iterator[Job]:
        for key, (new, remove) in self._changes.items():
            if key in self.outcome.failed or key in self.outcome.clashes:
                continue
            if remove is None:
                self._installed(key, new)
            else:
                yield Job("trim", remove, new)

    def _extras(self) -> Iterator[Job]:
        ledger = self._ledger
        for key, routes in list(ledger.extras.items()):
            held = ledger.have.get(key)
            if held is not None and held != self._wanted.get(key):
                continue
            del ledger.extras[key]
            if held is not None and key.prefix.version == 4:
                self._doubled.add(key)
            for route in routes:
                remove = route if held is None else rewrite(route, held).remove
                if remove is not None and route != held:
                    yield Job("extra", remove, None)

    async def _push(self, slices: Iterable[Sequence[Job]]) -> None:
        pending: tuple[asyncio.Future[list[Failure]], Sequence[Job]] | None = None
        try:
            for jobs in slices:
                requests = [(_OPERATIONS[job.purpose], job.message) for job in jobs]
                start = 0
                while start < len(jobs):
                    octets, count = batch(requests, start)
                    sending = asyncio.ensure_future(self._send(octets, count))
                    earlier, pending = pending, (sending, jobs[start : start + count])
                    start += count
                    self.outcome.messages += count
                    if earlier is not None:
                        self._settle(earlier[1], await earlier[0])
        finally:
            if pending is not None:
                self._settle(pending[1], await pending[0])

    def _settle(self, jobs: Sequence[Job], failures: Iterable[Failure]) -> None:
        refused = {failure.position: failure for failure in failures}
        for index, job in enumerate(jobs):
            failure = refused.get(index)
            if failure is None:
                self._done(job)
            else:
                self._refused(job, failure)

    def _installed(self, key: RouteKey, route: Route) -> None:
        self._ledger.have[key] = route
        self.outcome.put.add(key)

    def _done(self, job: Job) -> None:
        key = job.message.key
        if job.purpose == "create" or job.purpose == "trim":
            assert job.wanted is not None
            self._installed(key, job.wanted)
        elif job.purpose == "drop" or job.purpose == "clear":
            self._ledger.have.pop(key, None)
            if job.purpose == "drop":
                self.outcome.dropped.add(key)

    def _refused(self, job: Job, failure: Failure) -> None:
        key, purpose = job.message.key, job.purpose
        is_ipv4 = len(key.prefix.network) == 4
        gone = failure.errno == errno.ESRCH and purpose in ("trim", "clear", "drop", "extra")
        if gone and purpose == "trim" and not is_ipv4:
            self._done(job)
            self.outcome.shared.add(key)
        elif gone:
            self._done(job)
        elif purpose == "extra":
            pass  # a read-back finds it again
        elif failure.errno == errno.EEXIST and purpose == "append" and is_ipv4:
            self._doubled.add(key)  # the very route is there already: the trim makes it the first
        elif failure.errno == errno.EEXIST:
            self.outcome.clashes.add(key)
        else:
            self.outcome.failed[key] = failure.reason


def _slices(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    steady = iter(jobs)
    while chunk := list(islice(steady, BATCH)):
        yield chunk
