"""The lab's datastore: what an installer and the CNI plugin would write, in Calico's model."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from agent.lab import _ipam_standin as ipam
from agent.lab.plan import POOLS, Lab, LabError
from agent.lab.state import LabNode, Pod
from felix_like.model.address import IpVersion, Prefix

if TYPE_CHECKING:
    from felix_like.datastore.client import Client

T = TypeVar("T")
API = "projectcalico.org/v3"
TIMEOUT = 5.0
READY_SECONDS = 20.0


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
        raise LabError(f"the lab's datastore: {error}") from None


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


def resource(kind: str, name: str, spec: Mapping[str, Any]) -> bytes:
    """A v3 resource as Calico's client stores it (libcalico-go/lib/clientv3/resources.go)."""
    metadata = {
        "name": name,
        "uid": str(uuid.uuid4()),
        "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    return json.dumps(
        {"kind": kind, "apiVersion": API, "metadata": metadata, "spec": dict(spec)}, separators=(",", ":")
    ).encode()


def prepare(lab: Lab) -> None:
    """Pools, cluster information and the default BGP configuration; what exists stays as it is."""
    from felix_like.datastore.client import Compare, Put
    from felix_like.datastore.keys import RESOURCES

    wanted = {
        f"{RESOURCES}clusterinformations/default": resource(
            "ClusterInformation",
            "default",
            {"clusterGUID": uuid.uuid4().hex, "clusterType": "lab,bgp", "datastoreReady": True},
        ),
        f"{RESOURCES}bgpconfigurations/default": resource(
            "BGPConfiguration",
            "default",
            {"logSeverityScreen": "Info", "nodeToNodeMeshEnabled": True, "asNumber": 64512},
        ),
    }
    for name, (cidr, block_size) in POOLS.items():
        spec = {
            "cidr": cidr,
            "blockSize": block_size,
            "ipipMode": "Never",
            "vxlanMode": "Never",
            "natOutgoing": False,
            "nodeSelector": "all()",
            "allowedUses": ["Workload", "Tunnel"],
        }
        wanted[f"{RESOURCES}ippools/{name}"] = resource("IPPool", name, spec)

    async def write(etcd: Client) -> None:
        for key, value in wanted.items():
            await etcd.txn([Compare(key, "version", 0)], [Put(key, value)])

    run(lab, write)


def furnish(lab: Lab, node: LabNode) -> None:
    """Blocks for a node, and addresses in them for its pods, as the CNI plugin asks IPAM for."""

    async def work(etcd: Client) -> None:
        for version in (4, 6):
            await ipam.claim(etcd, node.name, None, version)
        for pod in node.pods:
            await _allocate(etcd, node, pod)

    run(lab, work)


async def _allocate(etcd: Client, node: LabNode, pod: Pod) -> None:
    attributes = {"namespace": "default", "node": node.name, "pod": pod.name}
    pod.ipv4 = await ipam.assign(etcd, node.name, handle(pod), attributes, 4)
    pod.ipv6 = await ipam.assign(etcd, node.name, handle(pod), attributes, 6)


def handle(pod: Pod) -> str:
    """`<network>.<containerID>`, as for every CNI container; the lab's containers are the pods themselves."""
    return f"k8s-pod-network.{pod.name}"


def claim(lab: Lab, node: str, cidr: Prefix | None, version: IpVersion) -> Prefix:
    """One more block for a node. Raises LabError when it is taken or lies in no pool."""

    async def work(etcd: Client) -> Prefix:
        return await ipam.claim(etcd, node, cidr, version)

    return run(lab, work)


def release(lab: Lab, node: str, cidr: Prefix, *, force: bool) -> None:
    """Give a block up. Raises LabError when pods have addresses in it, unless `force`."""

    async def work(etcd: Client) -> None:
        await ipam.release(etcd, node, cidr, force)

    run(lab, work)


def forget(lab: Lab, node: LabNode) -> None:
    """What happens in the datastore when a node is deleted (libcalico-go/lib/clientv3/node.go)."""
    from felix_like.datastore.keys import RESOURCES

    async def work(etcd: Client) -> None:
        for pod in node.pods:
            await ipam.release_handle(etcd, handle(pod))
        for cidr, holder in (await _holders(etcd)).items():
            if holder == node.name:
                await ipam.release(etcd, node.name, cidr, True)
        await etcd.delete(f"{RESOURCES}nodes/{node.name}")

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
