"""IPAM's whole state out of etcd, at one revision, as garbage collection looks at it.

What cannot be read is named in `damaged` and takes nothing else with it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from felix_like.datastore import blocks, fields
from felix_like.datastore.client import Client
from felix_like.datastore.errors import KeyValue
from felix_like.datastore.keys import (
    BLOCKS,
    HANDLES,
    IPAM_HOSTS,
    RESOURCES,
    Key,
    Kind,
    handle_key,
    parse_key,
    quoted,
    resource_key,
)
from felix_like.model.address import Address, Prefix
from felix_like.model.ipam_use import (
    Allocation,
    Endpoint,
    IpamState,
    StoredAffinity,
    StoredHandle,
    UsedBlock,
)

Json = dict[str, Any]
NODES = RESOURCES + "nodes/"
ENDPOINTS = RESOURCES + "workloadendpoints/"
CLUSTER_INFORMATION = resource_key("ClusterInformation", "default")
CONTROLLERS_CONFIGURATION = resource_key("KubeControllersConfiguration", "default")
_PREFIXES = (BLOCKS, IPAM_HOSTS, HANDLES, NODES, ENDPOINTS, CLUSTER_INFORMATION, CONTROLLERS_CONFIGURATION)
_SLICE = 200
"""Values read before other tasks get a turn."""


async def ipam_state(client: Client) -> IpamState:
    """Raises EtcdError."""
    reader = Reader()
    for count, kv in enumerate((await client.get_prefixes(_PREFIXES)).kvs):
        reader.read(kv)
        if count % _SLICE == _SLICE - 1:
            await asyncio.sleep(0)
    return reader.state()


class Reader:
    """Key by key to one state."""

    def __init__(self) -> None:
        self._blocks: list[UsedBlock] = []
        self._affinities: list[StoredAffinity] = []
        self._handles: list[StoredHandle] = []
        self._endpoints: dict[Address, Endpoint] = {}
        self._nodes: dict[str, str | None] = {}
        self._damaged: dict[str, str] = {}
        self._dark: set[Prefix] = set()
        self._locked = ""
        self._grace: float | None = None
        self._unknown_grace = ""

    def state(self) -> IpamState:
        return IpamState(
            blocks=tuple(self._blocks),
            affinities=tuple(self._affinities),
            handles=tuple(self._handles),
            endpoints=self._endpoints,
            nodes=self._nodes,
            damaged=self._damaged,
            unreadable_blocks=frozenset(self._dark),
            locked=self._locked,
            leak_grace=self._grace,
            unknown_grace=self._unknown_grace,
        )

    def read(self, kv: KeyValue) -> None:
        """Never raises for what a value says."""
        key, subject = None, f"etcd key {quoted(kv.key, 200)}"
        try:
            if kv.key.startswith((BLOCKS, IPAM_HOSTS)):
                key = parse_key(kv.key)
                if key is None:
                    return
                subject = str(key)
                self._read_ipam(key, _object(kv.value), kv)
            else:
                self._read_other(kv.key, _object(kv.value), kv)
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            self._damaged[subject] = str(error) or type(error).__name__
            if key is not None and key.kind is Kind.BLOCK and key.cidr is not None:
                self._dark.add(key.cidr)
            if kv.key.startswith(NODES):
                # A Node that cannot be read is there all the same, and nobody's to clean up after.
                self._nodes[kv.key.removeprefix(NODES)] = None
            elif kv.key == CLUSTER_INFORMATION:
                self._locked = (
                    f"ClusterInformation default, which may lock the datastore, cannot be read: {error}"
                )
            elif kv.key == CONTROLLERS_CONFIGURATION:
                self._unknown_grace = f"KubeControllersConfiguration default cannot be read: {error}"

    def _read_other(self, path: str, value: Json, kv: KeyValue) -> None:
        if path.startswith(HANDLES):
            self._handles.append(_handle(path.removeprefix(HANDLES), value, kv.mod_revision))
        elif path.startswith(NODES):
            self._nodes[path.removeprefix(NODES)] = kubernetes_name(value)
        elif path.startswith(ENDPOINTS):
            self._read_endpoint(path.removeprefix(ENDPOINTS), value)
        elif path == CLUSTER_INFORMATION and _section(value, "spec").get("datastoreReady") is False:
            self._locked = "ClusterInformation default says that the datastore is not ready (it is locked)"
        elif path == CONTROLLERS_CONFIGURATION:
            self._grace = leak_grace(value)

    def _read_ipam(self, key: Key, value: Json, kv: KeyValue) -> None:
        assert key.cidr is not None
        if key.kind is Kind.AFFINITY:
            state = str(value.get("state") or "confirmed")
            self._affinities.append(
                StoredAffinity(node=key.name, cidr=key.cidr, state=state, revision=kv.mod_revision)
            )
            return
        found = blocks.problems(value, key.cidr)
        if found:
            raise ValueError("; ".join(found))
        self._blocks.append(_block(key.cidr, value))

    def _read_endpoint(self, path: str, value: Json) -> None:
        namespace, _, name = path.partition("/")
        spec = _section(value, "spec")
        networks = spec.get("ipNetworks") or ()
        if not isinstance(networks, list):
            raise ValueError("spec.ipNetworks is not a list")
        addresses = []
        for text in networks:
            try:
                addresses.append(Address.parse(str(text).partition("/")[0]))
            except ValueError as error:
                self._damaged[f"WorkloadEndpoint {quoted(path)}"] = str(error)
        node = str(spec.get("node") or "")
        endpoint = Endpoint(namespace=namespace, name=name, node=node, addresses=tuple(addresses))
        self._endpoints |= dict.fromkeys(addresses, endpoint)


def kubernetes_name(node: Mapping[str, Any]) -> str | None:
    """The Kubernetes Node that a Calico Node stands for: its first orchRef of k8s; None: none.

    Source: getK8sNodeName in kube-controllers/pkg/controllers/node/controller.go.
    """
    spec = node.get("spec")
    references = spec.get("orchRefs") if isinstance(spec, dict) else None
    for reference in references if isinstance(references, list) else ():
        if isinstance(reference, dict) and reference.get("orchestrator") == "k8s":
            name = reference.get("nodeName")
            return name if isinstance(name, str) and name else None
    return None


def leak_grace(configuration: Json) -> float | None:
    """`spec.controllers.node.leakGracePeriod`, in seconds. Raises ValueError."""
    node = _section(_section(_section(configuration, "spec"), "controllers"), "node")
    text = node.get("leakGracePeriod")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"spec.controllers.node.leakGracePeriod: {quoted(text)} is not a duration")
    return fields.duration("spec.controllers.node.leakGracePeriod", text)


def _block(cidr: Prefix, value: Json) -> UsedBlock:
    numbers = value.get("sequenceNumberForAllocation")
    numbers = numbers if isinstance(numbers, dict) else {}
    attributes = value.get("attributes") or []
    return UsedBlock(
        cidr=cidr,
        owner=fields.block_owner(value.get("affinity"), value.get("hostAffinity")),
        claimed_at=str(value.get("affinity_claim_time") or ""),
        sequence=int(value.get("sequenceNumber") or 0),
        allocations=tuple(
            _allocation(cidr, blocks.address_at(cidr, ordinal), attributes[index], numbers.get(str(ordinal)))
            for ordinal, index in enumerate(value["allocations"])
            if index is not None
        ),
    )


def _allocation(cidr: Prefix, address: Address, attribute: Any, sequence: Any) -> Allocation:
    if not isinstance(attribute, dict):
        raise ValueError("an attribute is not an object")
    said = attribute.get("secondary") or {}
    if not isinstance(said, dict):
        raise ValueError("an attribute's secondary is not an object")

    def word(name: str) -> str:
        text = said.get(name)
        return text if isinstance(text, str) else ""

    return Allocation(
        address=address,
        block=cidr,
        handle=_usable_handle(attribute.get("handle_id")),
        sequence=sequence if isinstance(sequence, int) else None,
        node=word("node"),
        namespace=word("namespace"),
        pod=word("pod"),
        kind=word("type"),
        machine=any(name.startswith("vm") for name in said) or bool(attribute.get("alternateOwnerAttrs")),
        cooling=bool(attribute.get("releasedAt")),
    )


def _usable_handle(name: object) -> str:
    """Empty for one that cannot be a key: nothing can be counted under it."""
    try:
        return handle_key(str(name or "")).removeprefix(HANDLES)
    except ValueError:
        return ""


def _handle(name: str, value: Json, revision: int) -> StoredHandle:
    handle_key(name)
    counts = value.get("block") or {}
    if not isinstance(counts, dict):
        raise ValueError("block is not an object")
    return StoredHandle(
        name=name,
        counts={Prefix.parse(text): int(count) for text, count in counts.items()},
        revision=revision,
        deleted=bool(value.get("deleted")),
    )


def _object(octets: bytes) -> Json:
    value = json.loads(octets) if octets.strip() else {}
    if not isinstance(value, dict):
        raise ValueError("the value is not a JSON object")
    return value


def _section(value: Json, name: str) -> Json:
    section = value.get(name)
    return section if isinstance(section, dict) else {}
