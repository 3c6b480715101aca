"""Kubernetes' JSON -> the model's values, for the agent. Hostile by assumption: a decoder returns, always.

Shapes: core/v1 Service and Node, discovery.k8s.io/v1 EndpointSlice. `collections` gives what an informer
should follow, each with what is kept of an object: a Service has 30 fields that nobody here reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from felix_like.calc.snapshot import KubernetesResource, Malformed
from felix_like.datastore.keys import check_name, quoted
from felix_like.datastore.kube import shapes
from felix_like.datastore.kube.collection import Collection
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.desired import LocalNode
from felix_like.model.service import EndpointSlice, KubernetesNode, Service, TrafficPolicy

SERVICES = "kube/services"
ENDPOINT_SLICES = "kube/endpointslices"
NODES = "kube/nodes"
"""Prefixes of keys; no key of etcd looks like one of them."""

MAX_ADDRESSES = 256
"""Addresses of a service at most; more is no service but an attack, or a mistake."""
MAX_ENDPOINTS = 5_000
"""Endpoints of a slice at most; the API server allows 1,000."""
MAX_LABELS = 1_000
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
_VERSIONS: Mapping[str, IpVersion] = {"IPv4": 4, "IPv6": 6}
_TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")

R = TypeVar("R", bound=KubernetesResource)


def collections(local: LocalNode) -> tuple[Collection[KubernetesResource], ...]:
    """What the agent follows on node `local`. Of the Nodes only its own, unless podCIDRs are in use."""
    name = local.kubernetes_name or local.name
    return (
        Collection(
            path="/api/v1/services",
            prefix=SERVICES,
            decode=decode_service,
            trim=trim_service,
            never_empty=True,
        ),
        Collection(
            path="/apis/discovery.k8s.io/v1/endpointslices",
            prefix=ENDPOINT_SLICES,
            decode=slice_decoder(name),
            trim=trim_slice,
            never_empty=True,
        ),
        Collection(
            path="/api/v1/nodes",
            prefix=NODES,
            decode=decode_node,
            trim=trim_node,
            field_selector="" if local.use_pod_cidr else f"metadata.name={name}",
            never_empty=local.use_pod_cidr,
        ),
    )


def decode_service(key: str, raw: dict[str, Any]) -> Service | Malformed | None:
    """A Service; None: it has no addresses of its own (headless, ExternalName, not yet given any)."""
    return _guarded("Service", SERVICES, key, lambda namespace, name: _service(namespace, name, raw))


def slice_decoder(node: str) -> Callable[[str, dict[str, Any]], EndpointSlice | Malformed | None]:
    """The decoder of EndpointSlices as the node with this name in Kubernetes sees them."""

    def decode(key: str, raw: dict[str, Any]) -> EndpointSlice | Malformed | None:
        return _guarded(
            "EndpointSlice", ENDPOINT_SLICES, key, lambda namespace, name: _slice(namespace, name, raw, node)
        )

    return decode


def decode_node(key: str, raw: dict[str, Any]) -> KubernetesNode | Malformed | None:
    return _guarded("Kubernetes Node", NODES, key, lambda _, name: _node(name, raw))


def _guarded(kind: str, prefix: str, key: str, read: Callable[[str, str], R | None]) -> R | Malformed | None:
    """The value, or why there is none. The informer made the key from the object's own metadata."""
    tail = key.removeprefix(prefix + "/")
    namespace, _, name = tail.rpartition("/")
    subject = f"{kind} {tail if tail.isascii() and tail.isprintable() and len(tail) <= 512 else quoted(tail)}"
    try:
        for part in (namespace, name) if namespace else (name,):
            check_name(part)
        return read(namespace, name)
    except (ValueError, TypeError, AttributeError, msgspec.MsgspecError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        reason = "".join(c if c.isprintable() and c.isascii() else "?" for c in text)[:400]
        return Malformed(subject, f"{reason}; it counts as absent until it is corrected")


def _service(namespace: str, name: str, raw: dict[str, Any]) -> Service | None:
    shape = msgspec.convert(raw, shapes.Service)
    spec = shape.spec or shapes.ServiceSpec()
    kind = _choice("spec.type", spec.type, _TYPES)
    cluster = [ip for ip in (spec.clusterIPs or [spec.clusterIP or ""]) if ip and ip != "None"]
    if kind == "ExternalName" or not cluster:
        return None
    balancer = ((shape.status or shapes.ServiceStatus()).loadBalancer or shapes.LoadBalancer()).ingress or []
    ingress = [one for one in balancer if one.ip] if kind == "LoadBalancer" else []
    external = spec.externalIPs or []
    count = len(cluster) + len(external) + len(balancer)
    if count > MAX_ADDRESSES:
        raise ValueError(f"it has {count} addresses; at most {MAX_ADDRESSES} are read")
    ignored: list[str] = []
    served = [one for one in ingress if one.ipMode != "Proxy"]
    ignored += [
        f"load balancer IP {quoted(one.ip)} is not advertised: its ipMode is Proxy, so no node serves it"
        for one in ingress
        if one.ipMode == "Proxy"
    ]
    return Service(
        namespace=namespace,
        name=name,
        policy=TrafficPolicy(
            _choice("spec.externalTrafficPolicy", spec.externalTrafficPolicy, ("Cluster", "Local"))
        ),
        cluster_ips=_addresses("clusterIPs", cluster, ignored),
        external_ips=_addresses("externalIPs", external, ignored),
        load_balancer_ips=_addresses("status.loadBalancer", [one.ip or "" for one in served], ignored),
        requested_ip=next(
            iter(_addresses("loadBalancerIP", filter(None, [spec.loadBalancerIP]), ignored)), None
        ),
        ignored=tuple(ignored),
    )


def _addresses(field: str, texts: Iterable[str], ignored: list[str]) -> tuple[Address, ...]:
    """Each once, in the order written. A bad one costs the service no other address."""
    found: dict[Address, None] = {}
    for text in texts:
        try:
            address = Address.parse(text)
        except ValueError:
            ignored.append(f"{field}: {quoted(text)} is no IP address and left out. Correct the service")
            continue
        if any(address):
            found[address] = None
        else:
            ignored.append(f"{field}: {address} is no address of a service and left out. Correct the service")
    return tuple(found)


def _slice(namespace: str, name: str, raw: dict[str, Any], node: str) -> EndpointSlice | None:
    shape = msgspec.convert(raw, shapes.EndpointSlice)
    labels = (shape.metadata or shapes.Metadata()).labels or {}
    service = labels.get(SERVICE_NAME_LABEL)
    version = _VERSIONS.get(shape.addressType or "")
    if not service or version is None:  # a slice of nobody's, or of host names
        return None
    endpoints = shape.endpoints or []
    if len(endpoints) > MAX_ENDPOINTS:
        raise ValueError(f"it has {len(endpoints)} endpoints; at most {MAX_ENDPOINTS} are read")
    here, elsewhere = 0, False
    for endpoint in endpoints:
        # Not set counts as ready. One that terminates is never ready, though it may still serve.
        if endpoint.conditions is not None and endpoint.conditions.ready is False:
            continue
        if endpoint.nodeName == node:
            here += 1
        else:
            elsewhere = True
    return EndpointSlice(
        namespace=namespace,
        name=name,
        service=check_name(service),
        version=version,
        here=here,
        elsewhere=elsewhere,
    )


def _node(name: str, raw: dict[str, Any]) -> KubernetesNode:
    shape = msgspec.convert(raw, shapes.Node)
    labels = (shape.metadata or shapes.Metadata()).labels or {}
    if len(labels) > MAX_LABELS:
        raise ValueError(f"it has {len(labels)} labels; at most {MAX_LABELS} are read")
    spec = shape.spec or shapes.NodeSpec()
    texts = spec.podCIDRs or ([spec.podCIDR] if spec.podCIDR else [])
    if len(texts) > MAX_ADDRESSES:
        raise ValueError(f"it has {len(texts)} podCIDRs; at most {MAX_ADDRESSES} are read")
    return KubernetesNode(name=name, labels=labels, pod_cidrs=tuple(sorted(set(map(_pod_cidr, texts)))))


def _pod_cidr(text: str) -> Prefix:
    try:
        return Prefix.parse(text)
    except ValueError:
        raise ValueError(f"spec.podCIDRs: {quoted(text)} is not a network such as 10.244.1.0/24") from None


def _choice(field: str, text: str | None, allowed: tuple[str, ...]) -> str:
    if not text:
        return allowed[0]
    if text not in allowed:
        raise ValueError(f"{field}: {quoted(text)} is not allowed; use {', '.join(allowed)}")
    return text


# -- what is kept of an object ------------------------------------------------------------------------

_METADATA = ("name", "namespace")


def trim_service(raw: dict[str, Any]) -> dict[str, Any]:
    """What `decode_service` reads of it, and its identity."""
    return _kept(
        metadata=_fields(raw.get("metadata"), _METADATA),
        spec=_fields(raw.get("spec"), shapes.ServiceSpec.__struct_fields__),
        status=_fields(raw.get("status"), ("loadBalancer",)),
    )


def trim_slice(raw: dict[str, Any]) -> dict[str, Any]:
    """What `slice_decoder` reads of it: of the endpoints where they are and whether they are ready."""
    metadata = raw.get("metadata")
    kept = _fields(metadata, _METADATA)
    if isinstance(metadata, dict) and isinstance(kept, dict) and "labels" in metadata:
        kept["labels"] = _fields(metadata["labels"], (SERVICE_NAME_LABEL,))
    endpoints = raw.get("endpoints")
    if isinstance(endpoints, list):
        endpoints = [_endpoint(one) for one in endpoints]
    return _kept(metadata=kept, addressType=raw.get("addressType"), endpoints=endpoints)


def _endpoint(raw: Any) -> Any:
    kept = _fields(raw, ("nodeName", "conditions"))
    if isinstance(kept, dict) and "conditions" in kept:
        kept["conditions"] = _fields(kept["conditions"], ("ready",))
    return kept


def trim_node(raw: dict[str, Any]) -> dict[str, Any]:
    """What `decode_node` reads of it, without the heartbeats."""
    return _kept(
        metadata=_fields(raw.get("metadata"), (*_METADATA, "labels")),
        spec=_fields(raw.get("spec"), shapes.NodeSpec.__struct_fields__),
    )


def _fields(raw: Any, names: Iterable[str]) -> Any:
    """Those fields of an object; what is no object stays as it is, to be refused by the decoder."""
    return {name: raw[name] for name in names if name in raw} if isinstance(raw, dict) else raw


def _kept(**parts: Any) -> dict[str, Any]:
    return {name: part for name, part in parts.items() if part is not None}
