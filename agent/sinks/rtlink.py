"""rtnetlink(7) link and address messages as octets: pure functions, no socket."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from agent.netlink.rtnetlink import (
    HEADER,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    KernelRoute,
    Message,
    attributes,
    parse_route,
)
from felix_like.model.address import Address

_IFINFO: Final = struct.Struct("=BBHiII")
_IFADDR: Final = struct.Struct("=BBBBI")
_U32: Final = struct.Struct("=I")
_IFF_UP: Final = 0x1
_IFF_RUNNING: Final = 0x40
_IFLA_IFNAME, _IFLA_MTU = 3, 4
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NLM_F_REPLACE: Final = 0x100


class LinkSeen(NamedTuple):
    """A network interface as the kernel tells it."""

    ifindex: int
    name: str
    up: bool
    """Set up by its administrator (IFF_UP)."""
    running: bool
    mtu: int
    gone: bool = False


class AddressSeen(NamedTuple):
    """An address of an interface, with its prefix length in bits."""

    ifindex: int
    address: Address
    length: int
    scope: int
    """0 global, 253 link, 254 host."""
    gone: bool = False


class RouteSeen(NamedTuple):
    """A route that came, went (`gone`) or took the place of another one (`replaced`)."""

    route: KernelRoute
    gone: bool
    replaced: bool


class Overrun(NamedTuple):
    """Events were lost: only reading the tables back tells what is there."""


Event = LinkSeen | AddressSeen | RouteSeen | Overrun


def pack_dump_links() -> bytes:
    body = _IFINFO.pack(0, 0, 0, 0, 0, 0)
    return HEADER.pack(16 + len(body), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body


def pack_dump_addresses(family: int = 0) -> bytes:
    body = _IFADDR.pack(family, 0, 0, 0, 0)
    return HEADER.pack(16 + len(body), RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body


def parse_link(octets: bytes, start: int, end: int, gone: bool = False) -> LinkSeen | None:
    if end - start < 16:
        return None
    family, _, _, index, flags, _ = _IFINFO.unpack_from(octets, start)
    if family:  # a bridge port telling of itself, not the interface
        return None
    name, mtu = "", 0
    for kind, first, last in attributes(octets, start + 16, end):
        if kind == _IFLA_IFNAME:
            name = octets[first:last].rstrip(b"\0").decode("utf-8", "replace")
        elif kind == _IFLA_MTU and last - first == 4:
            (mtu,) = _U32.unpack_from(octets, first)
    return LinkSeen(index, name, bool(flags & _IFF_UP), bool(flags & _IFF_RUNNING), mtu, gone)


def parse_address(octets: bytes, start: int, end: int, gone: bool = False) -> AddressSeen | None:
    if end - start < 8:
        return None
    family, length, _flags, scope, index = _IFADDR.unpack_from(octets, start)
    address: bytes = b""
    for kind, first, last in attributes(octets, start + 8, end):
        # On a point-to-point link IFA_ADDRESS is the other end; IFA_LOCAL, where given, is this one.
        if kind == _IFA_LOCAL or (kind == _IFA_ADDRESS and not address):
            address = octets[first:last]
    if len(address) != {2: 4, 10: 16}.get(family):
        return None
    return AddressSeen(index, Address(address), length, scope, gone)


def parse_event(octets: bytes, message: Message) -> Event | None:
    """One notification; None for what this agent has no use for."""
    kind, start, end = message.type, message.start, message.end
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        route = parse_route(octets, start, end)
        return (
            None
            if route is None
            else RouteSeen(
                route, kind == RTM_DELROUTE, kind == RTM_NEWROUTE and bool(message.flags & _NLM_F_REPLACE)
            )
        )
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        return parse_link(octets, start, end, kind == RTM_DELLINK)
    if kind in (RTM_NEWADDR, RTM_DELADDR):
        return parse_address(octets, start, end, kind == RTM_DELADDR)
    return None
