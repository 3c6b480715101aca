"""What decides about services, but for the services themselves: what the datastore says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from felix_like.calc.advertise import Communities
from felix_like.calc.cluster import usable_address
from felix_like.calc.kubernetes import EXCLUDED, is_excluded
from felix_like.calc.service_ranges import ServiceRanges
from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.desired import LocalNode
from felix_like.model.service import Service


class Use(Enum):
    """What an address is to its service: its name for people, and the list of ranges it must lie in."""

    CLUSTER = ("cluster IP", "serviceClusterIPs")
    EXTERNAL = ("external IP", "serviceExternalIPs")
    LOAD_BALANCER = ("load balancer IP", "serviceLoadBalancerIPs")

    def of(self, service: Service) -> tuple[Address, ...]:
        if self is Use.CLUSTER:
            return service.cluster_ips
        return service.external_ips if self is Use.EXTERNAL else service.load_balancer_ips

    def among(self, ranges: ServiceRanges) -> tuple[Prefix, ...]:
        if self is Use.CLUSTER:
            return ranges.cluster
        return ranges.external if self is Use.EXTERNAL else ranges.load_balancer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRules:
    """Make it with `service_rules`."""

    ranges: ServiceRanges
    excluded: str = ""
    """Why this node advertises no service at all; empty: it does."""
    next_hops: Mapping[IpVersion, Address] = field(default_factory=dict)
    """This node's own addresses; none while it has no usable Node resource."""
    unexported: tuple[tuple[Prefix, str], ...] = ()
    """CIDR and name of the pools with disableBGPExport."""
    community_rules: tuple[tuple[Prefix, frozenset[tuple[int, ...]]], ...] = ()
    communities: Communities = field(compare=False)


def service_rules(snapshot: Snapshot, local: LocalNode, ranges: ServiceRanges) -> ServiceRules:
    """What the datastore says of services. The Calico Node's label counts, and Kubernetes' too."""
    node = snapshot.nodes.get(local.name)
    communities = Communities(snapshot, local.name)
    return ServiceRules(
        ranges=ranges,
        excluded=EXCLUDED if node is not None and is_excluded(node.labels) else "",
        next_hops={
            address.version: address
            for address in (node.addresses if node is not None else ())
            if usable_address(address)
        },
        unexported=tuple(
            sorted((pool.cidr, pool.name) for pool in snapshot.pools.values() if pool.disable_bgp_export)
        ),
        community_rules=tuple(communities.rules),
        communities=communities,
    )
