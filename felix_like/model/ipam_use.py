"""Who uses which address: IPAM's whole state, and the cluster's pods, as garbage collection looks at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from felix_like.model.address import Address, Prefix

WINDOWS_RESERVED = "windows-reserved-ipam-handle"
"""Handle of the addresses that Calico keeps free for Windows in each block of a Windows node."""
TUNNELS = frozenset(
    {
        "ipipTunnelAddress",
        "vxlanTunnelAddress",
        "vxlanV6TunnelAddress",
        "wireguardTunnelAddress",
        "wireguardV6TunnelAddress",
    }
)
"""Attribute `type` of addresses that a node itself has taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One address that a block gives to somebody, with what its attributes say; "" for what they do not."""

    address: Address
    block: Prefix
    handle: str = ""
    sequence: int | None = None
    """The block's sequence number when it was allocated: another allocation of the address has another."""
    node: str = ""
    namespace: str = ""
    pod: str = ""
    kind: str = ""
    """Attribute `type`: tunnel addresses."""
    machine: bool = False
    """A KubeVirt machine's, or shared with a second owner during a live migration."""
    cooling: bool = False
    """Released already; Calico's IPAM keeps it back for a while before it is given out again."""

    @property
    def is_tunnel(self) -> bool:
        return self.kind in TUNNELS

    @property
    def subject(self) -> str:
        return f"address {self.address}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedBlock:
    """An IPAM block with its allocations."""

    cidr: Prefix
    owner: str | None = None
    """Node it is affine to."""
    claimed_at: str = ""
    """RFC 3339 in UTC; empty: not known (Calico before v3.32)."""
    sequence: int = 0
    """Moves with every change of the block."""
    allocations: tuple[Allocation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAffinity:
    node: str
    cidr: Prefix
    state: str
    revision: int
    """etcd's, as of the next two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredHandle:
    """How many addresses of which block a handle counts."""

    name: str
    counts: Mapping[Prefix, int]
    revision: int
    deleted: bool = False
    """Marked by a deleter of Calico's that did not finish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A WorkloadEndpoint: what a node's data plane routes."""

    namespace: str
    name: str
    node: str
    addresses: tuple[Address, ...]

    @property
    def subject(self) -> str:
        return f"WorkloadEndpoint {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IpamState:
    """What etcd holds at one revision."""

    blocks: tuple[UsedBlock, ...] = ()
    affinities: tuple[StoredAffinity, ...] = ()
    handles: tuple[StoredHandle, ...] = ()
    endpoints: Mapping[Address, Endpoint] = field(default_factory=dict)
    """By each of their addresses."""
    nodes: Mapping[str, str | None] = field(default_factory=dict)
    """Calico Nodes, with the name of the Kubernetes Node each stands for; None: it is not Kubernetes'."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """What could not be read, and why: "IPAM block 10.0.0.0/26" -> reason."""
    unreadable_blocks: frozenset[Prefix] = frozenset()
    locked: str = ""
    """Why nothing may be written, when the datastore says so; empty: it may."""
    leak_grace: float | None = None
    """Seconds, from KubeControllersConfiguration; None: it does not say."""
    unknown_grace: str = ""
    """Why it cannot be told whether it says so; empty: it can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodUse:
    """A pod, reduced to what keeps an address in use."""

    namespace: str
    name: str
    node: str = ""
    addresses: frozenset[Address] = frozenset()
    """All it has reported, those of further networks, too; empty: none yet."""
    finished: str = ""
    """Its phase when it has ended, "Succeeded" or "Failed"; empty: it has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the Kubernetes API lists, whole: never of a list that failed."""

    nodes: frozenset[str]
    pods: Mapping[tuple[str, str], PodUse]
    """By namespace and name."""
