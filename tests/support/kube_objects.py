"""Kubernetes objects for tests, as small as they can be."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from typing import Any

Object = dict[str, Any]


def service(
    name: str,
    *cluster_ips: str,
    namespace: str = "default",
    local: bool = False,
    type: str = "ClusterIP",  # noqa: A002
    external: Iterable[str] = (),
    ingress: Iterable[str] = (),
    **spec: Any,
) -> Object:
    """`local`: externalTrafficPolicy Local; `external`: externalIPs; `ingress`: load balancer addresses."""
    made: Object = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "type": type,
            "clusterIP": cluster_ips[0] if cluster_ips else "None",
            "clusterIPs": list(cluster_ips) or ["None"],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": name},
            **spec,
        },
    }
    if local:
        made["spec"]["externalTrafficPolicy"] = "Local"
    if external:
        made["spec"]["externalIPs"] = list(external)
    if ingress:
        made["status"] = {"loadBalancer": {"ingress": [{"ip": ip} for ip in ingress]}}
    return made


def endpoint_slice(
    service_name: str,
    endpoints: Mapping[str, str],
    *,
    namespace: str = "default",
    suffix: str = "abc12",
    ready: bool = True,
    family: str = "IPv4",
) -> Object:
    """`endpoints`: address -> node."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service_name}-{suffix}",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": family,
        "endpoints": [
            {"addresses": [address], "nodeName": node, "conditions": {"ready": ready, "serving": ready}}
            for address, node in endpoints.items()
        ],
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
    }


def secret(name: str, values: Mapping[str, str], *, namespace: str = "kube-system") -> Object:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": data,
    }


def node(name: str, *pod_cidrs: str, labels: Mapping[str, str] | None = None) -> Object:
    made: Object = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }
    if pod_cidrs:
        made["spec"] = {"podCIDR": pod_cidrs[0], "podCIDRs": list(pod_cidrs)}
    return made


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Object:
    labels = {"kubernetes.io/metadata.name": name, **(labels or {})}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def service_account(name: str, namespace: str = "default", labels: Mapping[str, str] | None = None) -> Object:
    metadata = {"name": name, "namespace": namespace, "labels": dict(labels or {})}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def pod(
    name: str,
    node_name: str,
    *ips: str,
    namespace: str = "default",
    labels: Mapping[str, str] | None = None,
    phase: str = "Running",
) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": dict(labels or {})},
        "spec": {"nodeName": node_name, "serviceAccountName": "default"},
        "status": {"phase": phase, "podIP": ips[0] if ips else "", "podIPs": [{"ip": ip} for ip in ips]},
    }


def network_policy(name: str, spec: Object, *, namespace: str = "default") -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
