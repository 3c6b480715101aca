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


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The peer's side of an established session."""

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
