"""IPAM ownership: blocks and block affinities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from felix_like.model.address import Address, Prefix


class AffinityState(StrEnum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    PENDING_DELETION = "pendingDeletion"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAffinity:
    """A node's claim on a block (`/calico/ipam/v2/host/<node>/ipv4/block/<cidr>`)."""

    node: str
    cidr: Prefix
    state: AffinityState
    pod_cidr: bool = False
    """It is the node's podCIDR (host-local IPAM): no block of IPAM's, so of any size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """An IPAM block, reduced to who holds what (`/calico/ipam/v2/assignment/ipv4/block/<cidr>`).

    The full JSON stays in the datastore layer, where unknown fields survive a read-modify-write.
    """

    cidr: Prefix
    affinity: str | None
    """Name of the node the block is affine to; None when the affinity was given up or is virtual."""
    borrowed: Mapping[Address, str] = field(default_factory=dict)
    """Addresses that the allocation attributes give to a node other than `affinity`."""
    in_use: int = 0
    """Number of allocated addresses."""

    @property
    def size(self) -> int:
        return int(1 << (self.cidr.bits - self.cidr.length))
