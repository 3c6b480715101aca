"""The JSON of Kubernetes' objects, field by field: only what the agent reads; the rest is skipped."""

from __future__ import annotations

from felix_like.datastore.shapes import Shape


class Ingress(Shape):
    ip: str | None = None
    ipMode: str | None = None


class LoadBalancer(Shape):
    ingress: list[Ingress] | None = None


class ServiceStatus(Shape):
    loadBalancer: LoadBalancer | None = None


class ServiceSpec(Shape):
    type: str | None = None
    clusterIP: str | None = None
    clusterIPs: list[str] | None = None
    externalIPs: list[str] | None = None
    loadBalancerIP: str | None = None
    externalTrafficPolicy: str | None = None


class Service(Shape):
    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class Conditions(Shape):
    ready: bool | None = None


class Endpoint(Shape):
    nodeName: str | None = None
    conditions: Conditions | None = None


class Metadata(Shape):
    labels: dict[str, str] | None = None


class EndpointSlice(Shape):
    metadata: Metadata | None = None
    addressType: str | None = None
    endpoints: list[Endpoint] | None = None


class NodeSpec(Shape):
    podCIDR: str | None = None
    podCIDRs: list[str] | None = None


class Node(Shape):
    metadata: Metadata | None = None
    spec: NodeSpec | None = None
