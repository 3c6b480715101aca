"""What should be true on this node: the calculation's whole answer to the datastore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.bgp import Peer
from felix_like.model.node import Node
from felix_like.model.path import Attributes
from felix_like.model.verdict import Refusal

PROTO_BGP = 186
"""rtnetlink's RTPROT_BGP: all our routes, learned ones and blackholes. Ours after amnesia, too.

Not Felix's number, 80: Felix beside us takes every route of it in the main table for its own, and deletes
what it does not want (felix/routetable/ownershippol).
"""
PROTO_BIRD = 12
"""rtnetlink's RTPROT_BIRD: what calico-node's BIRD writes, and leaves when it goes."""

MAIN_TABLE = 254
DEFAULT_ROUTE_PRIORITY = 1024
"""BGPConfiguration ipv4NormalRoutePriority's default: leaves room below for anybody else's route."""


class RouteKey(NamedTuple):
    """What tells one kernel route from another: prefix, metric and table."""

    prefix: Prefix
    priority: int = DEFAULT_ROUTE_PRIORITY
    table: int = MAIN_TABLE


class KernelNextHop(NamedTuple):
    """Where the kernel sends packets: on-link gateway and interface index."""

    gateway: Address | None
    """None: directly connected through the interface."""
    ifindex: int
    onlink: bool = False


RouteKind = Literal["unicast", "blackhole"]


@dataclass(frozen=True, slots=True)
class Route:
    """A kernel route this agent wants. `next_hops` is sorted; several mean ECMP."""

    key: RouteKey
    kind: RouteKind
    protocol: int
    next_hops: tuple[KernelNextHop, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """Everything that follows from the datastore alone. Learned routes follow from the RIB."""

    revision: int = 0
    """The etcd revision it was calculated at."""
    node: str
    asn: Asn
    peers: Mapping[Address, Peer] = field(default_factory=dict)
    originated: Mapping[Prefix, Attributes] = field(default_factory=dict)
    """What this node advertises as its own; the next hop is its own address of the prefix's family."""
    blackholes: frozenset[Prefix] = frozenset()
    """This node's blocks: what no pod here has must not leave again by the default route."""
    refusals: tuple[Refusal, ...] = ()
    """Every No, sorted."""
    frozen: str | None = None
    """Why the answer is held back at an earlier state (datastoreReady is false); None: it is current."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNode:
    """What this node knows of itself without the datastore; constant while the agent runs."""

    name: str
    router_id: str | None = None
    """CALICO_ROUTER_ID: None for the IPv4 address, "hash" or a dotted quad."""
    prefix_limit: int = 50_000
    """Prefixes at most from one peer, where its BGPPeer does not say."""
    hold_time: int = 90
    route_priority: int = DEFAULT_ROUTE_PRIORITY
    kubernetes_name: str | None = None
    """CALICO_K8S_NODE_REF: this node's name in Kubernetes, where it is not `name`."""
    cluster_ips: tuple[Prefix, ...] | None = None
    """CALICO_ADVERTISE_CLUSTER_IPS: stands in place of the default BGPConfiguration's serviceClusterIPs."""
    use_pod_cidr: bool = False
    """USE_POD_CIDR: pods' addresses come from the nodes' podCIDRs (host-local IPAM), not from IPAM blocks."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A BGP next hop that the kernel can reach through `via` (recursive lookups already done)."""

    via: tuple[KernelNextHop, ...]


@dataclass(frozen=True, slots=True)
class Unresolved:
    reason: str


NextHopState = Resolved | Unresolved

__all__ = [
    "DEFAULT_ROUTE_PRIORITY",
    "MAIN_TABLE",
    "PROTO_BGP",
    "Desired",
    "KernelNextHop",
    "LocalNode",
    "NextHopState",
    "Node",
    "Resolved",
    "Route",
    "RouteKey",
    "Unresolved",
]
