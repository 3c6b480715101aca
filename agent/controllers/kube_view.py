"""Kubernetes' nodes and pods as the controllers need them: followed, trimmed, believed only when whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.errors import Garbage, NotFound
from felix_like.datastore.kube.informer import Collection, KubeBatch, KubeInformer
from felix_like.datastore.watch import InSync, Stale
from felix_like.model.address import Address
from felix_like.model.ipam_use import Cluster, PodUse
from felix_like.model.verdict import No

NODES_PATH = "/api/v1/nodes"
PODS_PATH = "/api/v1/pods"
POD_IPS = "cni.projectcalico.org/podIPs"
"""Annotation that Calico's CNI plugin writes before the kubelet reports the addresses."""
NETWORK_STATUS = "k8s.v1.cni.cncf.io/network-status"
"""Annotation with the addresses of a pod's further networks (Network Plumbing Working Group)."""
FINISHED = ("Succeeded", "Failed")
NOT_YET = "Kubernetes has not been heard yet"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeNode:
    name: str
    labels: Mapping[str, str]


Seen = KubeNode | PodUse


class KubeView:
    """Follows nodes, and pods if asked. `run` for ever; then `cluster` and `nodes` say what is there."""

    def __init__(self, client: KubeClient, *, pods: bool) -> None:
        self._client = client
        self._informer: KubeInformer[Seen] = KubeInformer(client, [NODES, *((PODS,) if pods else ())])
        self._nodes: dict[str, KubeNode] = {}
        self._pods: dict[tuple[str, str], PodUse] = {}
        self._keys: dict[str, Seen | Malformed] = {}
        self._stale: str | None = NOT_YET
        self.changed = asyncio.Event()
        """Set when a node, or whether all is known, has changed; whoever waits clears it."""

    async def run(self) -> None:
        async with contextlib.aclosing(self._informer.events()) as events:
            async for event in events:
                match event:
                    case Stale(reason):
                        self._stale = reason
                        self.changed.set()
                    case InSync():
                        self._stale = None
                        self.changed.set()
                    case KubeBatch(changes):
                        for change in changes:
                            self._apply(change.key, change.value)

    def _apply(self, key: str, value: Seen | Malformed | None) -> None:
        before = self._keys.pop(key, None)
        if value is not None:
            self._keys[key] = value
        match before:
            case KubeNode():
                self._nodes.pop(before.name, None)
                self.changed.set()
            case PodUse():
                self._pods.pop((before.namespace, before.name), None)
        match value:
            case KubeNode():
                self._nodes[value.name] = value
                self.changed.set()
            case PodUse():
                self._pods[value.namespace, value.name] = value

    @property
    def doubt(self) -> str:
        """Why what is known must not be acted on; empty: it may."""
        if self._stale is not None:
            return f"what Kubernetes has is not known: {self._stale}"
        if not self._informer.in_sync:
            return "what Kubernetes has is being listed again"
        for path, reason in self._informer.refused.items():
            return f"{path} of Kubernetes cannot be followed: {reason}"
        for key, value in self._keys.items():
            if isinstance(value, Malformed):
                return f"{key} of Kubernetes cannot be read: {value.reason}"
        return ""

    @property
    def is_new(self) -> bool:
        """Nothing was heard yet, good or bad: no reason to complain."""
        return self._stale is NOT_YET

    def nodes(self) -> Mapping[str, KubeNode] | No:
        return No(self.doubt) if self.doubt else self._nodes

    def cluster(self) -> Cluster | No:
        """What is there now, as a whole."""
        if self.doubt:
            return No(self.doubt)
        return Cluster(nodes=frozenset(self._nodes), pods=dict(self._pods))

    async def node_exists(self, name: str) -> bool:
        """Asked of the API server, now. Raises KubeError when it does not say."""
        return await self._get(f"{NODES_PATH}/{quote(name, safe='')}") is not None

    async def pod(self, namespace: str, name: str) -> PodUse | None:
        """Asked of the API server, now. Raises KubeError when it does not say."""
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
        raw = await self._get(path)
        if raw is None:
            return None
        pod = decode_pod(path, trim_pod(raw))
        if isinstance(pod, Malformed):
            raise Garbage(f"{path} cannot be read: {pod.reason}")
        return pod

    async def _get(self, path: str) -> Json | None:
        try:
            return await self._client.get(path)
        except NotFound:
            return None


def trim_node(raw: Json) -> Json:
    metadata = _section(raw, "metadata")
    return {"metadata": {"name": metadata.get("name"), "labels": metadata.get("labels") or {}}}


def trim_pod(raw: Json) -> Json:
    metadata, status = _section(raw, "metadata"), _section(raw, "status")
    annotations = _section(metadata, "annotations")
    kept = {name: annotations[name] for name in (POD_IPS, NETWORK_STATUS) if name in annotations}
    return {
        "metadata": {
            "namespace": metadata.get("namespace"),
            "name": metadata.get("name"),
            "annotations": kept,
        },
        "spec": {"nodeName": _section(raw, "spec").get("nodeName")},
        "status": {name: status.get(name) for name in ("phase", "podIP", "podIPs")},
    }


def decode_node(key: str, trimmed: Json) -> KubeNode | Malformed:
    metadata = trimmed["metadata"]
    name, labels = metadata.get("name"), metadata.get("labels")
    if not isinstance(name, str) or not name or not isinstance(labels, dict):
        return Malformed(key, "it has no name, or its labels are no object")
    return KubeNode(name=name, labels={str(k): v for k, v in labels.items() if isinstance(v, str)})


def decode_pod(key: str, trimmed: Json) -> PodUse | Malformed:
    """A pod whose addresses do not parse keeps all that IPAM has given to it: annotations are the users'."""
    metadata, status = trimmed["metadata"], trimmed["status"]
    name, namespace = metadata.get("name"), metadata.get("namespace")
    if not isinstance(name, str) or not isinstance(namespace, str) or not name or not namespace:
        return Malformed(key, "it has no name or namespace")
    phase = status.get("phase")
    try:
        addresses = frozenset(map(Address.parse, _address_texts(metadata["annotations"], status)))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        addresses = frozenset()
    return PodUse(
        namespace=namespace,
        name=name,
        node=str(trimmed["spec"].get("nodeName") or ""),
        addresses=addresses,
        finished=phase if phase in FINISHED else "",
    )


def _address_texts(annotations: Json, status: Json) -> Iterator[str]:
    yield from filter(None, [status.get("podIP")])
    yield from (one["ip"] for one in status.get("podIPs") or () if one.get("ip"))
    for text in str(annotations.get(POD_IPS) or "").split(","):
        if text.strip():
            yield text.strip().partition("/")[0]
    networks = annotations.get(NETWORK_STATUS)
    for network in json.loads(networks) if networks else ():
        yield from network.get("ips") or ()


def _section(value: Json, name: str) -> Json:
    section = value.get(name)
    return section if isinstance(section, dict) else {}


NODES: Collection[Seen] = Collection(path=NODES_PATH, prefix="kube/nodes", decode=decode_node, trim=trim_node)
PODS: Collection[Seen] = Collection(path=PODS_PATH, prefix="kube/pods", decode=decode_pod, trim=trim_pod)
