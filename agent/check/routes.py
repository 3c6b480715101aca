"""Whose routes are whose: those with our mark that the agent does not know, and leftovers inside pools."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from agent.check.finding import Finding, ok, unseen, warn
from agent.check.netlink import MOST_ROUTES, Network, SeenRoute
from felix_like.model.address import Prefix
from felix_like.model.desired import PROTO_BGP, PROTO_BIRD
from felix_like.model.ippool import IPPool

PROTOCOLS = {3: "boot", 4: "static", 11: "zebra", 12: "bird", 16: "dhcp", 80: "80", 186: "bgp"}
DEAD_ENDS = frozenset({"blackhole", "unreachable", "prohibit", "throw"})


def check(
    network: Network,
    metric: int,
    known: Collection[Prefix] | None,
    pools: Sequence[IPPool] | None,
) -> Iterator[Finding]:
    """`known`: the prefixes the agent knows of; None: it does not answer. `pools`: None: etcd neither."""
    ours = [route for route in network.routes if is_ours(route, metric)]
    yield from marked(ours, metric, known)
    if network.cut:
        yield unseen("routes", f"more than {MOST_ROUTES} routes: only so many were looked at")
    if pools is None:
        yield unseen("leftovers in pools", "etcd did not say which pools there are")
    else:
        yield from leftovers([route for route in network.routes if not is_ours(route, metric)], pools)


def is_ours(route: SeenRoute, metric: int) -> bool:
    """The mark of `agent.sinks.ownership`: protocol and metric, in the main table."""
    return route.protocol == PROTO_BGP and route.metric == metric


def marked(ours: Sequence[SeenRoute], metric: int, known: Collection[Prefix] | None) -> Iterator[Finding]:
    mark = f"protocol 186, metric {metric}"
    if known is None:
        found = f"{len(ours)} with our mark ({mark}), left by the last agent or written by another program"
        yield ok("our routes", found) if ours else ok("our routes", f"none with our mark ({mark})")
        return
    strange = [route for route in ours if route.prefix not in known]
    if strange:
        yield warn(
            "our routes",
            f"{len(strange)} of {len(ours)} with our mark ({mark}) are not the agent's (first {strange[0]})",
            "a program that marks its routes so will lose them: give it another protocol or metric, or "
            "set TORTIE_ROUTE_PRIORITY. For a minute after a start they may be the last agent's",
        )
    else:
        yield ok("our routes", f"{len(ours)} with our mark ({mark}), all known to the agent")


def leftovers(foreign: Sequence[SeenRoute], pools: Sequence[IPPool]) -> Iterator[Finding]:
    """Dead ends and gateways of others inside pools: what a BGP daemon or an installer left."""
    inside = [
        route
        for route in foreign
        if (route.kind in DEAD_ENDS or route.gateway)
        and any(pool.cidr.covers(route.prefix) for pool in pools)
    ]
    if not inside:
        yield ok("leftovers in pools", f"none in {len(pools)} pools")
        return
    by_protocol: dict[int, list[SeenRoute]] = {}
    for route in inside:
        by_protocol.setdefault(route.protocol, []).append(route)
    for protocol, routes in sorted(by_protocol.items()):
        name = PROTOCOLS.get(protocol, str(protocol))
        count = f"{len(routes)} route{'s' if len(routes) != 1 else ''}"
        yield warn(
            "leftovers in pools",
            f"{count} of protocol {name} (first: {routes[0]}, metric {routes[0].metric})",
            _what_to_do(protocol, name),
        )


def _what_to_do(protocol: int, name: str) -> str:
    if protocol == PROTO_BIRD:
        return (
            "packets may follow them: where BIRD no longer runs, 'tortiectl node leftovers' says which may "
            "go without loss, and removes those"
        )
    return (
        "the lower metric wins over ours: if nobody needs them, remove them one by one ('ip route show proto "
        f"{name}' lists them)"
    )
