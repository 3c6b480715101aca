"""The JSON of Calico's values, field by field as it is stored. Only what is read; the rest is skipped.

Go writes empty lists as null and leaves empty strings out, so nearly everything may be None.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct


class Shape(Struct, gc=False):
    """Base: plain values, never part of a reference cycle."""


class Metadata(Shape):
    name: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class NodeBgp(Shape):
    asNumber: int | str | None = None
    ipv4Address: str | None = None
    ipv6Address: str | None = None
    routeReflectorClusterID: str | None = None


class OrchRef(Shape):
    nodeName: str | None = None
    orchestrator: str | None = None


class NodeSpec(Shape):
    bgp: NodeBgp | None = None
    orchRefs: list[OrchRef] | None = None


class NodeStatus(Shape):
    podCIDRs: list[str] | None = None


class NodeResource(Shape):
    metadata: Metadata | None = None
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class IPPoolSpec(Shape):
    cidr: str
    blockSize: int | None = None
    ipipMode: str | None = None
    vxlanMode: str | None = None
    natOutgoing: bool | None = None
    disabled: bool | None = None
    disableBGPExport: bool | None = None
    nodeSelector: str | None = None
    allowedUses: list[str] | None = None
    assignmentMode: str | None = None


class IPPoolResource(Shape):
    spec: IPPoolSpec
    metadata: Metadata | None = None


class SecretKeyRef(Shape):
    name: str
    key: str


class Password(Shape):
    secretKeyRef: SecretKeyRef | None = None


class Cidr(Shape):
    cidr: str


class Community(Shape):
    name: str
    value: str


class PrefixAdvertisement(Shape):
    cidr: str
    communities: list[str] | None = None


class BgpConfigurationSpec(Shape):
    nodeToNodeMeshEnabled: bool | None = None
    asNumber: int | str | None = None
    listenPort: int | None = None
    logSeverityScreen: str | None = None
    communities: list[Community] | None = None
    prefixAdvertisements: list[PrefixAdvertisement] | None = None
    serviceClusterIPs: list[Cidr] | None = None
    serviceExternalIPs: list[Cidr] | None = None
    serviceLoadBalancerIPs: list[Cidr] | None = None
    serviceLoadBalancerAggregation: str | None = None
    nodeMeshPassword: Password | None = None
    nodeMeshMaxRestartTime: str | None = None


class BgpConfigurationResource(Shape):
    metadata: Metadata | None = None
    spec: BgpConfigurationSpec | None = None


class BgpPeerSpec(Shape):
    node: str | None = None
    nodeSelector: str | None = None
    peerIP: str | None = None
    asNumber: int | str | None = None
    peerSelector: str | None = None
    localWorkloadSelector: str | None = None
    localASNumber: int | str | None = None
    keepOriginalNextHop: bool | None = None
    nextHopMode: str | None = None
    password: Password | None = None
    sourceAddress: str | None = None
    maxRestartTime: str | None = None
    keepaliveTime: str | None = None
    ttlSecurity: int | None = None
    numAllowedLocalASNumbers: int | None = None
    filters: list[str] | None = None
    reachableBy: str | None = None
    reversePeering: str | None = None


class BgpPeerResource(Shape):
    metadata: Metadata | None = None
    spec: BgpPeerSpec | None = None


class ClusterInformationSpec(Shape):
    clusterGUID: str | None = None
    calicoVersion: str | None = None
    datastoreReady: bool | None = None


class ClusterInformationResource(Shape):
    metadata: Metadata | None = None
    spec: ClusterInformationSpec | None = None


class Affinity(Shape):
    state: str | None = None
    deleted: bool | str | None = None


class Attribute(Shape):
    handle_id: str | None = None
    secondary: dict[str, str | None] | None = None


class Block(Shape):
    cidr: str
    affinity: str | None = None
    hostAffinity: Any = None
    """Deprecated: a bare node name."""
    allocations: list[int | None] | None = None
    attributes: list[Attribute] | None = None
