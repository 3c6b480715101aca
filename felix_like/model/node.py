"""A Calico Node as the calculation needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from felix_like.model.address import Address, Asn, IpVersion, Prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of the cluster (libcalico-go/lib/apis/internalapi/node.go)."""

    name: str
    ipv4: Address | None = None
    ipv4_network: Prefix | None = None
    """The subnet written behind the address; the host route when none was written."""
    ipv6: Address | None = None
    ipv6_network: Prefix | None = None
    asn: Asn | None = None
    """None: the cluster's own (BGPConfiguration default)."""
    labels: Mapping[str, str] = field(default_factory=dict)
    route_reflector_cluster_id: str = ""
    """Not empty: the node is a route reflector (RFC 4456) and takes no part in the mesh."""
    router_id: str | None = None
    """A dotted quad when CALICO_ROUTER_ID is one on that node: Tortie's annotation `tortie/router-id`."""
    kubernetes_name: str | None = None
    """Its name in Kubernetes, where spec.orchRefs says that it has one."""
    pod_cidrs: tuple[Prefix, ...] = ()
    """`status.podCIDRs`: what host-local IPAM allocates from, where somebody wrote it there."""

    def address(self, version: IpVersion) -> Address | None:
        return self.ipv4 if version == 4 else self.ipv6

    def network(self, version: IpVersion) -> Prefix | None:
        return self.ipv4_network if version == 4 else self.ipv6_network

    @property
    def addresses(self) -> tuple[Address, ...]:
        return tuple(a for a in (self.ipv4, self.ipv6) if a is not None)
