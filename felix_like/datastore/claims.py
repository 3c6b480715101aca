"""Claiming IPAM blocks: affinities and blocks in etcd, safe among any number of claimers.

Source: libcalico-go/lib/ipam/ipam_block_reader_writer.go. Two phases, so that a crash between them is
harmless: affinity `pending`, then the block, then `confirmed`; and back: `pendingDeletion`, the block, the
affinity. A lost race is read again, `RETRIES` times at most.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from felix_like.datastore import blocks
from felix_like.datastore.cas import RETRIES, CasStore, Stored, decode_object
from felix_like.datastore.client import Client
from felix_like.datastore.codec import decode
from felix_like.datastore.errors import AlreadyExists, CasConflict, KeyValue, NotFound, Refused
from felix_like.datastore.keys import (
    IPAM_CONFIG,
    Kind,
    affinity_key,
    affinity_prefix,
    block_key,
    parse_key,
    resource_prefix,
)
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.ippool import IPPool

MAX_BLOCKS = 20
"""Blocks of one node and IP version at most, when the configuration does not say."""
RECLAIM_AFTER = timedelta(minutes=1)
"""Age of a claim at least before another node may take an empty block over."""
_SEARCH_LIMIT = 1 << 16
"""Block CIDRs of a pool tried at most."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class IpamConfig:
    """`/calico/ipam/v2/config`; the defaults hold when the key is absent."""

    strict_affinity: bool = False
    """No borrowing: a node's addresses come from its own blocks only."""
    auto_allocate_blocks: bool = True
    max_blocks: int = MAX_BLOCKS


class NoBlock(Refused):
    """No block can be had: the pool is used up, or the node has all it may have."""


class Claims:
    """Blocks and affinities. Raises the errors of `datastore.errors`."""

    def __init__(
        self,
        client: Client,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._cas = CasStore(client, rng=rng)
        self._clock = clock

    async def config(self) -> IpamConfig:
        stored = await self._cas.get(IPAM_CONFIG)
        if stored is None:
            return IpamConfig()
        value = stored.value
        limit = value.get("maxBlocksPerHost")
        return IpamConfig(
            strict_affinity=bool(value.get("strict_affinity", False)),
            auto_allocate_blocks=bool(value.get("auto_allocate_blocks", True)),
            max_blocks=limit if isinstance(limit, int) and limit > 0 else MAX_BLOCKS,
        )

    async def pools(self) -> tuple[IPPool, ...]:
        """All pools that parse, by name."""
        listing = await self._client.get_prefix(resource_prefix("IPPool"))
        decoded = (decode(kv.key, kv.value) for kv in listing.kvs)
        return tuple(pool for pool in decoded if isinstance(pool, IPPool))

    async def affine_blocks(self, node: str, version: IpVersion | None = None) -> tuple[Prefix, ...]:
        """CIDRs the node has an affinity to, in whatever state."""
        found = []
        for kv in (await self._client.get_prefix(affinity_prefix(node, version))).kvs:
            try:
                key = parse_key(kv.key)
            except ValueError:
                continue
            if key is not None and key.kind is Kind.AFFINITY and key.cidr is not None:
                found.append(key.cidr)
        return tuple(found)

    async def block(self, cidr: Prefix) -> Stored | None:
        """The block, checked. Raises Refused when it is damaged."""
        stored = await self._cas.get(block_key(cidr))
        if stored is not None:
            blocks.check(stored.value, cidr)
        return stored

    async def claim_block(self, node: str, pool: IPPool, cidr: Prefix | None = None) -> Prefix:
        """Make a free block of the pool (or exactly `cidr`) this node's. Raises NoBlock."""
        if cidr is not None:
            if cidr.length != pool.block_size or not pool.cidr.covers(cidr):
                raise Refused(
                    f"{cidr} is not a /{pool.block_size} block of the pool {pool.name} ({pool.cidr})"
                )
            if not await self._claim(node, cidr):
                raise NoBlock(f"the block {cidr} belongs to another node")
            return cidr
        for _ in range(RETRIES):
            candidate = await self._free_block(node, pool)
            if candidate is None and await self._reclaim(node, pool):
                continue
            if candidate is None:
                raise NoBlock(f"the pool {pool.name} ({pool.cidr}) has no free /{pool.block_size} block left")
            if await self._claim(node, candidate):
                return candidate
        raise CasConflict(f"other nodes were faster {RETRIES} times in the pool {pool.name}; try again")

    async def _claim(self, node: str, cidr: Prefix) -> bool:
        """Affinity `pending`, then the block, then `confirmed`. False: the block is another node's."""
        for attempt in range(RETRIES):
            try:
                affinity = await self._pending(node, cidr)
                block = await self._own_block(node, cidr)
                if block is None:
                    await self._cas.delete(affinity.key, affinity.mod_revision)
                    return False
                await self._cas.replace(
                    affinity.key, {**affinity.value, "state": "confirmed"}, affinity.mod_revision
                )
                return True
            except CasConflict:
                await self._cas.pause(attempt)
        raise CasConflict(f"the block {cidr} was fought over {RETRIES} times in a row; try again")

    async def _pending(self, node: str, cidr: Prefix) -> Stored:
        key = affinity_key(node, cidr)
        try:
            return await self._cas.create(key, {"state": "pending", "deleted": False})
        except AlreadyExists:
            stored = await self._cas.get(key)
            if stored is None:
                raise NotFound(f"{key} is gone again") from None
            return await self._cas.replace(key, {**stored.value, "state": "pending"}, stored.mod_revision)

    async def _own_block(self, node: str, cidr: Prefix) -> Stored | None:
        """The block once it is this node's: made, adopted (unowned), or rewritten (ours already).

        The rewrite moves its revision, so that a release that read it earlier loses its race.
        """
        now = self._clock()
        fresh = blocks.new_block(cidr, node, _nanoseconds(now), _timestamp(now))
        try:
            return await self._cas.create(block_key(cidr), fresh)
        except AlreadyExists:
            stored = await self.block(cidr)
        if stored is None:
            raise NotFound(f"the block {cidr} is gone again")
        holder = blocks.owner(stored.value)
        if holder is None and not str(stored.value.get("affinity") or "").startswith("virtual:"):
            stored.value.pop("hostAffinity", None)
            stored.value.update(affinity=f"host:{node}", affinity_claim_time=_timestamp(now))
        elif holder != node:
            return None
        blocks.bump(stored.value)
        return await self._cas.replace(stored.key, stored.value, stored.mod_revision)

    async def _free_block(self, node: str, pool: IPPool) -> Prefix | None:
        """The first CIDR without a block, counted round from a start that differs from node to node."""
        taken = {cidr for cidr, _ in await self._blocks_of(pool)}
        odd = [cidr for cidr in taken if cidr.length != pool.block_size]
        for cidr in block_cidrs(pool, node):
            if cidr not in taken and not any(cidr.overlaps(other) for other in odd):
                return cidr
        return None

    async def _blocks_of(self, pool: IPPool) -> list[tuple[Prefix, KeyValue]]:
        """The blocks that exist in a pool, whatever they hold."""
        found = []
        for kv in (await self._client.get_prefix(f"{block_key(pool.cidr).rpartition('/')[0]}/")).kvs:
            try:
                key = parse_key(kv.key)
            except ValueError:
                continue
            if key is not None and key.cidr is not None and pool.cidr.overlaps(key.cidr):
                found.append((key.cidr, kv))
        return found

    async def _reclaim(self, node: str, pool: IPPool) -> bool:
        """Take an empty block away from another node that has had it for a minute or more."""
        before = _timestamp(self._clock() - RECLAIM_AFTER)
        for cidr, kv in await self._blocks_of(pool):
            try:
                block = decode_object(kv).value
                blocks.check(block, cidr)
            except Refused:
                continue
            holder = blocks.owner(block)
            if holder in (None, node) or not blocks.is_empty(block):
                continue
            if blocks.claimed_before(block, before) and await self.release_block(
                str(holder), cidr, only_empty=True
            ):
                return True
        return False

    async def release_block(
        self, node: str, cidr: Prefix, *, only_empty: bool = False, sequence: int | None = None
    ) -> bool:
        """Give an affinity up: `pendingDeletion`, then the block (deleted when empty, else without owner).

        False: the node had no affinity to it, or the block is in use and was to be empty, or it has changed
        and its sequence number was to be `sequence`.
        """
        key = affinity_key(node, cidr)
        leaving: Stored | None = None
        for attempt in range(RETRIES):
            try:
                affinity = await self._cas.get(key)
                if affinity is None:
                    return False
                stored = await self.block(cidr)
                if stored is not None and (
                    (only_empty and not blocks.is_empty(stored.value))
                    or (sequence is not None and (stored.value.get("sequenceNumber") or 0) != sequence)
                ):
                    if leaving is not None and leaving.mod_revision == affinity.mod_revision:
                        confirmed = {**affinity.value, "state": "confirmed"}
                        await self._cas.replace(key, confirmed, affinity.mod_revision)
                    return False
                leaving = await self._cas.replace(
                    key, {**affinity.value, "state": "pendingDeletion"}, affinity.mod_revision
                )
                if stored is not None and blocks.owner(stored.value) == node:
                    await self._abandon(stored)
                await self._cas.delete(key, leaving.mod_revision)
                return True
            except CasConflict:
                await self._cas.pause(attempt)
        raise CasConflict(f"the block {cidr} was changed by others {RETRIES} times in a row; try again")

    async def _abandon(self, stored: Stored) -> None:
        if blocks.is_empty(stored.value):
            await self._cas.delete(stored.key, stored.mod_revision)
            return
        stored.value.pop("hostAffinity", None)
        stored.value.pop("affinity_claim_time", None)
        stored.value["affinity"] = None
        blocks.bump(stored.value)
        await self._cas.replace(stored.key, stored.value, stored.mod_revision)


def block_cidrs(pool: IPPool, node: str) -> list[Prefix]:
    """The pool's blocks, round from a start that depends on the node's name, so that nodes rarely collide.

    Any order is compatible with Calico, which seeds a generator with FNV-1 of the name. Of a pool with
    more than 65,536 blocks, the node's neighbourhood of that many.
    """
    bits = pool.block_size - pool.cidr.length
    total = 1 << bits
    start = zlib.crc32(node.encode()) * 2_654_435_761 % total
    first = int.from_bytes(pool.cidr.network, "big")
    shift, octets = pool.cidr.bits - pool.block_size, len(pool.cidr.network)
    return [
        Prefix(Address((first + ((start + n) % total << shift)).to_bytes(octets, "big")), pool.block_size)
        for n in range(min(total, _SEARCH_LIMIT))
    ]


def _nanoseconds(now: datetime) -> int:
    return int(now.timestamp() * 1_000_000) * 1_000


def _timestamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")
