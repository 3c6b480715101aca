"""IPAM on a real etcd: many claimers at once, and the invariants `calicoctl ipam check` looks at."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from felix_like.datastore import blocks
from felix_like.datastore.cas import CasStore
from felix_like.datastore.claims import NoBlock
from felix_like.datastore.client import Client
from felix_like.datastore.codec import decode
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import NotFound
from felix_like.datastore.ipam import Ipam
from felix_like.datastore.keys import (
    BLOCKS,
    HANDLES,
    IPAM_CONFIG,
    IPAM_HOSTS,
    affinity_key,
    block_key,
    resource_key,
)
from felix_like.model.address import Address, Prefix
from felix_like.model.block import AffinityState, Block, BlockAffinity
from felix_like.model.ippool import IPPool
from tests.support.etcd import etcd

pytestmark = pytest.mark.etcd


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    with etcd() as (member,):
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
            yield client


async def pool_of(client: Client, cidr: str, size: int, name: str = "pool") -> IPPool:
    spec = {"cidr": cidr, "blockSize": size}
    value = {"kind": "IPPool", "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec}
    await client.put(resource_key("IPPool", name), json.dumps(value).encode())
    return IPPool(name=name, cidr=Prefix.parse(cidr), block_size=size)


async def check_everything(client: Client) -> dict[Prefix, str | None]:
    """Every invariant over what etcd holds now; returns the owner of each block."""
    owners: dict[Prefix, str | None] = {}
    counted: Counter[tuple[str, str]] = Counter()
    for kv in (await client.get_prefix(BLOCKS)).kvs:
        block = decode(kv.key, kv.value)
        assert isinstance(block, Block), block
        raw = json.loads(kv.value)
        assert blocks.problems(raw, block.cidr) == []
        owners[block.cidr] = block.affinity
        for index in raw["allocations"]:
            if index is not None:
                counted[raw["attributes"][index]["handle_id"], raw["cidr"]] += 1
    handles = {
        (kv.key.removeprefix(HANDLES), cidr): count
        for kv in (await client.get_prefix(HANDLES)).kvs
        for cidr, count in json.loads(kv.value)["block"].items()
    }
    assert handles == dict(counted), "handles and blocks count the same"
    for kv in (await client.get_prefix(IPAM_HOSTS)).kvs:
        affinity = decode(kv.key, kv.value)
        assert isinstance(affinity, BlockAffinity), affinity
        assert affinity.state is AffinityState.CONFIRMED
        assert owners[affinity.cidr] == affinity.node
    return owners


@pytest.mark.parametrize(("cidr", "size"), [("10.1.0.0/22", 26), ("fd00:10::/118", 122)])
async def test_claimers_at_once_own_every_block_exactly_once(client: Client, cidr: str, size: int) -> None:
    pool = await pool_of(client, cidr, size)
    nodes = [f"node-{n}" for n in range(24)]
    results = await asyncio.gather(
        *(Ipam(client).claim_block(n, pool) for n in nodes), return_exceptions=True
    )
    claimed = [result for result in results if isinstance(result, Prefix)]
    refused = [result for result in results if isinstance(result, NoBlock)]
    assert len(claimed) == len(set(claimed)) == 16, "the pool has 16 blocks"
    assert len(refused) == 8
    assert len(claimed) + len(refused) == len(results)
    owners = await check_everything(client)
    assert Counter(owners.values()) == Counter(n for n, r in zip(nodes, results, strict=True) if r in claimed)


async def test_assigners_at_once_never_share_an_address(client: Client) -> None:
    await pool_of(client, "10.2.0.0/24", 28)
    ipam = [Ipam(client) for _ in range(4)]

    async def assign(number: int) -> tuple[Address, ...]:
        node = f"node-{number % 4}"
        got = await ipam[number % 4].auto_assign(node, 3, f"net.pod-{number}", {"pod": f"pod-{number}"})
        return got.addresses

    results = await asyncio.gather(*(assign(number) for number in range(40)))
    addresses = [address for result in results for address in result]
    assert len(addresses) == len(set(addresses)) == 120
    await check_everything(client)
    assert sum(line.in_use for line in await ipam[0].show() if line.grouping == "Block") == 120
    await asyncio.gather(*(ipam[n % 4].release_by_handle(f"net.pod-{n}") for n in range(0, 40, 2)))
    missing = await ipam[0].release_ips([*results[1], Address.parse("192.0.2.1")])
    assert missing == (Address.parse("192.0.2.1"),)
    await check_everything(client)
    left = sum(line.in_use for line in await ipam[0].show() if line.grouping == "Block")
    assert left == 120 - 60 - 3


async def test_borrowing_is_marked_and_strict_affinity_forbids_it(client: Client) -> None:
    await pool_of(client, "10.3.0.0/29", 29)
    ipam = Ipam(client)
    assert len((await ipam.auto_assign("node-a", 2, "net.a", {})).addresses) == 2
    borrowed = await ipam.auto_assign("node-b", 2, "net.b", {})
    assert len(borrowed.addresses) == 2
    stored = await client.get(block_key(Prefix.parse("10.3.0.0/29")))
    assert stored is not None
    block = decode(stored.key, stored.value)
    assert isinstance(block, Block)
    assert block.affinity == "node-a"
    assert block.borrowed == dict.fromkeys(borrowed.addresses, "node-b")
    await client.put(IPAM_CONFIG, b'{"strict_affinity":true,"auto_allocate_blocks":true}')
    refused = await ipam.auto_assign("node-b", 1, "net.c", {})
    assert refused.addresses == ()
    assert any("strict affinity" in message for message in refused.messages)
    await check_everything(client)


async def test_reserved_addresses_are_skipped(client: Client) -> None:
    await pool_of(client, "10.4.0.0/29", 29)
    reservation = {"metadata": {"name": "r"}, "spec": {"reservedCIDRs": ["10.4.0.0/30", "10.4.0.5"]}}
    await client.put(resource_key("IPReservation", "r"), json.dumps(reservation).encode())
    got = await Ipam(client).auto_assign("node-a", 8, "net.a", {})
    assert [str(address) for address in got.addresses] == ["10.4.0.4", "10.4.0.6", "10.4.0.7"]


async def test_a_released_block_is_deleted_when_empty_else_it_loses_its_owner(
    client: Client,
) -> None:
    pool = await pool_of(client, "10.5.0.0/24", 26)
    ipam = Ipam(client)
    cidr = Prefix.parse("10.5.0.64/26")
    await ipam.claim_block("node-a", pool, cidr)
    assert await ipam.release_block("node-a", cidr)
    assert not await ipam.release_block("node-a", cidr)
    assert await client.get(block_key(cidr)) is None
    await ipam.claim_block("node-a", pool, cidr)
    await ipam.auto_assign("node-a", 1, "net.a", {})
    assert await ipam.release_block("node-a", cidr)
    assert (await check_everything(client))[cidr] is None
    assert await ipam.claim_block("node-b", pool, cidr) == cidr, "a block without an owner is adopted"
    with pytest.raises(NoBlock):
        await ipam.claim_block("node-a", pool, cidr)
    assert await client.get(affinity_key("node-a", cidr)) is None, "the loser leaves no pending claim"


async def test_a_claim_cut_short_is_completed(client: Client) -> None:
    await pool_of(client, "10.6.0.0/24", 26)
    cidr = Prefix.parse("10.6.0.128/26")
    await client.put(affinity_key("node-a", cidr), b'{"state":"pending","deleted":false,"new":1}')
    got = await Ipam(client).auto_assign("node-a", 1, "net.a", {})
    assert cidr.contains(got.addresses[0])
    stored = await client.get(affinity_key("node-a", cidr))
    assert stored is not None
    assert json.loads(stored.value) == {"state": "confirmed", "deleted": False, "new": 1}
    await check_everything(client)


async def test_another_nodes_empty_block_is_taken_over_only_after_a_minute(client: Client) -> None:
    pool = await pool_of(client, "10.7.0.0/26", 26)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    await Ipam(client, clock=lambda: now).claim_block("node-a", pool)
    with pytest.raises(NoBlock):
        await Ipam(client, clock=lambda: now + timedelta(seconds=30)).claim_block("node-b", pool)
    later = Ipam(client, clock=lambda: now + timedelta(seconds=90))
    assert await later.claim_block("node-b", pool) == pool.cidr
    assert await check_everything(client) == {pool.cidr: "node-b"}


async def test_unknown_fields_of_newer_versions_survive(client: Client) -> None:
    pool = await pool_of(client, "10.8.0.0/26", 26)
    ipam = Ipam(client)
    await ipam.claim_block("node-a", pool)
    key = block_key(pool.cidr)
    await CasStore(client).update(key, lambda block: {**block, "fromTheFuture": {"x": [1, "é"]}})
    await ipam.auto_assign("node-a", 2, "net.a", {})
    assert await ipam.release_by_handle("net.a") == 2
    with pytest.raises(NotFound):
        await ipam.release_by_handle("net.a")
    stored = await client.get(key)
    assert stored is not None
    assert json.loads(stored.value)["fromTheFuture"] == {"x": [1, "é"]}
    assert json.loads(stored.value)["unallocated"][-2:] == [0, 1], "given back at the tail"
