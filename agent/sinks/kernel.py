"""Keeps the kernel's routes as wanted, and touches no route that is not ours."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

from agent.keep import Report
from agent.sinks.monitor import RouteMonitor
from agent.sinks.netlink import Failure, RouteWriter, dump_routes
from agent.sinks.ownership import OURS, Ledger, Sweep, ours
from agent.sinks.programming import Outcome, Turn
from agent.sinks.rtlink import AddressSeen, Event, LinkSeen, Overrun, RouteSeen
from agent.sinks.rtnetlink import KernelRoute, hop_order
from agent.sinks.trouble import Troubles
from felix_like.model.address import Address
from felix_like.model.desired import MAIN_TABLE, Route, RouteKey

log = logging.getLogger(__name__)

_T = TypeVar("_T")

REPAIR_DELAY: Final = 0.15
"""Seconds that others' changes are collected before they are undone: `ip route flush` goes in rounds."""
LINK_DELAY: Final = 0.3
"""Seconds after a link or address event before the tables are read back."""
READ_BACK_EVERY: Final = 90.0
"""Seconds between read-backs while something is in trouble and `keep` therefore does not call `start`."""
ROUNDS: Final = 4
"""Turns at most in one `apply`: a clash that is looked up needs a second one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStatus:
    """What an operator may want to know. Reasons are sentences."""

    wanted: int
    installed: int
    failed: tuple[tuple[RouteKey, str], ...]
    conflicts: tuple[tuple[RouteKey, str], ...]
    inherited: int
    """Routes of an earlier life that nobody wants yet and that may not go yet."""
    repaired: int
    """Routes put back since the start, after another program or a lost link took them."""
    messages: int
    """Route messages written since the start; 0 after a restart when nothing differed."""


class KernelSink:
    """The wanted route table and what the kernel made of it. Belongs to one event loop; fits `keep`.

    `monitor` is shared and started here. `tables`: the only routing tables that are looked at.
    """

    name = "kernel routes"

    def __init__(
        self,
        monitor: RouteMonitor,
        *,
        clock: Callable[[], float] = time.monotonic,
        tables: Collection[int] = (MAIN_TABLE,),
    ) -> None:
        self.wake = asyncio.Event()
        self._monitor = monitor
        self._clock = clock
        self._tables = frozenset(tables)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kernel-routes")
        self._writer: RouteWriter | None = None
        self._subscribed = False
        self._wanted: dict[RouteKey, Route] = {}
        self._ledger = Ledger()
        self._troubles = Troubles()
        self._sweep = Sweep()
        self._dirty: set[RouteKey] = set()
        self._disturbed: set[RouteKey] = set()
        """Keys that another program changed; they wait for REPAIR_DELAY."""
        self._repairing: set[RouteKey] = set()
        self._suspects: set[RouteKey] = set()
        """Keys under which a foreign route appeared beside ours."""
        self._repair_timer: asyncio.TimerHandle | None = None
        self._link_timer: asyncio.TimerHandle | None = None
        self._touched: set[RouteKey] = set()
        """Wanted keys that events named since the last read or write began: what came back is not sure."""
        self._stale = True
        self._read_at = 0.0
        self._repaired = 0
        self._messages = 0

    # What the agent asks for

    def want(self, changes: Mapping[RouteKey, Route | None]) -> None:
        """Merge changes into the wanted table, the newest wins; None: not wanted any more.

        Raises ValueError for a key the kernel cannot tell apart (metric 0, a table that is not ours).
        """
        wanted, inherited = self._wanted, self._ledger.inherited
        for key, route in changes.items():
            if route is None:
                if wanted.pop(key, None) is not None:
                    self._dirty.add(key)
                self._troubles.clear(key)
                self._repairing.discard(key)
                continue
            if key.priority == 0 or key.table not in self._tables:
                raise ValueError(
                    f"route {key}: the metric must be at least 1 and the table one of {self._tables}"
                )
            if len(route.next_hops) > 1:
                hops = tuple(sorted(route.next_hops, key=hop_order))
                if hops != route.next_hops:
                    route = Route(key, route.kind, route.protocol, hops)
            wanted[key] = route
            inherited.discard(key)
            self._dirty.add(key)
        if self._dirty:
            self.wake.set()

    def allow_sweep(
        self, authoritative: bool, awaiting: frozenset[Address], peers: frozenset[Address]
    ) -> None:
        """Say what is known by now, so that inherited routes that nobody wants may go (see `Sweep`)."""
        self._sweep = Sweep(authoritative, awaiting, peers)
        self._release()

    def _release(self) -> None:
        if free := self._ledger.release(self._sweep):
            self._dirty |= free
            self.wake.set()

    # What `keep` calls

    async def start(self) -> None:
        """Open the sockets where needed and read our routes back. Raises OSError."""
        self._monitor.start()  # before the dump: what happens meanwhile must not be missed
        if not self._subscribed:
            self._monitor.subscribe(self._heard)
            self._subscribed = True
        if self._writer is None:
            self._writer = RouteWriter()
            self._monitor.ignore({self._writer.port})
        self._stale = True
        await self._read_back()

    async def apply(self) -> Report:
        """Write what differs. Raises OSError when the kernel's answers are lost: `start` again."""
        if self._stale or self._clock() - self._read_at > READ_BACK_EVERY:
            await self._read_back()
        self._dirty.update(self._troubles.take_due(self._clock()))
        for _ in range(ROUNDS):
            if not self._dirty and not self._suspects:
                break
            await self._turn()
        return Report(0.1 if self._dirty or self._suspects else self._troubles.wait(self._clock()))

    def close(self) -> None:
        """Close the sockets; the routes stay. The monitor is the caller's."""
        for timer in (self._repair_timer, self._link_timer):
            if timer is not None:
                timer.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # What the status asks

    def status(self) -> KernelStatus:
        have = self._ledger.have
        return KernelStatus(
            wanted=len(self._wanted),
            installed=sum(have.get(key) == route for key, route in self._wanted.items()),
            failed=tuple(self._troubles.listed("failed")),
            conflicts=tuple(self._troubles.listed("conflict", "fight")),
            inherited=len(self._ledger.inherited),
            repaired=self._repaired,
            messages=self._messages,
        )

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
        self._stale = False
        self._touched.clear()
        known = self._ledger.have
        before = len(known)
        try:
            routes = await self._run(lambda: dump_ours(self._tables))
        except BaseException:
            self._stale = True
            raise
        differing = self._ledger.read_back(routes, self._wanted, self._dirty | self._troubles.by_key.keys())
        self._repairing.update(key for key in differing if key in known and key in self._wanted)
        self._dirty |= differing
        self._distrust()
        self._read_at = self._clock()
        self._troubles.forget_old(self._read_at)
        self._release()
        log.debug(
            "%s: %d read back, %d before, %d differ",
            self.name,
            len(self._ledger.have),
            before,
            len(differing),
        )

    def _distrust(self) -> None:
        """Others changed these while we read or wrote: create them anew; a clash shows what is there."""
        for key in self._touched & self._wanted.keys():
            self._ledger.have.pop(key, None)
            self._disturb(key)
        self._touched.clear()

    def _send(self, octets: bytes, count: int) -> asyncio.Future[list[Failure]]:
        assert self._writer is not None
        return asyncio.get_running_loop().run_in_executor(self._thread, self._writer.send, octets, count)

    async def _turn(self) -> None:
        dirty, self._dirty = self._dirty, set()
        suspects, self._suspects = self._suspects, set()
        self._touched.clear()
        turn = Turn(self._ledger, self._wanted, self._send)
        try:
            outcome = await turn.run(dirty)
        except OSError:
            self._dirty |= dirty
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            raise
        finally:
            self._messages += turn.outcome.messages
        self._learn(outcome)
        if lookups := outcome.clashes | (suspects & self._wanted.keys()):
            holders = await self._run(lambda: find_holders(lookups))
            for key in lookups - self._touched:
                self._judge(key, holders.get(key, []))
        self._distrust()

    def _learn(self, outcome: Outcome) -> None:
        now = self._clock()
        if self._troubles.by_key:
            for key in outcome.put - outcome.shared:
                self._troubles.clear(key)
        if self._repairing:
            self._repaired += len(self._repairing & outcome.put)
            self._repairing -= outcome.put
        for key, reason in outcome.failed.items():
            if self._troubles.failed(key, f"the kernel says: {reason}", now):
                log.warning("route %s: the kernel refused it: %s", key.prefix, reason)
        for key in outcome.shared:
            self._troubles.conflict(
                key, "another program added a next hop to this route: remove it there", now
            )

    def _judge(self, key: RouteKey, holders: Sequence[KernelRoute]) -> None:
        """Somebody holds a key that we want: is it us, or who?"""
        now, wanted = self._clock(), self._wanted.get(key)
        mine = [route for holder in holders if (route := ours(holder, self._tables)) is not None]
        foreign = [holder for holder in holders if ours(holder, self._tables) is None]
        if mine:
            best = wanted if wanted in mine else mine[0]
            assert best is not None
            self._ledger.found(best, self._wanted)
            if best != wanted:
                self._dirty.add(key)
        elif not foreign:
            self._dirty.add(key)  # gone in the meantime
        if foreign and wanted is not None:
            reason = (
                f"a foreign route ({foreign[0]}) has the same prefix and metric {key.priority}: remove it or "
                f"give it another metric"
            )
            if self._troubles.conflict(key, reason, now):
                log.warning("route %s: %s", key.prefix, reason)
        elif mine and mine == [wanted]:
            self._troubles.clear(key)

    # What the monitor tells

    def _heard(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, RouteSeen):
                self._route_seen(event)
            elif isinstance(event, Overrun):
                self._stale = True
                self.wake.set()
            elif isinstance(event, LinkSeen | AddressSeen):
                self._link_seen(event)

    def _route_seen(self, event: RouteSeen) -> None:
        key, ledger = event.route.key, self._ledger
        held = ledger.have.get(key)
        seen = ours(event.route, self._tables)
        if not event.route.plain or (held is None and seen is None and key not in self._wanted):
            return
        self._touched.add(key)
        if seen is None:
            self._foreign_seen(event, held)
            return
        if (None if event.gone else seen) == held:
            return
        if event.gone:
            del ledger.have[key]
        else:
            ledger.found(seen, self._wanted)
        if key in self._wanted:
            self._disturb(key)
        else:
            self._release()

    def _foreign_seen(self, event: RouteSeen, held: Route | None) -> None:
        """A foreign route with a key that we have or want came or went."""
        key = event.route.key
        if event.gone:
            if self._troubles.retry_key(key, self._clock()):
                self.wake.set()
        elif held is not None and event.replaced:
            del self._ledger.have[key]
            if key in self._wanted:
                self._disturb(key)
        elif held is not None:
            self._suspects.add(key)
            self.wake.set()

    def _disturb(self, key: RouteKey) -> None:
        self._disturbed.add(key)
        if self._repair_timer is None:
            loop = asyncio.get_running_loop()
            self._repair_timer = loop.call_later(REPAIR_DELAY, self._repair)

    def _repair(self) -> None:
        self._repair_timer = None
        now = self._clock()
        keys, self._disturbed = self._disturbed, set()
        repairs = {key for key in keys if self._troubles.may_repair(key, now)}
        self._repairing |= repairs
        self._dirty |= repairs
        self.wake.set()

    def _link_seen(self, event: LinkSeen | AddressSeen) -> None:
        """IPv4 routes vanish without a word when their link goes down or loses its last address."""
        lost = event.gone or (isinstance(event, LinkSeen) and not event.up)
        if lost:
            if not self._stale and self._uses(event.ifindex):
                self._later_stale()
        elif self._troubles.by_key:
            self._later_stale()

    def _uses(self, ifindex: int) -> bool:
        return any(hop.ifindex == ifindex for route in self._wanted.values() for hop in route.next_hops)

    def _later_stale(self) -> None:
        if self._link_timer is None:
            self._link_timer = asyncio.get_running_loop().call_later(LINK_DELAY, self._links_changed)

    def _links_changed(self) -> None:
        self._link_timer = None
        self._stale = True
        self._troubles.retry_now(self._clock())
        self.wake.set()


def dump_ours(tables: Collection[int]) -> list[Route]:
    """Our routes of both families, filtered by the kernel."""
    return [
        route
        for family in (socket.AF_INET, socket.AF_INET6)
        for protocol in sorted(OURS)
        for seen in dump_routes(family, protocol)
        if (route := ours(seen, tables)) is not None
    ]


def find_holders(keys: Iterable[RouteKey]) -> dict[RouteKey, list[KernelRoute]]:
    """Everybody's routes under these keys, in the kernel's order."""
    asked = set(keys)
    holders: dict[RouteKey, list[KernelRoute]] = {}
    for version, table in sorted({(key.prefix.version, key.table) for key in asked}):
        for route in dump_routes(socket.AF_INET if version == 4 else socket.AF_INET6, table=table):
            if route.plain and route.key in asked:
                holders.setdefault(route.key, []).append(route)
    return holders
