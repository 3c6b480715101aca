"""The checks of RFC 4271 section 6.3 and RFC 7606 that stand between an UPDATE and the agent.

ExaBGP checks lengths and flags of the attributes it knows; what a value means is checked here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.speaker.nlri import Packed, split
from felix_like.model.address import Address, IpVersion

ORIGIN, AS_PATH, NEXT_HOP, LOCAL_PREF, MP_REACH, MP_UNREACH = 1, 2, 3, 5, 14, 15
_EXTENDED, _OPTIONAL, _TRANSITIVE = 0x10, 0x80, 0x40
_IPV6_UNICAST = b"\x00\x02\x01"


@dataclass(slots=True)
class Pieces:
    """The path attributes with IPv6 unicast's NLRI taken out."""

    attributes: bytes = b""
    """What is left, for ExaBGP to decode; the same octets mean the same attributes."""
    next_hop: bytes | None = None
    """Of MP_REACH_NLRI: the global address."""
    reach: list[Packed] | None = None
    unreach: list[Packed] | None = None
    fault: str | None = None
    codes: set[int] = field(default_factory=set)


def take_apart(raw: bytes, ipv6: bool) -> Pieces:
    """Cut IPv6 unicast MP_REACH_NLRI and MP_UNREACH_NLRI (RFC 4760) out of the path attributes.

    What is not well formed stays where it is: ExaBGP's decoder knows the right error. Raises
    ValueError for NLRI that cannot be read (RFC 7606 section 5.3: the session must be reset).
    """
    pieces = Pieces()
    kept: list[bytes] = []
    at, end = 0, len(raw)
    while at + 3 <= end:
        flags, code = raw[at], raw[at + 1]
        if flags & _EXTENDED:
            if at + 4 > end:
                break
            start, length = at + 4, int.from_bytes(raw[at + 2 : at + 4], "big")
        else:
            start, length = at + 3, raw[at + 2]
        after = start + length
        if after > end:
            break
        if not (ipv6 and _take(pieces, flags, code, raw[start:after])):
            kept.append(raw[at:after])
            if code == ORIGIN and length != 1:
                pieces.fault = "ORIGIN does not have one octet"
        pieces.codes.add(code)
        at = after
    kept.append(raw[at:])
    pieces.attributes = b"".join(kept)
    return pieces


def _take(pieces: Pieces, flags: int, code: int, body: bytes) -> bool:
    if (
        code not in (MP_REACH, MP_UNREACH)
        or code in pieces.codes
        or flags & (_OPTIONAL | _TRANSITIVE) != _OPTIONAL
        or not body.startswith(_IPV6_UNICAST)
    ):
        return False
    if code == MP_UNREACH:
        pieces.unreach = split(6, body[3:])
        return True
    if len(body) < 5 or body[3] not in (16, 32) or len(body) <= 5 + body[3]:
        return False
    pieces.next_hop = body[4:20]
    pieces.reach = split(6, body[5 + body[3] :])
    return True


def next_hop_fault(next_hop: Address, own: Address | None) -> str | None:
    """Why no packet may be sent to this next hop (RFC 4271 section 6.3)."""
    if not any(next_hop):
        return f"next hop {next_hop} is no address"
    if next_hop[0] >= 224 and next_hop.version == 4:
        return f"next hop {next_hop} is not a unicast address"
    if next_hop[0] == 0xFF and next_hop.version == 6:
        return f"next hop {next_hop} is not a unicast address"
    if next_hop == own:
        return f"next hop {next_hop} is our own address"
    return None


def missing(codes: set[int], version: IpVersion, is_ebgp: bool) -> str | None:
    """The mandatory attribute that is not there (RFC 7606 section 3 d)."""
    if ORIGIN not in codes:
        return "ORIGIN is missing"
    if AS_PATH not in codes:
        return "AS_PATH is missing"
    if version == 4 and NEXT_HOP not in codes:
        return "NEXT_HOP is missing"
    if not is_ebgp and LOCAL_PREF not in codes:
        return "LOCAL_PREF is missing"
    return None
