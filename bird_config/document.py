"""The speaker's neighbors as values: what a configuration file says, before it has a syntax."""

from __future__ import annotations

from dataclasses import dataclass, field

from felix_like.model.address import Address, Asn, IpVersion
from felix_like.model.verdict import Refusal

SMALL_MESH = 24
"""With more neighbors than this the speaker refuses a file with a hold time below `SHORTEST_HOLD`: reading
and deciding for all of them may take seconds, and sessions would drop for no fault of the peer."""
SHORTEST_HOLD = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighborConfig:
    """One neighbor as the speaker's file knows it; every value is already within the speaker's bounds."""

    address: Address
    name: str
    """Calico's protocol name, used as the description."""
    router_id: str
    """Dotted quad (RFC 6286)."""
    local_address: Address
    local_asn: Asn
    asn: Asn
    hold_time: int
    """Seconds; 0 or 3 to 65535 (RFC 4271 section 4.2)."""
    passive: bool
    connect: int
    """TCP port at the peer."""
    listen: int
    """TCP port at `local_address`."""
    password: bytes | None = field(default=None, repr=False)
    """TCP MD5 key (RFC 2385): 1 to 80 octets."""
    minimum_ttl: int | None = None
    """Least TTL accepted from the peer (GTSM, RFC 5082), which makes us send 255; None: off."""
    families: tuple[IpVersion, ...] = ()
    """Unicast families offered, ascending."""
    restart_time: int = 0
    """Seconds of graceful restart offered, up to 4095 (RFC 4724); 0: not offered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerConfig:
    """The whole file, sorted by neighbor name. Equal values render to equal bytes."""

    node: str
    neighbors: tuple[NeighborConfig, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    """Peers that no speaker could be told about, and why; they are not in the file."""
