"""Who answers at which address: the kernel's neighbour tables (ARP, RFC 4861), as octets and as a table."""

from __future__ import annotations

import struct
from typing import Final

from agent.netlink.rtnetlink import HEADER, NLM_F_DUMP, NLM_F_REQUEST, attributes
from agent.netlink.sockets import dump_replies
from felix_like.model.address import Address

RTM_NEWNEIGH: Final = 28
RTM_GETNEIGH: Final = 30
_NDMSG: Final = struct.Struct("=BBHiHBB")
"""ndmsg: family, padding, padding, interface index, state, flags, type."""
_NDA_DST, _NDA_LLADDR = 1, 2
_KNOWN: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT: there is a link-layer address to send to."""

Station = tuple[int, bytes]
"""Interface index and link-layer address: where a frame goes."""


def pack_dump(family: int = 0) -> bytes:
    body = _NDMSG.pack(family, 0, 0, 0, 0, 0, 0)
    return HEADER.pack(16 + len(body), RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body


def parse(octets: bytes, start: int, end: int) -> tuple[Address, Station] | None:
    """One entry; None for one that is incomplete, of another kind or cut short."""
    if end - start < _NDMSG.size:
        return None
    _, _, _, index, state, _, _ = _NDMSG.unpack_from(octets, start)
    address, hardware = b"", b""
    for kind, first, last in attributes(octets, start + _NDMSG.size, end):
        if kind == _NDA_DST:
            address = octets[first:last]
        elif kind == _NDA_LLADDR:
            hardware = octets[first:last]
    if not state & _KNOWN or not hardware or len(address) not in (4, 16):
        return None
    return Address(address), (index, hardware)


def neighbours() -> dict[tuple[Address, int], Station]:
    """Address and interface index -> its station, in the calling thread's namespace. Raises OSError."""
    found: dict[tuple[Address, int], Station] = {}
    for octets, kind, start, end in dump_replies(pack_dump()):
        if kind == RTM_NEWNEIGH and (entry := parse(octets, start, end)) is not None:
            address, station = entry
            found[(address, station[0])] = station
    return found
