"""What the nodes' kernels do, seen from outside the programs that are measured."""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from agent.lab import netns
from agent.netlink.rtnetlink import messages
from agent.netlink.sockets import open_socket
from agent.sinks.monitor import RTNLGRP_IPV4_ROUTE
from agent.sinks.rtlink import RouteSeen, parse_event
from felix_like.model.address import Prefix


class Arrivals:
    """Hears every IPv4 route that appears in some namespaces."""

    def __init__(self, namespaces: Iterable[str]) -> None:
        self._sockets: dict[int, tuple[socket.socket, str]] = {}
        self._poll = select.poll()
        for namespace in namespaces:
            sock = netns.inside(namespace, lambda: open_socket((RTNLGRP_IPV4_ROUTE,)))
            self._sockets[sock.fileno()] = (sock, namespace)
            self._poll.register(sock, select.POLLIN)

    def close(self) -> None:
        for sock, _ in self._sockets.values():
            sock.close()

    def wait(self, prefix: Prefix, namespaces: Iterable[str], seconds: float) -> float:
        """The moment (monotonic seconds) the last of the namespaces got the route. Raises TimeoutError."""
        missing = set(namespaces)
        end = time.monotonic() + seconds
        while missing:
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"{prefix} did not reach {', '.join(sorted(missing))} within {seconds:g} s"
                )
            for descriptor, _ in self._poll.poll(left * 1000):
                sock, namespace = self._sockets[descriptor]
                if prefix in set(_added(sock)):
                    missing.discard(namespace)
        return time.monotonic()


def _added(sock: socket.socket) -> Iterable[Prefix]:
    octets = sock.recv(1 << 18)
    for message in messages(octets):
        event = parse_event(octets, message)
        if isinstance(event, RouteSeen) and not event.gone:
            yield event.route.key.prefix


def prefixes(pid: int) -> int:
    """Prefixes in the main table of that process's namespace: the kernel's own count, no dump."""
    text = Path(f"/proc/{pid}/net/fib_triestat").read_text()
    return max(int(number) for number in re.findall(r"Prefixes:\s+(\d+)", text))


def routes(pid: int) -> set[str]:
    """Destinations of the IPv4 routes with a gateway, as /proc spells them."""
    lines = Path(f"/proc/{pid}/net/route").read_text().splitlines()[1:]
    return {field[1] for line in lines if (field := line.split())[2] != "00000000"}


def spelled(prefix: Prefix) -> str:
    """A prefix's network as /proc/net/route spells it."""
    return bytes(reversed(prefix.network)).hex().upper()
