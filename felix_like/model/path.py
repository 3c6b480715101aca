"""One NLRI from one peer, with its attributes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.verdict import Origin, Validity

SegmentKind = Literal["sequence", "set", "confed-sequence", "confed-set"]


class OriginCode(IntEnum):
    """The ORIGIN attribute; lower is preferred (RFC 4271 section 5.1.1)."""

    IGP = 0
    EGP = 1
    INCOMPLETE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The path attributes of RFC 4271 section 5, shared by all NLRI of an UPDATE."""

    next_hop: Address
    origin: OriginCode = OriginCode.IGP
    as_path: tuple[tuple[SegmentKind, tuple[Asn, ...]], ...] = ()
    med: int | None = None
    local_pref: int | None = None
    atomic_aggregate: bool = False
    communities: tuple[str, ...] = ()
    """`65000:1` (RFC 1997), in the order received."""
    large_communities: tuple[str, ...] = ()
    """`65000:1:2` (RFC 8092)."""
    originator_id: str | None = None
    """Dotted quad: router ID of the node a reflected path came from (RFC 4456)."""
    cluster_list: tuple[str, ...] = ()

    @property
    def as_path_length(self) -> int:
        """A set counts as one, confederation segments as none (RFC 4271 section 9.1.2.2 a, RFC 5065)."""
        return sum(
            len(asns) if kind == "sequence" else 1
            for kind, asns in self.as_path
            if kind in ("sequence", "set")
        )

    @property
    def asns(self) -> tuple[Asn, ...]:
        return tuple(asn for _, segment in self.as_path for asn in segment)

    @property
    def neighbor_as(self) -> Asn | None:
        """The AS the path was received from: first of the first sequence; None for a local path."""
        if self.as_path and self.as_path[0][0] == "sequence" and self.as_path[0][1]:
            return self.as_path[0][1][0]
        return None


NOT_JUDGED = Origin(Validity.UNKNOWN, "not judged yet")


@dataclass(frozen=True, slots=True)
class Path:
    """A route learned from a peer: an entry of Adj-RIB-In."""

    prefix: Prefix
    peer: Address
    attributes: Attributes
    origin: Origin = NOT_JUDGED
    """Origin validation's verdict, with its reason."""
    rejection: str | None = None
    """Why import policy refuses it; None: it may take part in the decision process."""
    stale: bool = False
    """Kept over the peer's graceful restart (RFC 4724 section 4.2)."""
