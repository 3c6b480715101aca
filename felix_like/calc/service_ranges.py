"""The ranges that services' addresses come from, and how they are advertised (BGPConfiguration default)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from felix_like.calc.snapshot import Snapshot
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import LocalNode


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRanges:
    """Make it with `service_ranges`."""

    cluster: tuple[Prefix, ...] = ()
    external: tuple[Prefix, ...] = ()
    load_balancer: tuple[Prefix, ...] = ()
    aggregated: bool = True
    """False: ranges of load balancers are not advertised, each address is on its own."""

    def __iter__(self) -> Iterator[Prefix]:
        """Every range, each once."""
        return iter(dict.fromkeys((*self.cluster, *self.external, *self.load_balancer)))

    @property
    def whole(self) -> tuple[Prefix, ...]:
        """Those that every node advertises as they are. Single addresses go by their services' policy."""
        ranges = (*self.cluster, *self.external, *(self.load_balancer if self.aggregated else ()))
        return tuple(dict.fromkeys(cidr for cidr in ranges if not cidr.is_host))


def service_ranges(snapshot: Snapshot, local: LocalNode) -> ServiceRanges:
    """What the default BGPConfiguration says; CALICO_ADVERTISE_CLUSTER_IPS wins over serviceClusterIPs."""
    default = snapshot.bgp_configurations.get("default")
    cluster = local.cluster_ips
    if default is None:
        return ServiceRanges(cluster=cluster or ())
    return ServiceRanges(
        cluster=default.service_cluster_ips if cluster is None else cluster,
        external=default.service_external_ips,
        load_balancer=default.service_load_balancer_ips,
        aggregated=default.load_balancer_aggregation,
    )


def covering(ranges: tuple[Prefix, ...], address: Address) -> Prefix | None:
    """The most specific of the ranges that the address lies in."""
    return max((c for c in ranges if c.contains(address)), key=lambda c: c.length, default=None)
