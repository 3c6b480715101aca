"""What is ours in the kernel, what may go, and how to change a route without touching its neighbours."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from agent.netlink.rtnetlink import KernelRoute
from felix_like.model.address import Address
from felix_like.model.desired import (
    DEFAULT_ROUTE_PRIORITY,
    MAIN_TABLE,
    PROTO_BGP,
    KernelNextHop,
    Route,
    RouteKey,
)
from felix_like.model.verdict import No, Verdict, Yes


@dataclass(frozen=True, slots=True)
class Mark:
    """What makes a route recognisably this agent's, after amnesia, too.

    The protocol alone does not: FRR's routes are of protocol 186 as well, with metric 20.
    """

    tables: frozenset[int] = frozenset({MAIN_TABLE})
    metric: int = DEFAULT_ROUTE_PRIORITY

    def is_on(self, route: KernelRoute) -> bool:
        key = route.key
        return route.protocol == PROTO_BGP and key.priority == self.metric and key.table in self.tables


@dataclass(frozen=True, slots=True)
class Sweep:
    """What the agent knows, so far, about inherited routes that nobody wants."""

    authoritative: bool = False
    """The datastore was in sync at least once since the start."""
    awaiting: frozenset[Address] = frozenset()
    """Peers whose End-of-RIB is still awaited: their routes may yet be announced again."""
    peers: frozenset[Address] = frozenset()

    def allows(self, route: Route) -> Verdict:
        """May this inherited route go (RFC 4724 section 4.2: stale routes stay until End-of-RIB)?"""
        if not self.authoritative:
            return No("the datastore has not been read completely since the agent started")
        if route.kind == "blackhole" or not self.awaiting:
            return Yes()
        for hop in route.next_hops:
            if hop.gateway is None or hop.gateway not in self.peers:
                return No("its next hop is no peer, and some peers have not sent End-of-RIB yet")
            if hop.gateway in self.awaiting:
                return No(f"peer {hop.gateway} has not sent End-of-RIB yet")
        return Yes()


@dataclass(frozen=True, slots=True)
class Rewrite:
    """How one route of ours becomes another: first `add`, then `remove`, unless `remove_first`."""

    add: Route | None
    remove: Route | None
    remove_first: bool = False


def rewrite(old: Route, new: Route) -> Rewrite:
    """Make before break with exact messages only; never NLM_F_REPLACE.

    The kernel's replace takes the first route with that prefix and metric in IPv4, and every sibling in IPv6,
    whoever put them there. An append followed by an exact delete loses no packet either and hits only ours.
    """
    if len(new.key.prefix.network) == 4:
        return Rewrite(new, old)  # the appended route comes second; it takes over when the first one goes
    if old.kind != new.kind:
        return Rewrite(new, old)
    if old.protocol == new.protocol and len(old.next_hops) == len(new.next_hops) == 1:
        same = old.next_hops[0][:2] == new.next_hops[0][:2]
        return Rewrite(None, None) if same else Rewrite(new, old)
    if old.protocol != new.protocol:
        # IPv6 knows one route per prefix, metric and next hop, whatever the protocol: the two collide.
        collide = old.kind == "blackhole" or bool(_places(old) & _places(new))
        return Rewrite(new, old, remove_first=collide)
    return Rewrite(_only(new, _places(old)), _only(old, _places(new)))


def _places(route: Route) -> set[tuple[Address | None, int]]:
    return {(hop.gateway, hop.ifindex) for hop in route.next_hops}


def _only(route: Route, without: Collection[tuple[Address | None, int]]) -> Route | None:
    """The route with the next hops that are not at one of those places; None when none is left."""
    hops: tuple[KernelNextHop, ...] = tuple(
        hop for hop in route.next_hops if (hop.gateway, hop.ifindex) not in without
    )
    return Route(route.key, route.kind, route.protocol, hops) if hops else None


@dataclass(slots=True)
class Ledger:
    """This agent's picture of its own routes in the kernel, trusted until an event says otherwise."""

    have: dict[RouteKey, Route] = field(default_factory=dict)
    inherited: set[RouteKey] = field(default_factory=set)
    """Ours by protocol, found in the kernel, asked for by nobody since the agent started."""
    extras: dict[RouteKey, list[Route]] = field(default_factory=dict)
    """Second routes of ours under one key: left when an agent died between append and delete."""

    def read_back(
        self, routes: Iterable[Route], wanted: Mapping[RouteKey, Route], dropping: Collection[RouteKey]
    ) -> set[RouteKey]:
        """Take over what the kernel says; returns the keys that are not as wanted.

        `dropping`: keys that were wanted in this life and are to go: they are not inherited.
        """
        have: dict[RouteKey, Route] = {}
        extras: dict[RouteKey, list[Route]] = {}
        for route in routes:
            first = have.setdefault(route.key, route)
            if first is route:
                continue
            if route == wanted.get(route.key):
                have[route.key], route = route, first
            extras.setdefault(route.key, []).append(route)
        self.have, self.extras = have, extras
        self.inherited = {key for key in have if key not in wanted and key not in dropping}
        differing = {key for key, route in wanted.items() if have.get(key) != route}
        differing.update(key for key in have if key not in wanted and key not in self.inherited)
        return differing | (extras.keys() & wanted.keys())

    def found(self, route: Route, wanted: Mapping[RouteKey, Route]) -> None:
        """Someone else put a route with our mark there."""
        self.have[route.key] = route
        if route.key not in wanted:
            self.inherited.add(route.key)

    def release(self, sweep: Sweep) -> set[RouteKey]:
        """Inherited routes that may go now; they are inherited no longer."""
        if not sweep.authoritative:
            return set()
        free = {key for key in self.inherited if key not in self.have or sweep.allows(self.have[key])}
        self.inherited -= free
        return free


def ours(route: KernelRoute, mark: Mark) -> Route | None:
    """The route in the model's words if it carries our mark and is of a kind we make."""
    return route.as_wanted() if mark.is_on(route) else None
