"""Links, addresses and routes of this network namespace, by netlink: a container may have no `ip`."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.netlink.rtnetlink import ROUTE_TYPES
from agent.netlink.sockets import dump_routes
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import MAIN_TABLE

MOST_ROUTES = 200_000
"""Looked at."""
POD_GATEWAY = "169.254.1.1"


@dataclass(frozen=True, slots=True)
class Link:
    """An interface; `agent.autodetect` takes it for one of its own."""

    name: str
    index: int
    mtu: int
    up: bool
    addresses: tuple[tuple[Address, int], ...] = ()


@dataclass(frozen=True, slots=True)
class SeenRoute:
    """A route of the main table."""

    prefix: Prefix
    kind: str
    protocol: int
    metric: int
    gateway: str
    """Of several next hops the first; empty without."""
    device: str

    def __str__(self) -> str:
        kind = "" if self.kind == "unicast" else f"{self.kind} "
        via = f" via {self.gateway}" if self.gateway else ""
        dev = f" dev {self.device}" if self.device and self.kind == "unicast" else ""
        return f"{kind}{self.prefix}{via}{dev}"


@dataclass(frozen=True, slots=True)
class Network:
    """What the kernel says."""

    links: tuple[Link, ...]
    routes: tuple[SeenRoute, ...]
    cut: bool
    """There are more routes than were looked at."""
    to_pod_gateway: str
    """The device that packets to 169.254.1.1 leave by; empty when there is no unicast route."""

    def holder(self, address: Address | None) -> Link | None:
        """The interface with an address."""
        for link in self.links:
            if any(address == held for held, _ in link.addresses):
                return link
        return None

    @property
    def pod_links(self) -> list[Link]:
        return [link for link in self.links if link.name.startswith("cali")]


def read() -> Network:
    """Read it all. Blocks; needs no root. Raises OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute(strict_check=True) as ip:
        names, links = _links(ip)
        routes = list(itertools.islice(_routes(names), MOST_ROUTES + 1))
        try:
            answer = next(iter(ip.route("get", dst=POD_GATEWAY)), None)
        except NetlinkError:
            answer = None
        device = ""
        if answer is not None and answer["type"] == 1:
            device = names.get(answer.get_attr("RTA_OIF"), "")
    return Network(links, tuple(routes[:MOST_ROUTES]), len(routes) > MOST_ROUTES, device)


def _links(ip: Any) -> tuple[dict[int, str], tuple[Link, ...]]:
    held: dict[int, list[tuple[Address, int]]] = {}
    for message in ip.get_addr():
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        held.setdefault(message["index"], []).append((Address.parse(text), message["prefixlen"]))
    found = []
    for message in ip.get_links():
        index, flags = message["index"], message["flags"]
        name = str(message.get_attr("IFLA_IFNAME"))
        up = bool(flags & 0x1 and flags & 0x40)  # IFF_UP, IFF_RUNNING
        found.append(Link(name, index, message.get_attr("IFLA_MTU"), up, tuple(held.get(index, ()))))
    found.sort(key=lambda link: link.index)
    return {link.index: link.name for link in found}, tuple(found)


def _routes(names: dict[int, str]) -> Iterator[SeenRoute]:
    """With our own module: pyroute2 takes half a millisecond for each."""
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in dump_routes(family, table=MAIN_TABLE):
            if not route.plain:
                continue
            hop = route.next_hops[0] if route.next_hops else None
            yield SeenRoute(
                route.key.prefix,
                ROUTE_TYPES.get(route.type, str(route.type)),
                route.protocol,
                route.key.priority,
                str(hop.gateway) if hop is not None and hop.gateway is not None else "",
                names.get(hop.ifindex, "") if hop is not None else "",
            )
