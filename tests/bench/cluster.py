"""What the benchmarks write into etcd, in Calico's data model and by Calico's rules."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from felix_like.datastore.client import Client
from felix_like.datastore.keys import affinity_key, block_key, resource_key
from felix_like.model.address import Prefix
from tests.bench.world import POOL, World


async def put_resource(client: Client, kind: str, name: str, spec: Mapping[str, Any]) -> None:
    resource = {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {
            "name": name,
            "uid": f"bench-{kind}-{name}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    }
    await client.put(resource_key(kind, name), json.dumps(resource).encode())


async def seed(client: Client, world: World, *, mesh: bool = True, nodes: bool = True) -> None:
    """Pool, configuration and, unless agents register themselves, the nodes."""
    await put_resource(client, "IPPool", "bench", {"cidr": POOL, "blockSize": 26})
    await put_resource(client, "ClusterInformation", "default", {"datastoreReady": True})
    await set_mesh(client, on=mesh)
    for node in world.nodes if nodes else ():
        await put_resource(client, "Node", node.name, {"bgp": {"ipv4Address": f"{node.ipv4}/16"}})


async def set_mesh(client: Client, *, on: bool) -> None:
    spec = {"asNumber": 64512, "nodeToNodeMeshEnabled": on}
    await put_resource(client, "BGPConfiguration", "default", spec)


async def claim(client: Client, node: str, block: Prefix) -> float:
    """Calico's two-phase claim; returns when (monotonic seconds) the confirming write was sent."""
    affinity = affinity_key(node, block)
    await client.put(affinity, json.dumps({"state": "pending", "deleted": False}).encode())
    await client.put(block_key(block), json.dumps(empty_block(node, block)).encode())
    moment = time.monotonic()
    await client.put(affinity, json.dumps({"state": "confirmed", "deleted": False}).encode())
    return moment


def empty_block(node: str, block: Prefix) -> dict[str, Any]:
    size = 1 << (block.bits - block.length)
    return {
        "cidr": str(block),
        "affinity": f"host:{node}",
        "allocations": [None] * size,
        "unallocated": list(range(size)),
        "attributes": [],
        "sequenceNumber": time.time_ns(),
        "sequenceNumberForAllocation": {},
        "deleted": False,
    }
