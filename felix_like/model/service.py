"""What the Kubernetes API says that routing depends on: services, where their endpoints are, and nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from felix_like.model.address import Address, IpVersion, Prefix

EXCLUDE_LABEL = "node.kubernetes.io/exclude-from-external-load-balancers"
"""A node with this label set to "true" advertises no service (confd's ExcludeServiceAdvertisement)."""


class ServiceId(NamedTuple):
    """What makes two values the same service."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class TrafficPolicy(StrEnum):
    """`externalTrafficPolicy`: which nodes take traffic from outside."""

    CLUSTER = "Cluster"
    LOCAL = "Local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A Service with addresses of its own (core/v1); headless ones and ExternalNames are none."""

    namespace: str
    name: str
    policy: TrafficPolicy = TrafficPolicy.CLUSTER
    cluster_ips: tuple[Address, ...] = ()
    external_ips: tuple[Address, ...] = ()
    load_balancer_ips: tuple[Address, ...] = ()
    """Those in `status.loadBalancer.ingress` that the nodes serve (ipMode VIP)."""
    requested_ip: Address | None = None
    """`spec.loadBalancerIP`: wished for, and served by nobody until it stands in the status."""
    ignored: tuple[str, ...] = ()
    """Addresses of it that are left out, each as a sentence."""

    @property
    def id(self) -> ServiceId:
        return ServiceId(self.namespace, self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSlice:
    """A part of a service's endpoints (discovery.k8s.io/v1), reduced to what this node asks of it.

    So most of the churn in a cluster gives an equal value, and is no change at all.
    """

    namespace: str
    name: str
    service: str
    """Of the same namespace."""
    version: IpVersion
    here: int = 0
    """Ready endpoints on this node."""
    elsewhere: bool = False
    """There is a ready endpoint on another node, or on none."""

    @property
    def service_id(self) -> ServiceId:
        return ServiceId(self.namespace, self.service)


@dataclass(frozen=True, slots=True, kw_only=True)
class KubernetesNode:
    """A Node of Kubernetes (core/v1), reduced to what routing depends on."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    pod_cidrs: tuple[Prefix, ...] = ()
    """`spec.podCIDRs`: where its pods' addresses come from with host-local IPAM."""
