"""What events mean for our routes: which are gone, changed by others, or no longer sure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from agent.netlink.rtnetlink import KernelRoute
from agent.sinks.ownership import Ledger, Mark, Sweep, ours
from agent.sinks.rtlink import AddressSeen, Event, LinkSeen, Overrun, RouteSeen
from agent.sinks.trouble import Troubles
from felix_like.model.desired import PROTO_BIRD, Route, RouteKey

REPAIR_DELAY: Final = 0.15
"""Seconds that others' changes are collected before they are undone: `ip route flush` goes in rounds."""
LINK_DELAY: Final = 0.3
"""Seconds after a link or address event before the tables are read back."""


@dataclass(slots=True)
class Account:
    """What is wanted, what is there, and what is still to be done about it."""

    wanted: dict[RouteKey, Route] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    troubles: Troubles = field(default_factory=Troubles)
    sweep: Sweep = field(default_factory=Sweep)
    dirty: set[RouteKey] = field(default_factory=set)
    """Keys to compare and write in the next turn."""
    repairing: set[RouteKey] = field(default_factory=set)
    """Wanted keys that were there and are not any more."""
    interfaces: set[int] = field(default_factory=set)
    """Interface indexes that wanted routes use, or used since the tables were last read back."""
    birds: dict[RouteKey, KernelRoute] = field(default_factory=dict)
    """BIRD's routes in our tables: it leaves them when it goes, and some come before ours."""


class Hearing:
    """Takes the monitor's events; our own writes are never among them. Belongs to one event loop.

    Events only make the ledger less sure: what they name is created anew, and a clash then shows what is
    there. So it does no harm when an event is older than what we wrote or read meanwhile.
    """

    def __init__(self, account: Account, wake: asyncio.Event, clock: Callable[[], float], mark: Mark) -> None:
        self._account = account
        self._wake = wake
        self._clock = clock
        self._mark = mark
        self.stale = True
        """The tables have to be read back before anything else."""
        self.suspects: set[RouteKey] = set()
        """Keys under which a foreign route appeared beside ours."""
        self.touched: set[RouteKey] = set()
        """Keys that events named since the last read or write began: what came back is not sure."""
        self._birds_heard: list[RouteSeen] | None = None
        """What came about BIRD's routes while they were read back."""
        self._disturbed: set[RouteKey] = set()
        """Keys that another program changed; they wait for REPAIR_DELAY."""
        self._doubtful: set[RouteKey] = set()
        """Disturbed IPv4 keys that may hold more than one route with our mark."""
        self._repair_timer: asyncio.TimerHandle | None = None
        self._link_timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        for timer in (self._repair_timer, self._link_timer):
            if timer is not None:
                timer.cancel()

    def begin_reading(self) -> None:
        self.stale = False
        self._birds_heard = []
        self.touched.clear()

    def begin_writing(self) -> set[RouteKey]:
        """Returns the suspects to look up in this turn."""
        self.touched.clear()
        suspects, self.suspects = self.suspects, set()
        return suspects

    def distrust(self) -> None:
        """Others changed these while we read or wrote: do not believe what we think of them."""
        for key in self.touched & self._account.wanted.keys():
            self._account.ledger.have.pop(key, None)
            self._disturb(key)
        self.touched.clear()

    def release(self) -> None:
        """Let inherited routes go that nobody may want any more."""
        if free := self._account.ledger.release(self._account.sweep):
            self._account.dirty |= free
            self._wake.set()

    def heard(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, RouteSeen):
                self._route_seen(event)
            elif isinstance(event, Overrun):
                self.stale = True
                self._wake.set()
            else:
                self._link_seen(event)

    def _route_seen(self, event: RouteSeen) -> None:
        key, ledger, wanted = event.route.key, self._account.ledger, self._account.wanted
        held = ledger.have.get(key)
        seen = ours(event.route, self._mark)
        if event.route.protocol == PROTO_BIRD and key.table in self._mark.tables:
            self._bird_seen(event)
        if not event.route.plain or (held is None and seen is None and key not in wanted):
            return
        self.touched.add(key)
        if seen is None:
            self._foreign_seen(event, held)
            return
        if (None if event.gone else seen) == held:
            return
        if event.gone:
            del ledger.have[key]
        else:
            ledger.found(seen, wanted)
            if not event.replaced and key.prefix.version == 4:
                self._doubtful.add(key)
            if key in self._account.troubles.by_key:
                self._doubtful.add(key)  # somebody handed a clash over to us: look whether it is solved
        if key in wanted:
            self._disturb(key)
        else:
            self.release()

    def read_birds(self, dumped: dict[RouteKey, KernelRoute]) -> None:
        """BIRD's routes were read back; what was heard of them meanwhile is newer."""
        self._account.birds = dumped
        heard, self._birds_heard = self._birds_heard or [], None
        for event in heard:
            self._bird_seen(event)

    def _bird_seen(self, event: RouteSeen) -> None:
        if self._birds_heard is not None:
            self._birds_heard.append(event)
        if event.gone:
            self._account.birds.pop(event.route.key, None)
        elif event.route.plain:
            self._account.birds[event.route.key] = event.route

    def _foreign_seen(self, event: RouteSeen, held: Route | None) -> None:
        """A foreign route with a key that we have or want came or went."""
        key, account = event.route.key, self._account
        if event.gone:
            if account.troubles.retry_key(key, self._clock()):
                self._wake.set()
        elif held is not None and event.replaced:
            del account.ledger.have[key]
            if key in account.wanted:
                self._disturb(key)
        elif held is not None:
            self.suspects.add(key)
            self._wake.set()

    def _disturb(self, key: RouteKey) -> None:
        self._disturbed.add(key)
        if self._repair_timer is None:
            self._repair_timer = asyncio.get_running_loop().call_later(REPAIR_DELAY, self._repair)

    def _repair(self) -> None:
        self._repair_timer = None
        now, account = self._clock(), self._account
        keys, self._disturbed = self._disturbed, set()
        repairs = {key for key in keys if key in account.wanted and account.troubles.may_repair(key, now)}
        account.repairing |= repairs
        account.dirty |= repairs
        self.suspects |= repairs & self._doubtful
        self._doubtful.clear()
        self._wake.set()

    def _link_seen(self, event: LinkSeen | AddressSeen) -> None:
        """IPv4 routes vanish without a word when their link goes down or loses its last address."""
        if self._link_timer is not None:
            return
        lost = event.gone or (isinstance(event, LinkSeen) and not event.up)
        if event.ifindex in self._account.interfaces if lost else self._account.troubles.by_key:
            self._link_timer = asyncio.get_running_loop().call_later(LINK_DELAY, self._links_changed)

    def _links_changed(self) -> None:
        self._link_timer = None
        self.stale = True
        self._account.troubles.retry_now(self._clock())
        self._wake.set()
