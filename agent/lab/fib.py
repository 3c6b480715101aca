"""What the kernels really route, read from /proc inside each namespace, without a fork."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.lab import netns
from felix_like.model.address import Address, Prefix

_RTF_UP = 0x0001
_RTF_REJECT = 0x0200


@dataclass(frozen=True, slots=True)
class KernelRoute:
    """One unicast route; of several next hops the first."""

    gateway: Address | None
    interface: str
    metric: int


Fib = Mapping[Prefix, KernelRoute]
Expected = Mapping[str, Mapping[Prefix, Address]]
"""Namespace -> prefix -> the address of the node that holds it."""


def parse_route(text: str) -> dict[Prefix, KernelRoute]:
    """/proc/net/route: IPv4, addresses as 32-bit words in host order."""
    routes: dict[Prefix, KernelRoute] = {}
    for line in text.splitlines()[1:]:
        field = line.split()
        flags = int(field[3], 16)
        if not flags & _RTF_UP or flags & _RTF_REJECT or field[0] == "*":
            continue
        length = int(field[7], 16).bit_count()
        prefix = Prefix.within(_word(field[1]), length)
        gateway = _word(field[2])
        routes[prefix] = KernelRoute(gateway if any(gateway) else None, field[0], int(field[6]))
    return routes


def parse_ipv6_route(text: str) -> dict[Prefix, KernelRoute]:
    """/proc/net/ipv6_route: network order, no separators; the local table's entries are on `lo`."""
    routes: dict[Prefix, KernelRoute] = {}
    for line in text.splitlines():
        field = line.split()
        flags = int(field[8], 16)
        if not flags & _RTF_UP or flags & _RTF_REJECT or field[9] == "lo":
            continue
        prefix = Prefix.within(Address.fromhex(field[0]), int(field[1], 16))
        gateway = Address.fromhex(field[4])
        routes[prefix] = KernelRoute(gateway if any(gateway) else None, field[9], int(field[5], 16))
    return routes


def read(namespace: str) -> dict[Prefix, KernelRoute]:
    """The main tables of a namespace, both families."""

    def files() -> tuple[str, str]:
        here = Path("/proc/thread-self/net")
        return (here / "route").read_text(), (here / "ipv6_route").read_text()

    ipv4, ipv6 = netns.inside(namespace, files)
    return parse_route(ipv4) | parse_ipv6_route(ipv6)


def missing(expected: Expected, reader: Callable[[str], Fib] = read) -> dict[str, list[str]]:
    """Namespace -> one phrase per route that its kernel lacks or sends elsewhere."""
    wrong: dict[str, list[str]] = {}
    for namespace, wanted in expected.items():
        fib = reader(namespace)
        phrases = []
        for prefix, holder in wanted.items():
            route = fib.get(prefix)
            if route is None:
                phrases.append(f"{prefix} via {holder}")
            elif route.gateway != holder:
                phrases.append(f"{prefix} via {holder} (it has via {route.gateway or route.interface})")
        if phrases:
            wrong[namespace] = phrases
    return wrong


def unwanted(gone: Iterable[Prefix], namespaces: Iterable[str]) -> dict[str, list[str]]:
    """Namespace -> routes it still has to prefixes that nobody holds any more."""
    prefixes = list(gone)
    left: dict[str, list[str]] = {}
    for namespace in namespaces:
        fib = read(namespace)
        phrases = [f"{prefix} via {fib[prefix].gateway}" for prefix in prefixes if prefix in fib]
        if phrases:
            left[namespace] = phrases
    return left


def wait_for(
    check: Callable[[], dict[str, list[str]]],
    seconds: float,
    progress: Callable[[dict[str, list[str]]], None] = lambda _: None,
) -> tuple[float, dict[str, list[str]]]:
    """Repeat `check` until it finds nothing or time is up: seconds it took, and what was left.

    Looking takes at most a quarter of a core, so that it does not slow down what it waits for.
    """
    start = time.monotonic()
    while True:
        began = time.monotonic()
        left = check()
        cost = time.monotonic() - began
        elapsed = time.monotonic() - start
        if not left or elapsed > seconds:
            return elapsed, left
        progress(left)
        time.sleep(max(0.005, 3 * cost))


def _word(text: str) -> Address:
    return Address(socket.ntohl(int(text, 16)).to_bytes(4, "big"))
