"""rtnetlink(7) route messages as octets: pure functions, no socket.

Layouts are those of linux/netlink.h and linux/rtnetlink.h; everything is in host byte order except addresses.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from felix_like.model.address import Address, Prefix
from felix_like.model.desired import KernelNextHop, Route, RouteKey

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26

NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP_INTR: Final = 0x010
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1

RTN_UNICAST: Final = 1
RTN_LOCAL: Final = 2
RTN_BLACKHOLE: Final = 6
ROUTE_TYPES: Final = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
}
_TYPE_OF: Final = {"unicast": RTN_UNICAST, "blackhole": RTN_BLACKHOLE}
RTM_F_CLONED: Final = 0x200
RTM_F_LOOKUP_TABLE: Final = 0x1000
RTM_F_FIB_MATCH: Final = 0x2000
RTNH_F_ONLINK: Final = 4
_RT_SCOPE_LINK: Final = 253
_RT_TABLE_COMPAT: Final = 252

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_NH_ID = (
    1, 4, 5, 6, 9, 15, 18, 30,
)  # fmt: skip

HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence number, port id."""
RTMSG: Final = struct.Struct("=8BI")
"""rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags."""
ATTRIBUTE: Final = struct.Struct("=HH")
_HEAD: Final = struct.Struct("=IHHII8BIHH")
_NEXT_HOP: Final = struct.Struct("=HBBi")
_U32: Final = struct.Struct("=I")
_ERRNO: Final = struct.Struct("=i")
_FAMILY: Final = {4: socket.AF_INET, 16: socket.AF_INET6}
_OCTETS: Final = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
_UNSPECIFIED: Final = {4: Address(bytes(4)), 16: Address(bytes(16))}

PROTOCOL_NAMES: Final = {
    1: "redirect", 2: "kernel", 3: "boot", 4: "static", 9: "ra", 11: "zebra", 12: "bird", 16: "dhcp",
    17: "mrouted", 80: "felix", 186: "bgp", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
}  # fmt: skip


class KernelRoute(NamedTuple):
    """A route as the kernel tells it. `next_hops` is sorted; weights and transient flags are left out."""

    key: RouteKey
    type: int
    protocol: int
    next_hops: tuple[KernelNextHop, ...]
    plain: bool = True
    """False: it also matches on TOS or source, or is a cached clone: never one of ours, never our key."""

    def as_wanted(self) -> Route | None:
        """The same in the model's words; None for a type that this agent never installs."""
        if not self.plain:
            return None
        if self.type == RTN_UNICAST:
            return Route(self.key, "unicast", self.protocol, self.next_hops)
        if self.type == RTN_BLACKHOLE:
            return Route(self.key, "blackhole", self.protocol)
        return None

    def __str__(self) -> str:
        hops = " ".join(f"via {hop.gateway or 'link'} dev {hop.ifindex}" for hop in self.next_hops)
        words = (
            f"protocol {PROTOCOL_NAMES.get(self.protocol, self.protocol)}",
            ROUTE_TYPES.get(self.type, "?"),
        )
        return " ".join(word for word in (*words, hops) if word)


class Message(NamedTuple):
    """One netlink message inside a received buffer: `start` and `end` bound its payload."""

    type: int
    flags: int
    sequence: int
    port: int
    start: int
    end: int


class Refused(NamedTuple):
    """The kernel's answer to the message with that sequence number; `errno` 0 is an acknowledgement."""

    sequence: int
    errno: int
    text: str
    """The kernel's extended-ack sentence, or empty."""


def attribute(kind: int, value: bytes) -> bytes:
    """One rtattr with its padding to four octets."""
    return ATTRIBUTE.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(octets: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Type, start and end of each attribute value; stops at the first one that does not fit."""
    unpack = ATTRIBUTE.unpack_from
    while start + 4 <= end:
        length, kind = unpack(octets, start)
        if length < 4 or start + length > end:
            return
        yield kind & 0x3FFF, start + 4, start + length
        start += (length + 3) & ~3


def messages(octets: bytes) -> Iterator[Message]:
    """The messages in one received buffer; stops at the first one that does not fit."""
    start, size = 0, len(octets)
    unpack = HEADER.unpack_from
    while start + 16 <= size:
        length, kind, flags, sequence, port = unpack(octets, start)
        if length < 16 or start + length > size:
            return
        yield Message(kind, flags, sequence, port, start + 16, start + length)
        start += (length + 3) & ~3


def parse_error(octets: bytes, message: Message) -> Refused:
    """An NLMSG_ERROR; with NETLINK_CAP_ACK only the header of the request follows the number."""
    if message.end - message.start < 20:
        return Refused(message.sequence, errno.EPROTO, "the kernel's answer is cut short")
    (number,) = _ERRNO.unpack_from(octets, message.start)
    text = ""
    if message.flags & _NLM_F_ACK_TLVS:
        start = message.start + 20
        if not message.flags & _NLM_F_CAPPED and number:
            (length,) = _U32.unpack_from(octets, message.start + 4)
            start = message.start + 4 + ((length + 3) & ~3)
        for kind, first, last in attributes(octets, start, message.end):
            if kind == _NLMSGERR_ATTR_MSG:
                text = octets[first:last].rstrip(b"\0").decode("utf-8", "replace")
    return Refused(message.sequence, -number, text)


def _gateway(gateway: Address, octets: int) -> bytes:
    if len(gateway) == octets:
        return attribute(RTA_GATEWAY, gateway)
    return attribute(RTA_VIA, struct.pack("=H", _FAMILY[len(gateway)]) + gateway)  # RFC 5549: IPv4 over IPv6


@lru_cache(maxsize=4096)
def _tail(
    octets: int, priority: int, table: int, next_hops: tuple[KernelNextHop, ...], listed: bool
) -> bytes:
    """All attributes but the destination: the same octets for every prefix with the same next hops.

    `listed`: write even a single next hop as a list.
    """
    parts = [attribute(RTA_PRIORITY, _U32.pack(priority))]
    if table > 255:
        parts.append(attribute(RTA_TABLE, _U32.pack(table)))
    if len(next_hops) == 1 and not listed:
        hop = next_hops[0]
        if hop.gateway is not None:
            parts.append(_gateway(hop.gateway, octets))
        parts.append(attribute(RTA_OIF, _U32.pack(hop.ifindex)))
    elif next_hops:
        hops = b""
        for hop in next_hops:
            via = b"" if hop.gateway is None else _gateway(hop.gateway, octets)
            hops += _NEXT_HOP.pack(8 + len(via), RTNH_F_ONLINK if hop.onlink else 0, 0, hop.ifindex) + via
        parts.append(attribute(RTA_MULTIPATH, hops))
    return b"".join(parts)


def pack_route(kind: int, flags: int, sequence: int, route: Route) -> bytes:
    """RTM_NEWROUTE or RTM_DELROUTE of one route, with nothing left to match by chance.

    A delete names type, scope, protocol, metric, table and next hops, so it only hits a route of ours. In
    IPv6 a delete without gateway would take all siblings along, whoever put them there. In IPv4 a single next
    hop would also match an ECMP route that begins with it (fib_nh_match), and a list of one does not.
    """
    (network, length), priority, table = route.key
    octets = len(network)
    hops = route.next_hops
    tail = _tail(octets, priority, table, hops, kind == RTM_DELROUTE and octets == 4)
    scope = 0
    if hops and octets == 4 and hops[0].gateway is None and all(hop.gateway is None for hop in hops):
        scope = _RT_SCOPE_LINK
    return (
        _HEAD.pack(
            32 + octets + len(tail),
            kind,
            flags,
            sequence,
            0,
            _FAMILY[octets],
            length,
            0,
            0,
            table if table < 256 else _RT_TABLE_COMPAT,
            route.protocol,
            scope,
            _TYPE_OF[route.kind],
            RTNH_F_ONLINK if len(hops) == 1 and hops[0].onlink else 0,
            4 + octets,
            RTA_DST,
        )
        + network
        + tail
    )


CREATE: Final = (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL)
"""Add where nobody has a route with this prefix, metric and table."""
APPEND: Final = (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND)
"""Add beside what is there (IPv6: as a further next hop)."""
REPLACE: Final = (RTM_NEWROUTE, NLM_F_REQUEST | NLM_F_REPLACE)
"""Take the place of what is there, in one step; fails where nothing is. IPv6: of all its next hops."""
DELETE: Final = (RTM_DELROUTE, NLM_F_REQUEST)
Operation = tuple[int, int]


def pack_batch(requests: Sequence[tuple[Operation, Route]]) -> bytes:
    """Messages numbered from 1; only the last asks for an acknowledgement (errors come for each anyway)."""
    last = len(requests)
    parts = [
        pack_route(kind, flags if number < last else flags | NLM_F_ACK, number, route)
        for number, ((kind, flags), route) in enumerate(requests, 1)
    ]
    return b"".join(parts)


def pack_dump(family: int, protocol: int = 0, table: int = 0, sequence: int = 1) -> bytes:
    """RTM_GETROUTE dump that the kernel filters itself (NETLINK_GET_STRICT_CHK); 0 means any."""
    extra = attribute(RTA_TABLE, _U32.pack(table)) if table else b""
    head = HEADER.pack(28 + len(extra), RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
    return (
        head
        + RTMSG.pack(family, 0, 0, 0, table if table < 256 else _RT_TABLE_COMPAT, protocol, 0, 0, 0)
        + extra
    )


def pack_lookup(address: Address, sequence: int = 1) -> bytes:
    """RTM_GETROUTE of one address that answers with the matching FIB entry, not with a cached path."""
    octets = len(address)
    flags = RTM_F_FIB_MATCH | (RTM_F_LOOKUP_TABLE if octets == 4 else 0)  # IPv6 refuses the second one
    head = HEADER.pack(32 + octets, RTM_GETROUTE, NLM_F_REQUEST, sequence, 0)
    body = RTMSG.pack(_FAMILY[octets], octets * 8, 0, 0, 0, 0, 0, 0, flags)
    return head + body + attribute(RTA_DST, address)


@lru_cache(maxsize=8192)
def _single(gateway: bytes | None, ifindex: int, onlink: bool) -> tuple[KernelNextHop, ...]:
    return (KernelNextHop(None if gateway is None else Address(gateway), ifindex, onlink),)


def hop_order(hop: KernelNextHop) -> tuple[bytes, int, bool]:
    return (hop.gateway or b"", hop.ifindex, hop.onlink)


def _multipath(octets: bytes) -> tuple[KernelNextHop, ...]:
    hops = []
    start, end = 0, len(octets)
    while start + 8 <= end:
        length, flags, _hops, ifindex = _NEXT_HOP.unpack_from(octets, start)
        if length < 8 or start + length > end:
            break
        gateway = None
        for kind, first, last in attributes(octets, start + 8, start + length):
            if kind == RTA_GATEWAY:
                gateway = Address(octets[first:last])
            elif kind == RTA_VIA:
                gateway = Address(octets[first + 2 : last])
        hops.append(KernelNextHop(gateway, ifindex, bool(flags & RTNH_F_ONLINK)))
        start += (length + 3) & ~3
    return tuple(sorted(hops, key=hop_order))


_multipath_cached = lru_cache(maxsize=4096)(_multipath)


def parse_route(octets: bytes, start: int, end: int) -> KernelRoute | None:  # noqa: C901 (one loop, for speed)
    """The payload of RTM_NEWROUTE or RTM_DELROUTE; None for another family or a message cut short."""
    if end - start < 12:
        return None
    family, length, source, tos, table, protocol, _scope, rtype, flags = RTMSG.unpack_from(octets, start)
    size = _OCTETS.get(family)
    if size is None or length > size * 8:
        return None
    network: bytes = _UNSPECIFIED[size]
    priority = ifindex = 0
    gateway: bytes | None = None
    hops: tuple[KernelNextHop, ...] | None = None
    unpack = ATTRIBUTE.unpack_from
    start += 12
    try:
        while start + 4 <= end:  # written out: this loop is the cost of a dump
            width, kind = unpack(octets, start)
            if width < 4 or start + width > end:
                return None
            if kind == RTA_DST:
                network = octets[start + 4 : start + width]
            elif kind == RTA_PRIORITY:
                (priority,) = _U32.unpack_from(octets, start + 4)
            elif kind == RTA_GATEWAY:
                gateway = octets[start + 4 : start + width]
            elif kind == RTA_OIF:
                (ifindex,) = _U32.unpack_from(octets, start + 4)
            elif kind == RTA_TABLE:
                (table,) = _U32.unpack_from(octets, start + 4)
            elif kind & 0x3FFF == RTA_MULTIPATH:
                hops = _multipath_cached(octets[start + 4 : start + width])
            elif kind == RTA_VIA:
                gateway = octets[start + 6 : start + width]
            start += (width + 3) & ~3
    except struct.error:
        return None
    if len(network) != size:
        return None
    if hops is None:
        # A blackhole in IPv6 is told with "dev lo"; it has no next hop all the same.
        plain_hop = ifindex and (rtype in (RTN_UNICAST, RTN_LOCAL))
        hops = _single(gateway, ifindex, bool(flags & RTNH_F_ONLINK)) if plain_hop else ()
    key = RouteKey(Prefix(Address(network), length), priority, table)
    return KernelRoute(key, rtype, protocol, hops, not (tos or source or flags & RTM_F_CLONED))
