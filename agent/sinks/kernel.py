"""Keeps the kernel's routes as wanted, and touches no route that is not ours."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from agent.keep import Report
from agent.netlink.rtnetlink import KernelRoute, hop_order
from agent.netlink.sockets import Failure, RouteWriter, dump_routes
from agent.sinks.hearing import Account, Hearing
from agent.sinks.monitor import RouteMonitor
from agent.sinks.ownership import Mark, Sweep, ours
from agent.sinks.programming import Outcome, Turn
from felix_like.model.address import Address
from felix_like.model.desired import PROTO_BGP, PROTO_BIRD, Route, RouteKey

log = logging.getLogger(__name__)

_T = TypeVar("_T")

READ_BACK_EVERY: Final = 90.0
"""Seconds between read-backs while something is in trouble and `keep` therefore does not call `start`."""
LOGGED: Final = 5
"""Refused routes logged one by one per turn: a link that goes down may take 100,000 along."""
LEFTOVER: Final = "where BIRD no longer runs, 'tortiectl node leftovers' says what to do"
ROUNDS: Final = 4
"""Turns at most in one `apply`: a clash that is looked up needs a second one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStatus:
    """What an operator may want to know. Reasons are sentences."""

    wanted: int
    installed: int
    failed: tuple[tuple[RouteKey, str], ...]
    conflicts: tuple[tuple[RouteKey, str], ...]
    shadowed: tuple[tuple[RouteKey, str], ...] = ()
    """Wanted routes that packets do not follow: BIRD left one with a lower metric."""
    inherited: int
    """Routes of an earlier life that nobody wants yet and that may not go yet."""
    repaired: int
    """Routes put back since the start, after another program or a lost link took them."""
    messages: int
    """Route messages written since the start; 0 after a restart when nothing differed."""


class KernelSink:
    """The wanted route table and what the kernel made of it. Belongs to one event loop; fits `keep`.

    `monitor` is shared and started here. `mark`: the tables and the metric of our routes; others are foreign.
    """

    name = "kernel routes"

    def __init__(
        self,
        monitor: RouteMonitor,
        *,
        clock: Callable[[], float] = time.monotonic,
        mark: Mark = Mark(),  # noqa: B008 - a frozen value
    ) -> None:
        self.wake = asyncio.Event()
        self._monitor = monitor
        self._clock = clock
        self._mark = mark
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel-routes")
        self._writer: RouteWriter | None = None
        self._subscribed = False
        self._account = account = Account()
        self._wanted, self._ledger, self._troubles = account.wanted, account.ledger, account.troubles
        self._hearing = Hearing(account, self.wake, clock, mark)
        self._read_at = 0.0
        self._repaired = 0
        self._messages = 0

    # What the agent asks for

    def want(self, changes: Mapping[RouteKey, Route | None]) -> None:
        """Merge changes into the wanted table, the newest wins; None: not wanted any more.

        Raises ValueError for a key that we would not know again as ours (see `Mark`).
        """
        wanted, inherited, dirty = self._wanted, self._ledger.inherited, self._account.dirty
        interfaces = self._account.interfaces
        for key, route in changes.items():
            if route is None:
                self._unwant(key)
                continue
            if key.priority != self._mark.metric or key.table not in self._mark.tables:
                raise ValueError(f"route {key} does not carry this agent's mark {self._mark}")
            if len(route.next_hops) > 1:
                hops = tuple(sorted(route.next_hops, key=hop_order))
                if hops != route.next_hops:
                    route = Route(key, route.kind, route.protocol, hops)
            wanted[key] = route
            interfaces.update(hop.ifindex for hop in route.next_hops)
            inherited.discard(key)
            dirty.add(key)
        if dirty:
            self.wake.set()

    def _unwant(self, key: RouteKey) -> None:
        account = self._account
        route = account.wanted.pop(key, None)
        account.repairing.discard(key)
        if route is None:
            return
        if key in account.troubles.by_key:
            account.troubles.clear(key)
            if key.prefix.version == 6:
                # Ours may hide as a further next hop in a foreign route; an exact delete hits nothing else.
                account.ledger.extras.setdefault(key, []).append(route)
        account.dirty.add(key)

    def allow_sweep(
        self, authoritative: bool, awaiting: frozenset[Address], peers: frozenset[Address]
    ) -> None:
        """Say what is known by now, so that inherited routes that nobody wants may go (see `Sweep`)."""
        self._account.sweep = Sweep(authoritative, awaiting, peers)
        self._hearing.release()

    # What `keep` calls

    async def start(self) -> None:
        """Open the sockets where needed and read our routes back. Raises OSError."""
        self._monitor.start()  # before the dump: what happens meanwhile must not be missed
        if not self._subscribed:
            self._monitor.subscribe(self._hearing.heard)
            self._subscribed = True
        if self._writer is None:
            self._writer = RouteWriter()
            self._monitor.ignore({self._writer.port})
        await self._read_back()

    async def apply(self) -> Report:
        """Write what differs. Raises OSError when the kernel's answers are lost: `start` again."""
        account, hearing = self._account, self._hearing
        if hearing.stale or self._clock() - self._read_at > READ_BACK_EVERY:
            await self._read_back()
        account.dirty.update(self._troubles.take_due(self._clock()))
        for _ in range(ROUNDS):
            if not account.dirty and not hearing.suspects:
                break
            await self._turn()
        return Report(1.0 if account.dirty or hearing.suspects else self._troubles.wait(self._clock()))

    def close(self) -> None:
        """Close the sockets; the routes stay. The monitor is the caller's."""
        self._hearing.close()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # What the status asks

    def status(self) -> KernelStatus:
        have = self._ledger.have
        return KernelStatus(
            wanted=len(self._wanted),
            # Mostly the very same object; comparing 100,000 routes field by field takes 40 ms.
            installed=sum(
                (held := have.get(key)) is route or held == route for key, route in self._wanted.items()
            ),
            failed=tuple(self._troubles.listed("failed")),
            conflicts=tuple(self._troubles.listed("conflict", "fight")),
            shadowed=tuple(self._shadowed()),
            inherited=len(self._ledger.inherited),
            repaired=self._repaired,
            messages=self._messages,
        )

    def _shadowed(self) -> Iterator[tuple[RouteKey, str]]:
        for key, route in self._account.birds.items():
            mine = RouteKey(key.prefix, self._mark.metric, key.table)
            if key.priority < mine.priority and mine in self._wanted:
                yield mine, f"packets follow a route of BIRD's ({route}, metric {key.priority}); {LEFTOVER}"

    @property
    def wanted(self) -> Mapping[RouteKey, Route]:
        return self._wanted

    def installed(self, key: RouteKey) -> Route | None:
        """The route of ours that the kernel has under this key."""
        return self._ledger.have.get(key)

    def state(self, key: RouteKey) -> str:
        """`installed`, `failed: why`, `waiting` or `not wanted`."""
        route = self._wanted.get(key)
        if route is None:
            return "not wanted"
        if (trouble := self._troubles.by_key.get(key)) is not None:
            return f"failed: {trouble.reason}"
        return "installed" if self._ledger.have.get(key) == route else "waiting"

    # Reading and writing

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _read_back(self) -> None:
        account, hearing = self._account, self._hearing
        hearing.begin_reading()
        known = self._ledger.have
        before = len(known)
        try:
            routes = await self._run(lambda: dump_ours(self._mark))
            birds = await self._run(lambda: dump_birds(self._mark))
        except BaseException:
            hearing.stale = True
            raise
        differing = self._ledger.read_back(routes, self._wanted, account.dirty | self._troubles.by_key.keys())
        account.repairing.update(key for key in differing if key in known and key in self._wanted)
        account.dirty |= differing
        hearing.read_birds(birds)
        hearing.distrust()
        account.interfaces = {hop.ifindex for route in self._wanted.values() for hop in route.next_hops}
        self._read_at = self._clock()
        self._troubles.forget_old(self._read_at)
        hearing.release()
        log.debug(
            "%s: %d read back, %d before, %d differ",
            self.name,
            len(self._ledger.have),
            before,
            len(differing),
        )

    def _send(self, octets: bytes, count: int) -> asyncio.Future[list[Failure]]:
        assert self._writer is not None
        return asyncio.get_running_loop().run_in_executor(self._thread, self._writer.send, octets, count)

    async def _turn(self) -> None:
        account, hearing = self._account, self._hearing
        dirty, account.dirty = account.dirty, set()
        suspects = hearing.begin_writing()
        turn = Turn(self._ledger, self._wanted, self._send)
        try:
            outcome = await turn.run(dirty)
        except OSError:
            account.dirty |= dirty
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            raise
        finally:
            self._messages += turn.outcome.messages
        self._learn(outcome)
        if lookups := outcome.clashes | (suspects & self._wanted.keys()):
            holders = await self._run(lambda: find_holders(lookups))
            for key in lookups - hearing.touched:
                self._judge(key, holders.get(key, []))
        hearing.distrust()

    def _learn(self, outcome: Outcome) -> None:
        now = self._clock()
        repairing = self._account.repairing
        if self._troubles.by_key:
            for key in (outcome.put | outcome.dropped) - outcome.shared:
                self._troubles.clear(key)
        if repairing:
            self._repaired += len(repairing & outcome.put)
            repairing -= outcome.put
        news: list[tuple[RouteKey, str]] = []
        for key, reason in outcome.failed.items():
            if key not in self._wanted and key not in self._ledger.have:
                continue  # no longer wanted by the time it failed
            if self._troubles.failed(key, f"the kernel says: {reason}", now):
                news.append((key, reason))
        for key, reason in news[:LOGGED]:
            log.warning("route %s: the kernel refused it: %s", key.prefix, reason)
        if len(news) > LOGGED:
            log.warning("the kernel refused %d more routes; the status names them all", len(news) - LOGGED)
        for key in outcome.shared:
            self._troubles.conflict(
                key, "another program added a next hop to this route: remove it there", now
            )

    def _judge(self, key: RouteKey, holders: Sequence[KernelRoute]) -> None:
        """Somebody holds a key that we want: is it us, or who?"""
        now, wanted, dirty = self._clock(), self._wanted.get(key), self._account.dirty
        mine = [route for holder in holders if (route := ours(holder, self._mark)) is not None]
        foreign = [holder for holder in holders if ours(holder, self._mark) is None]
        if mine:
            best = wanted if wanted in mine else mine[0]
            assert best is not None
            self._ledger.found(best, self._wanted)
            if others := [route for route in mine if route != best]:
                self._ledger.extras[key] = others
            if others or best != wanted:
                dirty.add(key)
        elif not foreign:
            dirty.add(key)  # gone in the meantime
        if foreign and wanted is not None:
            what_to_do = "remove it or give it another metric"
            if foreign[0].protocol == PROTO_BIRD:
                what_to_do = LEFTOVER
            reason = (
                f"a foreign route ({foreign[0]}) has the same prefix and metric {key.priority}: {what_to_do}"
            )
            if self._troubles.conflict(key, reason, now):
                log.warning("route %s: %s", key.prefix, reason)
        elif mine and mine == [wanted]:
            self._troubles.clear(key)


def dump_ours(mark: Mark = Mark()) -> list[Route]:  # noqa: B008 - a frozen value
    """Our routes of both families, filtered by the kernel as far as it can."""
    return [
        route
        for family in (socket.AF_INET, socket.AF_INET6)
        for seen in dump_routes(family, PROTO_BGP)
        if (route := ours(seen, mark)) is not None
    ]


def dump_birds(mark: Mark) -> dict[RouteKey, KernelRoute]:
    """BIRD's routes in our tables, both families."""
    return {
        route.key: route
        for family in (socket.AF_INET, socket.AF_INET6)
        for route in dump_routes(family, PROTO_BIRD)
        if route.plain and route.key.table in mark.tables
    }


def find_holders(keys: Iterable[RouteKey]) -> dict[RouteKey, list[KernelRoute]]:
    """Everybody's routes under these keys, in the kernel's order."""
    asked = set(keys)
    holders: dict[RouteKey, list[KernelRoute]] = {}
    for version, table in sorted({(key.prefix.version, key.table) for key in asked}):
        for route in dump_routes(socket.AF_INET if version == 4 else socket.AF_INET6, table=table):
            if route.plain and route.key in asked:
                holders.setdefault(route.key, []).append(route)
    return holders
