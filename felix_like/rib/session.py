"""What an established BGP session says about the peer: the negotiated part of its OPEN."""

from __future__ import annotations

from dataclasses import dataclass

from felix_like.model.address import Asn, IpVersion

DEFAULT_RESTART_TIME = 120.0
"""Seconds; RFC 4724 leaves it open, BIRD and Calico use this."""

STALE_PATH_TIME = 360.0
"""Seconds stale paths may outlive the re-establishment without an End-of-RIB: the upper bound that
RFC 4724 section 4.2 asks for. FRR's default."""

UNMARKED_WAIT = 30.0
"""Seconds to wait for the paths of a peer that does not know graceful restart, and so need not send
End-of-RIB, after our own speaker restarted."""


def dotted(quad: str) -> int:
    """A dotted quad as a number. Raises ValueError when it is none."""
    parts = quad.split(".")
    if len(parts) != 4 or not all(p.isascii() and p.isdigit() and int(p) < 256 for p in parts):
        raise ValueError(f"{quad!r} is not a dotted quad")
    a, b, c, d = map(int, parts)
    return a << 24 | b << 16 | c << 8 | d


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The peer's side of an established session. Raises ValueError for a router ID that is none."""

    router_id: str
    """Dotted quad, as in its OPEN."""
    asn: Asn
    hold_time: int = 90
    """Negotiated, in seconds."""
    families: tuple[IpVersion, ...] = (4, 6)
    """Negotiated address families (unicast)."""
    restart_time: int = 0
    """Seconds from the peer's Graceful Restart capability."""
    graceful: frozenset[IpVersion] = frozenset()
    """Families listed in the peer's Graceful Restart capability; empty: it has none."""
    forwarding: frozenset[IpVersion] = frozenset()
    """Those with the F bit: it kept forwarding over its last restart."""
    end_of_rib: frozenset[IpVersion] = frozenset()
    """Families whose End-of-RIB this session has already delivered (told at a resynchronisation)."""
    restarting: bool = False
    """The peer's OPEN had the Restart State bit: it has just begun, and waits for others' End-of-RIB."""

    def __post_init__(self) -> None:
        dotted(self.router_id)
