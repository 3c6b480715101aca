"""Resolves BGP next hops through the kernel's table, and says when an answer changes.

A next hop resolves through any route that is not our own, the default route included: RFC 4271 section
9.1.2.1, and BIRD's `gateway recursive`, which Calico uses. What our own routes say never counts, so the
answer does not depend on the order in which routes were learned. Another daemon's BGP routes do count: nodes
may find each other by the BGP of an underlay.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from agent.netlink.rtnetlink import (
    PROTOCOL_NAMES,
    ROUTE_TYPES,
    RTN_LOCAL,
    RTN_UNICAST,
    KernelRoute,
    hop_order,
)
from agent.netlink.sockets import NetlinkError, RouteLookup, dump_routes
from agent.sinks.monitor import RouteMonitor
from agent.sinks.ownership import Mark
from agent.sinks.rtlink import AddressSeen, Event, LinkSeen, Overrun, RouteSeen
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import (
    MAIN_TABLE,
    PROTO_BGP,
    KernelNextHop,
    NextHopState,
    Resolved,
    Unresolved,
)

COALESCE: Final = 0.05
"""Seconds that events are collected before the addresses they concern are looked up again."""
_MANY_PREFIXES: Final = 64
_OTHERS: Final = (13, 14, 15, 18, 42, 99, 190, 191, 193, 194, 195, 196, 197)
"""More protocols of iproute2's rt_protos and of FRR; 196 are its static routes."""
_NOT_BGP: Final = (*(number for number in PROTOCOL_NAMES if number != PROTO_BGP), *_OTHERS)

OnChange = Callable[[Mapping[Address, NextHopState]], None]


class NextHopResolver:
    """Answers at once and remembers what was asked. Belongs to one event loop; a lookup takes microseconds.

    `on_change` gets the addresses whose answer changed later, never those that `ask` itself returned.
    """

    def __init__(
        self,
        monitor: RouteMonitor,
        on_change: OnChange,
        mark: Mark = Mark(),  # noqa: B008 - a frozen value
    ) -> None:
        self._monitor = monitor
        self._mark = mark
        self._on_change = on_change
        self._lookup: RouteLookup | None = None
        self._states: dict[Address, NextHopState] = {}
        self._prefixes: set[Prefix] = set()
        self._links: set[int] = set()
        self._everything = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Open the sockets in the calling thread's network namespace. Raises OSError."""
        if self._lookup is None:
            self._lookup = RouteLookup()
            self._monitor.subscribe(self._heard)
        self._monitor.start()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._lookup is not None:
            self._lookup.close()

    def ask(self, addresses: Iterable[Address]) -> Mapping[Address, NextHopState]:
        """Resolve now and watch from now on."""
        answers = self._resolve(addresses)
        self._states.update(answers)
        return answers

    def forget(self, addresses: Iterable[Address]) -> None:
        """Stop watching addresses that no path uses any more."""
        for address in addresses:
            self._states.pop(address, None)

    def state(self, address: Address) -> NextHopState | None:
        """The current answer; None for an address that nobody asked for."""
        return self._states.get(address)

    def _resolve(self, addresses: Iterable[Address]) -> dict[Address, NextHopState]:
        assert self._lookup is not None, "start() comes first"
        others: dict[int, list[KernelRoute]] = {}
        answers: dict[Address, NextHopState] = {}
        for address in addresses:
            try:
                route = self._lookup.lookup(address)
            except NetlinkError as error:
                answers[address] = Unresolved(_refusal(address, error))
                continue
            if self._learned(route):
                version = address.version
                if version not in others:
                    others[version] = _routes_not_bgp(version)
                answers[address] = through(longest_match(others[version], address), address)
            else:
                answers[address] = through(route, address)
        return answers

    def _learned(self, route: KernelRoute) -> bool:
        """One of ours that leads elsewhere; our blackholes count like anybody's."""
        return route.type == RTN_UNICAST and self._mark.is_on(route)

    def _heard(self, events: Sequence[Event]) -> None:
        if not self._states:
            return
        for event in events:
            if isinstance(event, RouteSeen):
                if not self._learned(event.route):
                    self._prefixes.add(event.route.key.prefix)
            elif isinstance(event, Overrun):
                self._everything = True
            elif event.gone or (isinstance(event, LinkSeen) and not event.up):
                # IPv4 routes leave with their link, or with its last address, without an event of their own.
                self._links.add(event.ifindex)
            elif isinstance(event, AddressSeen):
                self._prefixes.add(Prefix.within(event.address, event.length))
        if (self._prefixes or self._links or self._everything) and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(COALESCE, self._again)

    def _again(self) -> None:
        self._timer = None
        concerned = [address for address, state in self._states.items() if self._concerns(address, state)]
        self._prefixes, self._links, self._everything = set(), set(), False
        changes = {
            address: state
            for address, state in self._resolve(concerned).items()
            if state != self._states[address]
        }
        if changes:
            self._states.update(changes)
            self._on_change(changes)

    def _concerns(self, address: Address, state: NextHopState) -> bool:
        if self._everything or len(self._prefixes) > _MANY_PREFIXES:
            return True
        if isinstance(state, Resolved) and any(hop.ifindex in self._links for hop in state.via):
            return True
        return any(prefix.contains(address) for prefix in self._prefixes)


def through(route: KernelRoute | None, address: Address) -> NextHopState:
    """What a FIB entry means for packets to that next hop; recursion ends at the entry's own gateways."""
    if route is None:
        return Unresolved(f"the next hop {address} resolves only through a BGP route")
    if route.type == RTN_LOCAL:
        return Unresolved(f"the next hop {address} is this node's own address")
    if route.type != RTN_UNICAST or not route.next_hops:
        return Unresolved(
            f"the next hop {address} lies in {_article(ROUTE_TYPES.get(route.type, 'odd'))} route"
        )
    if address.version == 6 and address.is_link_local:
        return Unresolved(f"the next hop {address} is link-local: it says nothing without its interface")
    hops = {
        hop if hop.gateway is not None else KernelNextHop(address, hop.ifindex, hop.onlink)
        for hop in route.next_hops
    }
    return Resolved(tuple(sorted(hops, key=hop_order)))


def longest_match(routes: Iterable[KernelRoute], address: Address) -> KernelRoute | None:
    """The route the kernel would take if only these were there: longest prefix, then lowest metric."""
    best: KernelRoute | None = None
    for route in routes:
        prefix = route.key.prefix
        if route.plain and prefix.contains(address):
            rank = (-prefix.length, route.key.priority)
            if best is None or rank < (-best.key.prefix.length, best.key.priority):
                best = route
    return best


def _routes_not_bgp(version: int) -> list[KernelRoute]:
    """Routes of the main table by every protocol but BGP: a node has few of them, so its own dump each.

    Another daemon's BGP routes are left out here, where one of ours is more specific: to find them among ours
    would mean reading all of ours.
    """
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return [route for number in _NOT_BGP for route in dump_routes(family, number, MAIN_TABLE)]


_REFUSALS: Final = {
    errno.EINVAL: "lies in a blackhole route",
    errno.EACCES: "lies in a prohibit route",
    errno.EHOSTUNREACH: "lies in an unreachable route",
    errno.ENETUNREACH: "has no route to it",
}


def _refusal(address: Address, error: NetlinkError) -> str:
    return (
        f"the next hop {address} {_REFUSALS.get(error.errno or 0, f'cannot be looked up: {error.strerror}')}"
    )


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
