"""Controllers in a test: a term of office, a cluster in etcd and in Kubernetes, and what IPAM promises."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from agent.controllers.controller import Controller, keep_running
from agent.controllers.election import LEADER_KEY, Leadership
from felix_like.datastore import blocks
from felix_like.datastore.client import Client
from felix_like.datastore.codec import decode
from felix_like.datastore.errors import EtcdError
from felix_like.datastore.ipam import Ipam
from felix_like.datastore.keys import (
    BLOCKS,
    HANDLES,
    IPAM_HOSTS,
    RESOURCES,
    namespaced_key,
    resource_key,
)
from felix_like.datastore.kube.errors import KubeError
from felix_like.model.address import Address, IpVersion
from felix_like.model.block import AffinityState, Block, BlockAffinity

PATIENCE = 60.0
"""Seconds; the machine may be busy."""
Json = dict[str, Any]


async def until(check: Callable[[], Awaitable[Any]], seconds: float = PATIENCE) -> Any:
    """Poll until it is true; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := await check()):
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        await asyncio.sleep(0.05)
    return found


@contextlib.asynccontextmanager
async def office(client: Client) -> AsyncIterator[Leadership]:
    """A term of its own: the one before is over."""
    await client.delete(LEADER_KEY)
    revision = await client.put(LEADER_KEY, b"{}")
    yield Leadership(identity="test", key=LEADER_KEY, create_revision=revision, reader=client)


@contextlib.asynccontextmanager
async def working(*controllers: Controller, leadership: Leadership) -> AsyncIterator[None]:
    """Run controllers as the leader does; a bug in one fails the test at once."""
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(keep_running(one, leadership, outages=(EtcdError, KubeError)))
            for one in controllers
        ]
        yield
        for task in tasks:
            task.cancel()


async def put_resource(client: Client, kind: str, name: str, spec: Json, **metadata: Any) -> None:
    value = {
        "kind": kind,
        "apiVersion": "projectcalico.org/v3",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "2026-01-10T09:00:00Z",
            **metadata,
        },
        "spec": spec,
    }
    await client.put(resource_key(kind, name), json.dumps(value).encode())


async def put_node(client: Client, name: str, kubernetes: str | None = "", **spec: Any) -> None:
    """A Calico Node; `kubernetes` "": of the same name there; None: not Kubernetes'."""
    if kubernetes is not None:
        spec["orchRefs"] = [{"nodeName": kubernetes or name, "orchestrator": "k8s"}]
    await put_resource(client, "Node", name, {"bgp": {"ipv4Address": "192.0.2.1/24"}, **spec})


async def put_pools(client: Client, *cidrs: str) -> None:
    for number, cidr in enumerate(cidrs):
        spec = {"cidr": cidr, "blockSize": 122 if ":" in cidr else 26}
        await put_resource(client, "IPPool", f"pool-{number}", spec)


async def give(
    client: Client,
    pod: str,
    node: str,
    *,
    handle: str = "",
    namespace: str = "default",
    versions: Iterable[IpVersion] = (4,),
    **attributes: str,
) -> list[Address]:
    """Addresses for a pod, as the CNI plugin takes them."""
    said = {"namespace": namespace, "node": node, "pod": pod, **attributes} if pod else attributes
    taken: list[Address] = []
    for version in versions:
        found = await Ipam(client).auto_assign(
            node, 1, handle or f"k8s-pod-network.{pod}", said, version=version
        )
        assert found.addresses, found.messages
        taken += found.addresses
    return taken


async def put_endpoint(client: Client, pod: str, node: str, *addresses: Address) -> str:
    """A WorkloadEndpoint; returns its key."""
    name = f"{node.replace('-', '--')}-k8s-{pod.replace('-', '--')}-eth0"
    key = namespaced_key("WorkloadEndpoint", "default", name)
    networks = [f"{address}/{len(address) * 8}" for address in addresses]
    value = {
        "kind": "WorkloadEndpoint",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"orchestrator": "k8s", "node": node, "pod": pod, "endpoint": "eth0", "ipNetworks": networks},
    }
    await client.put(key, json.dumps(value).encode())
    return key


async def allocated(client: Client) -> dict[str, str]:
    """Address -> handle, of all blocks."""
    found = {}
    for kv in (await client.get_prefix(BLOCKS)).kvs:
        raw, cidr = json.loads(kv.value), decode(kv.key, kv.value).cidr  # type: ignore[union-attr]
        for ordinal, index in enumerate(raw["allocations"]):
            if index is not None:
                found[str(blocks.address_at(cidr, ordinal))] = raw["attributes"][index]["handle_id"]
    return found


async def ipam_holds(client: Client) -> str:
    """What `calicoctl ipam check` would find: empty when every invariant holds."""
    owners: dict[Any, str | None] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for kv in (await client.get_prefix(BLOCKS)).kvs:
        block = decode(kv.key, kv.value)
        assert isinstance(block, Block), block
        raw = json.loads(kv.value)
        if found := blocks.problems(raw, block.cidr):
            return f"{block.cidr}: {found}"
        owners[block.cidr] = block.affinity
        for index in raw["allocations"]:
            if index is not None:
                counted[raw["attributes"][index]["handle_id"], raw["cidr"]] += 1
    handles = {
        (kv.key.removeprefix(HANDLES), cidr): count
        for kv in (await client.get_prefix(HANDLES)).kvs
        for cidr, count in json.loads(kv.value)["block"].items()
    }
    if handles != dict(counted):
        return f"handles {handles} and blocks {dict(counted)} count differently"
    for kv in (await client.get_prefix(IPAM_HOSTS)).kvs:
        affinity = decode(kv.key, kv.value)
        if isinstance(affinity, BlockAffinity) and (
            affinity.state is not AffinityState.CONFIRMED or owners.get(affinity.cidr) != affinity.node
        ):
            return f"affinity {affinity}"
    return ""


async def keys(client: Client, prefix: str = RESOURCES) -> list[str]:
    return [kv.key.removeprefix(prefix) for kv in (await client.get_prefix(prefix)).kvs]
