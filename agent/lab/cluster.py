"""The lab's datastore: what an installer and the CNI plugin would write, in Calico's model."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from agent.lab.plan import POOLS, Lab, LabError
from agent.lab.state import LabNode, Pod
from felix_like.model.address import IpVersion, Prefix

if TYPE_CHECKING:
    from felix_like.datastore.client import Client
    from felix_like.datastore.ipam import Ipam
    from felix_like.model.ippool import IPPool

T = TypeVar("T")
TIMEOUT = 5.0
READY_SECONDS = 20.0
AT_ONCE = 8
"""Nodes that claim at the same time, as in a cluster that starts."""


def run(lab: Lab, work: Callable[[Client], Awaitable[T]]) -> T:
    """Do something with a client of the lab's etcd. Raises LabError with etcd's sentence."""
    from felix_like.datastore.client import Client
    from felix_like.datastore.config import EtcdConfig
    from felix_like.datastore.errors import EtcdError

    async def connected() -> T:
        async with Client(EtcdConfig(endpoints=(lab.etcd_endpoint,)), timeout=TIMEOUT) as etcd:
            return await work(etcd)

    try:
        return asyncio.run(connected())
    except EtcdError as error:
        raise LabError(str(error)) from None


def wait_ready(lab: Lab) -> str:
    """Wait until etcd answers; its version. Raises LabError with its last log line."""
    from felix_like.datastore.client import Client
    from felix_like.datastore.config import EtcdConfig
    from felix_like.datastore.errors import EtcdError

    async def wait() -> str:
        deadline = time.monotonic() + READY_SECONDS
        while True:
            try:
                async with Client(EtcdConfig(endpoints=(endpoint,)), timeout=1.0) as etcd:
                    await etcd.get("/calico")
                    return (await etcd.status()).version
            except EtcdError as error:
                if time.monotonic() > deadline:
                    log = lab.etcd_folder / "etcd.log"
                    raise LabError(f"etcd does not answer: {error}; its log is {log}") from None
            await asyncio.sleep(0.05)

    endpoint = f"unix://{lab.etcd_folder}/client:0"
    return asyncio.run(wait())


def prepare(lab: Lab) -> None:
    """Pools, cluster information and the default BGP configuration; what exists stays as it is."""

    async def write(etcd: Client) -> None:
        from felix_like.datastore.cas import ResourceStore
        from felix_like.datastore.errors import AlreadyExists

        store = ResourceStore(etcd)
        for kind, name, spec in _resources():
            resource = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}}
            try:
                await store.create({**resource, "spec": dict(spec)})
            except AlreadyExists:
                continue

    run(lab, write)


def _resources() -> list[tuple[str, str, Mapping[str, Any]]]:
    """Kind, name and spec of what a Calico installation starts with."""
    information = {"clusterGUID": uuid.uuid4().hex, "clusterType": "lab,bgp", "datastoreReady": True}
    configuration = {"logSeverityScreen": "Info", "nodeToNodeMeshEnabled": True, "asNumber": 64512}
    pools = [
        (
            "IPPool",
            name,
            {
                "cidr": cidr,
                "blockSize": block_size,
                "ipipMode": "Never",
                "vxlanMode": "Never",
                "natOutgoing": False,
                "nodeSelector": "all()",
                "allowedUses": ["Workload", "Tunnel"],
                "assignmentMode": "Automatic",
            },
        )
        for name, (cidr, block_size) in POOLS.items()
    ]
    return [
        ("ClusterInformation", "default", information),
        ("BGPConfiguration", "default", configuration),
        *pools,
    ]


def furnish(lab: Lab, nodes: Sequence[LabNode], news: Callable[[int], None] = lambda _: None) -> None:
    """Blocks for the nodes, and addresses in them for their pods, as the CNI plugin asks IPAM for.

    `news` is told how many nodes are done.
    """

    async def work(etcd: Client) -> None:
        from felix_like.datastore.ipam import Ipam

        ipam = Ipam(etcd)
        pools = {pool.cidr.version: pool for pool in await ipam.pools()}
        at_once = asyncio.Semaphore(AT_ONCE)
        done = 0

        async def one(node: LabNode) -> None:
            nonlocal done
            async with at_once:
                for version in (4, 6):
                    await ipam.claim_block(node.name, pools[version])
                for pod in node.pods:
                    await _allocate(ipam, node, pod)
            done += 1
            news(done)

        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(one(node), name=f"furnish {node.name}")

    try:
        run(lab, work)
    except* LabError as group:
        raise group.exceptions[0] from None


async def _allocate(ipam: Ipam, node: LabNode, pod: Pod) -> None:
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f +0000 UTC")
    attributes = {"namespace": "default", "node": node.name, "pod": pod.name, "timestamp": now}
    versions: tuple[IpVersion, IpVersion] = (4, 6)
    found = [
        await ipam.auto_assign(node.name, 1, handle(pod), attributes, version=version) for version in versions
    ]
    for assigned in found:
        if not assigned.addresses:
            raise LabError(f"pod {pod.name} got no address: {'; '.join(assigned.messages)}")
    pod.ipv4, pod.ipv6 = (str(assigned.addresses[0]) for assigned in found)


def handle(pod: Pod) -> str:
    """`<network>.<containerID>`, as for every CNI container; the lab's containers are the pods themselves."""
    return f"k8s-pod-network.{pod.name}"


def claim(lab: Lab, node: str, cidr: Prefix | None, version: IpVersion) -> Prefix:
    """One more block for a node. Raises LabError when it is taken or lies in no pool."""

    async def work(etcd: Client) -> Prefix:
        from felix_like.datastore.ipam import Ipam

        ipam = Ipam(etcd)
        return await ipam.claim_block(node, _home(await ipam.pools(), cidr, version), cidr)

    return run(lab, work)


def _home(pools: Sequence[IPPool], cidr: Prefix | None, version: IpVersion) -> IPPool:
    """The pool a block is to come from."""
    for pool in pools:
        if pool.cidr.covers(cidr) if cidr is not None else pool.cidr.version == version:
            return pool
    names = ", ".join(f"{pool.name} ({pool.cidr})" for pool in pools)
    raise LabError(f"{cidr or f'IPv{version}'} lies in no pool; there are {names or 'none'}")


def release(lab: Lab, node: str, cidr: Prefix, *, force: bool) -> None:
    """Give a block up. Raises LabError when pods have addresses in it, unless `force`."""

    async def work(etcd: Client) -> None:
        from felix_like.datastore.ipam import Ipam

        ipam = Ipam(etcd)
        mine = await ipam.affine_blocks(node)
        if cidr not in mine:
            raise LabError(f"{node} has no affinity to {cidr}; it has {', '.join(map(str, mine)) or 'none'}")
        if not await ipam.release_block(node, cidr, only_empty=not force):
            raise LabError(f"pods have addresses in {cidr}: --force gives it up all the same")

    run(lab, work)


def forget(lab: Lab, node: LabNode) -> None:
    """What happens in the datastore when a node is deleted (libcalico-go/lib/clientv3/node.go)."""

    async def work(etcd: Client) -> None:
        from felix_like.datastore.cas import ResourceStore
        from felix_like.datastore.errors import NotFound
        from felix_like.datastore.ipam import Ipam
        from felix_like.datastore.keys import IPAM_HOSTS

        ipam = Ipam(etcd)
        for pod in node.pods:
            try:
                await ipam.release_by_handle(handle(pod))
            except NotFound:
                continue
        for cidr in await ipam.affine_blocks(node.name):
            await ipam.release_block(node.name, cidr)
        await etcd.delete(f"{IPAM_HOSTS}{node.name}")
        try:
            await ResourceStore(etcd).delete("Node", node.name)
        except NotFound:
            return

    run(lab, work)


def holders(lab: Lab) -> dict[Prefix, str]:
    """Block -> the node that holds it, by confirmed affinity."""
    return run(lab, _holders)


async def _holders(etcd: Client) -> dict[Prefix, str]:
    from felix_like.datastore.codec import decode
    from felix_like.datastore.keys import IPAM_HOSTS
    from felix_like.model.block import AffinityState, BlockAffinity

    found = {}
    for kv in (await etcd.get_prefix(IPAM_HOSTS)).kvs:
        value = decode(kv.key, kv.value)
        if isinstance(value, BlockAffinity) and value.state is AffinityState.CONFIRMED:
            found[value.cidr] = value.node
    return found
