"""The kernel's network tables by netlink: what `ip` would show, where there is no `ip`."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterator
from typing import Any

from agent.diags.gather import Got, text
from agent.netlink.sockets import dump_routes

MOST = 10_000
"""Entries of a table that pyroute2 reads, which takes its time for each."""


def dump() -> Got:
    """JSON lines, then a line for each route."""
    return text("".join(f"{line}\n" for line in lines()))


def lines() -> Iterator[str]:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        for name, read in (
            ("link", ip.get_links),
            ("address", ip.get_addr),
            ("rule", ip.get_rules),
            ("neighbour", ip.get_neighbours),
        ):
            seen = list(itertools.islice(iter(read()), MOST + 1))
            for message in seen[:MOST]:
                yield json.dumps({"table": name, **_plain(message)}, default=str)
            if len(seen) > MOST:
                yield json.dumps({"table": name, "cut": f"only the first {MOST} are shown"})
    for family in (socket.AF_INET, socket.AF_INET6):
        for route in dump_routes(family):
            key = route.key
            yield f"{key.prefix} {route} metric {key.priority} table {key.table}"


def _plain(message: Any) -> dict[str, Any]:
    """The fields and attributes of a message, without pyroute2's own and without bulky counters."""
    fields = {key: value for key, value in message.items() if key not in ("attrs", "header", "event")}
    bulky = ("IFLA_AF_SPEC", "IFLA_STATS", "IFLA_STATS64", "IFLA_MAP", "RTA_CACHEINFO", "NDA_CACHEINFO")
    return fields | {
        name: value for name, value in message["attrs"] if name not in bulky and name != "UNKNOWN"
    }
