"""Everything that a node leaves in etcd, removed as `calicoctl delete node` does, in an order that can be
taken up again: the Node resource goes last, so that whoever finds it knows that there is work left. Each
write is conditional on that Node as it was at the beginning: one that registers again loses nothing more.

Source: libcalico-go/lib/clientv3/node.go. Stricter in one thing: of the addresses that the node's endpoints
name, only those are released that IPAM has given to that node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from felix_like.datastore.cas import CasStore, decode_object
from felix_like.datastore.client import Client, Compare
from felix_like.datastore.errors import CasConflict, GuardFailed, KeyValue, NotFound, Refused
from felix_like.datastore.guarded import GuardedClient
from felix_like.datastore.ipam_listing import ENDPOINTS, ipam_state
from felix_like.datastore.ipam_mend import Mending
from felix_like.datastore.keys import (
    Kind,
    ipam_host_key,
    resource_key,
    resource_prefix,
)
from felix_like.model.address import Address
from felix_like.model.ipam_use import Allocation

Json = dict[str, Any]


async def remove_node(client: Client, name: str) -> tuple[str, ...]:
    """Remove a node and all its data; says what was removed, as sentences without a subject.

    Each step may be done already. Raises EtcdError: call again; CasConflict when it registers meanwhile.
    """
    removal = NodeRemoval(client, name)
    return tuple([word async for word in removal.steps()])


class NodeRemoval:
    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._cas = CasStore(client)
        self._name = name
        self._key = resource_key(Kind.NODE, name)

    async def steps(self) -> AsyncIterator[str]:
        """Yields what was removed."""
        before = await self._revision()
        guards = self._client.guards if isinstance(self._client, GuardedClient) else ()
        unchanged = Compare(self._key, "mod_revision", before)
        self._client = GuardedClient(self._client, (*guards, unchanged))
        self._cas = CasStore(self._client)
        try:
            async for word in self._in_order():
                yield word
        except GuardFailed:
            if await self._revision() == before:
                raise  # the caller's own
            raise CasConflict(
                f"somebody wrote or deleted Node {self._name} while it was being removed"
            ) from None

    async def _revision(self) -> int:
        node = await self._client.get(self._key)
        return node.mod_revision if node is not None else 0

    async def _in_order(self) -> AsyncIterator[str]:
        async for word in self._endpoints():
            yield word
        async for word in self._ipam():
            yield word
        for kind in (Kind.BGP_PEER, "HostEndpoint"):
            prefix = resource_prefix(kind)
            for kv in await self._list(prefix):
                if _spec(kv).get("node") == self._name and await self._delete(kv.key):
                    yield f"{kind} {kv.key.removeprefix(prefix)}"
        for kind in (Kind.BGP_CONFIGURATION, "FelixConfiguration"):
            if await self._delete(resource_key(kind, f"node.{self._name}")):
                yield f"{kind} node.{self._name}"
        if await self._delete(self._key):
            yield f"Node {self._name}"

    async def _endpoints(self) -> AsyncIterator[str]:
        """The addresses first: without its endpoint nobody would know that they were the node's."""
        endpoints = [kv for kv in await self._list(ENDPOINTS) if _spec(kv).get("node") == self._name]
        count = await self._release(endpoints)
        if count:
            yield f"{count} address(es) released"
        for kv in endpoints:
            if await self._delete(kv.key):
                yield f"WorkloadEndpoint {kv.key.removeprefix(ENDPOINTS)}"

    async def _ipam(self) -> AsyncIterator[str]:
        mending = Mending(self._client)
        for cidr in await mending.affine_blocks(self._name):
            if await mending.release_block(self._name, cidr):
                yield f"affinity to IPAM block {cidr}"
        if await self._delete(ipam_host_key(self._name)):
            yield "IPAM host"

    async def _list(self, prefix: str) -> tuple[KeyValue, ...]:
        return (await self._client.get_prefix(prefix)).kvs

    async def _delete(self, key: str) -> bool:
        try:
            await self._cas.delete(key)
        except NotFound:
            return False
        return True

    async def _release(self, endpoints: list[KeyValue]) -> int:
        """The addresses of the node's endpoints and tunnels."""
        node = await self._client.get(self._key)
        theirs = set(_tunnel_addresses(_value(node))) if node is not None else set()
        for kv in endpoints:
            theirs |= set(_addresses(_spec(kv).get("ipNetworks")))
        mending = Mending(self._client)
        count = 0
        for block in (await ipam_state(self._client)).blocks:
            found = [one for one in block.allocations if one.address in theirs and self._is_ours(one)]
            if found:
                count += len(await mending.release_allocations(block.cidr, found))
        return count

    def _is_ours(self, allocation: Allocation) -> bool:
        """What older versions took carries no node; then the endpoint's word is enough."""
        return allocation.node in ("", self._name) and not allocation.cooling


def _value(kv: KeyValue) -> Json:
    try:
        return decode_object(kv).value
    except Refused:
        return {}


def _spec(kv: KeyValue) -> Json:
    spec = _value(kv).get("spec")
    return spec if isinstance(spec, dict) else {}


def _tunnel_addresses(node: Json) -> Iterator[Address]:
    spec = node.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    bgp, wireguard = spec.get("bgp"), spec.get("wireguard")
    bgp, wireguard = bgp if isinstance(bgp, dict) else {}, wireguard if isinstance(wireguard, dict) else {}
    yield from _addresses(
        [
            bgp.get("ipv4IPIPTunnelAddr"),
            spec.get("ipv4VXLANTunnelAddr"),
            spec.get("ipv6VXLANTunnelAddr"),
            wireguard.get("interfaceIPv4Address"),
            wireguard.get("interfaceIPv6Address"),
        ]
    )


def _addresses(texts: object) -> Iterator[Address]:
    """Of `10.0.0.1/32` or `10.0.0.1`; what does not parse is nobody's address."""
    for text in texts if isinstance(texts, list) else ():
        try:
            yield Address.parse(str(text or "").partition("/")[0])
        except ValueError:
            continue
