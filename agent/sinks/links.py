"""Links, addresses and neighbours: read with the own netlink module, written with pyroute2.

pyroute2 takes 0.25 s and 26 MB to import, so it is imported by whoever writes, not by the agent's start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from agent.netlink.rtnetlink import RTM_NEWADDR, RTM_NEWLINK
from agent.netlink.sockets import dump_replies
from agent.sinks.rtlink import (
    AddressSeen,
    LinkSeen,
    pack_dump_addresses,
    pack_dump_links,
    parse_address,
    parse_link,
)
from felix_like.model.address import Address

T = TypeVar("T")
_CLONE_NEWNET: Final = 0x40000000
_TRIES: Final = 5


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface with its addresses in the kernel's order (the primary one first)."""

    name: str
    index: int
    mtu: int
    up: bool
    """Set up by its administrator and with a carrier."""
    addresses: tuple[tuple[Address, int], ...]
    """Address and prefix length in bits; link-local and host-scope ones included."""


def interfaces() -> list[Interface]:
    """All interfaces of the calling thread's network namespace, by index. Blocks about a millisecond."""
    links: list[LinkSeen] = []
    addresses: list[AddressSeen] = []
    for _ in range(_TRIES):
        try:
            links = [
                link
                for octets, kind, start, end in dump_replies(pack_dump_links())
                if kind == RTM_NEWLINK and (link := parse_link(octets, start, end)) is not None
            ]
            addresses = [
                seen
                for octets, kind, start, end in dump_replies(pack_dump_addresses())
                if kind == RTM_NEWADDR and (seen := parse_address(octets, start, end)) is not None
            ]
        except InterruptedError:
            continue
        break
    held: dict[int, list[tuple[Address, int]]] = {}
    for seen in addresses:
        held.setdefault(seen.ifindex, []).append((seen.address, seen.length))
    return [
        Interface(
            link.name, link.ifindex, link.mtu, link.up and link.running, tuple(held.get(link.ifindex, ()))
        )
        for link in sorted(links)
    ]


def namespace_path(name: str) -> Path:
    """Where `ip netns` keeps a named network namespace; a path is taken as it is."""
    return Path(name) if "/" in name else Path("/run/netns") / name


def in_namespace(name: str, work: Callable[[], T]) -> T:
    """Run `work` in another network namespace, in a short-lived thread of its own: no fork.

    Sockets and /proc/sys/net files that it opens stay in that namespace. Raises OSError, or what it raises.
    """
    outcome: list[T] = []
    problem: list[BaseException] = []

    def enter() -> None:
        try:
            descriptor = os.open(namespace_path(name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
                if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number), str(namespace_path(name)))
            finally:
                os.close(descriptor)
            outcome.append(work())
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=enter, name=f"in {name}")
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return outcome[0]


class LinkWriter:
    """Writes links, addresses and neighbours in the namespace in which it was opened. Blocks: use a thread.

    Every call that adds what is there already, or removes what is gone, succeeds. Other errors raise OSError.
    """

    def __init__(self, ip: Any) -> None:
        self._ip = ip

    def index(self, name: str) -> int:
        """Raises OSError for an interface that does not exist."""
        found = self._ip.link_lookup(ifname=name)
        if not found:
            raise OSError(f"there is no interface {name!r}")
        return int(found[0])

    def add_veth(
        self, name: str, peer: str, peer_namespace: str | None = None, mtu: int | None = None
    ) -> None:
        """A veth pair; the peer is born in the other namespace, so it never shows here."""
        far: dict[str, Any] = {"ifname": peer} | ({"mtu": mtu} if mtu else {})
        with contextlib.ExitStack() as stack:
            if peer_namespace is not None:
                descriptor = os.open(namespace_path(peer_namespace), os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                far["net_ns_fd"] = descriptor
            near: dict[str, Any] = {"mtu": mtu} if mtu else {}
            with _already(17):  # EEXIST
                self._ip.link("add", ifname=name, kind="veth", peer=far, **near)

    def set_up(self, name: str) -> None:
        self._ip.link("set", index=self.index(name), state="up")

    def delete_link(self, name: str) -> None:
        found = self._ip.link_lookup(ifname=name)
        if found:
            with _already(19):  # ENODEV
                self._ip.link("del", index=found[0])

    def add_address(self, name: str, address: Address, length: int) -> None:
        """IPv6 addresses are usable at once (no duplicate address detection)."""
        extra: dict[str, Any] = {"flags": 0x02} if address.version == 6 else {}  # IFA_F_NODAD
        with _already(17):
            self._ip.addr("add", index=self.index(name), address=str(address), prefixlen=length, **extra)

    def delete_address(self, name: str, address: Address, length: int) -> None:
        with _already(99):  # EADDRNOTAVAIL
            self._ip.addr("del", index=self.index(name), address=str(address), prefixlen=length)

    def set_neighbour(self, name: str, address: Address, mac: str) -> None:
        """A permanent neighbour entry; takes the place of a learned one."""
        self._ip.neigh(
            "replace",
            dst=str(address),
            lladdr=mac,
            ifindex=self.index(name),
            state=0x80,  # NUD_PERMANENT
            family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
        )


@contextlib.contextmanager
def _already(*numbers: int) -> Iterator[None]:
    """Swallow the kernel's errors that only say that it is so already."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in numbers:
            raise OSError(error.code, str(error)) from error


@contextlib.contextmanager
def link_writer() -> Iterator[LinkWriter]:
    """Open a writer in the calling thread's network namespace."""
    from pyroute2 import IPRoute

    with IPRoute(ext_ack=True, strict_check=True) as ip:
        yield LinkWriter(ip)


def set_sysctl(name: str, value: str) -> None:
    """Write /proc/sys/`name` (slashes) in the calling thread's network namespace. Raises OSError."""
    Path("/proc/sys", name).write_text(value, encoding="ascii")
