"""Which kernel routes an agent of the other kind has left, and who may have them now. Pure.

calico-node's BIRD and Tortie both leave their routes in the kernel when they go, so that packets go on. Once
the other one has the same destination by the same way, the old route has done its duty; after that it can
only go stale, and send packets where nobody is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from agent.netlink.neighbours import Station
from agent.netlink.rtnetlink import KernelRoute
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import Route
from felix_like.model.verdict import No, Verdict, Yes

Stations = Mapping[tuple[Address, int], Station]
"""Address and interface index -> where its frames go."""


@dataclass(frozen=True, slots=True)
class Heir:
    """What the present agent makes of a destination."""

    route: Route
    """The route as this agent has it in the kernel, or would have it if the old one were not in its place."""
    installed: bool


@dataclass(frozen=True, slots=True)
class Leftover:
    """A route of the agent that has gone."""

    route: Route
    heir: Heir | None
    verdict: Verdict
    """Yes: it may go, as packets go the same way after it."""

    @property
    def in_the_way(self) -> bool:
        """The two have one place in the kernel (same metric): the old one must become the new one in one
        step, as nothing can be put beside it first."""
        return self.heir is not None and self.heir.route.key == self.route.key


def judge(
    left: Iterable[KernelRoute],
    heir_of: Callable[[Route], Heir | None],
    successor: str,
    stations: Stations = MappingProxyType({}),
    table: Iterable[KernelRoute] = (),
) -> list[Leftover]:
    """Every leftover of a kind that either agent makes, by destination, with its verdict.

    `stations`: the neighbours known now. A router's link-local and its global address are one way. `table`:
    all routes there are, whosever: packets follow the one with the least metric.
    """
    routes = [route for seen in left if (route := seen.as_wanted()) is not None]
    routes.sort(key=lambda route: (route.key.prefix.version, route.key.prefix, route.key.priority))
    destinations = {route.key.prefix for route in routes}
    beside: dict[Prefix, list[KernelRoute]] = {}
    for seen in table:
        if seen.plain and seen.key.prefix in destinations:
            beside.setdefault(seen.key.prefix, []).append(seen)
    return [
        _judged(route, heir_of(route), successor, stations, beside.get(route.key.prefix, ()))
        for route in routes
    ]


def _judged(
    route: Route, heir: Heir | None, successor: str, stations: Stations, beside: Iterable[KernelRoute]
) -> Leftover:
    if heir is None:
        verdict: Verdict = No(f"{successor} has no route to {route.key.prefix}")
    elif not same_way(route, heir.route, stations):
        verdict = No(f"{successor} has it by another way")
    elif heir.route.key != route.key and not heir.installed:
        verdict = No(f"{successor}'s own route is not in the kernel yet")
    elif (rival := _rival(route, heir, stations, beside)) is not None:
        verdict = No(f"packets would follow another route then ({rival}, metric {rival.key.priority})")
    else:
        verdict = Yes(f"{successor} has the same")
    return Leftover(route, heir, verdict)


def _rival(route: Route, heir: Heir, stations: Stations, beside: Iterable[KernelRoute]) -> KernelRoute | None:
    """A third route that would come before the heir's, and leads elsewhere."""
    for seen in beside:
        if route.key.priority <= seen.key.priority < heir.route.key.priority:
            as_wanted = seen.as_wanted()
            if as_wanted is None or not same_way(route, as_wanted, stations):
                return seen
    return None


def same_way(one: Route, other: Route, stations: Stations = MappingProxyType({})) -> bool:
    """Packets to the destination fare alike: they go to the same addresses, or else in the same frames."""
    if one.kind != other.kind:
        return False
    ways = [{(hop.gateway, hop.ifindex) for hop in route.next_hops} for route in (one, other)]
    return ways[0] == ways[1] or _frames(ways[0], stations) == _frames(ways[1], stations) != set()


def _frames(ways: Collection[tuple[Address | None, int]], stations: Stations) -> set[Station]:
    """Where the frames go; nowhere when that is not known of each way."""
    found = {stations.get((gateway, index)) for gateway, index in ways if gateway is not None}
    known = {station for station in found if station is not None}
    return known if len(known) == len(ways) else set()


def by_prefix(heirs: Iterable[Heir]) -> Mapping[Prefix, Heir]:
    """The heir of each destination: of several the one that packets follow, the one with the least metric."""
    found: dict[Prefix, Heir] = {}
    for heir in heirs:
        known = found.get(heir.route.key.prefix)
        if known is None or heir.route.key.priority < known.route.key.priority:
            found[heir.route.key.prefix] = heir
    return found
