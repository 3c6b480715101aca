"""Calico's IPAM on etcd: addresses, with handles, safe among any number of assigners.

Source: libcalico-go/lib/ipam/ipam.go and design/ipam. Everything is compare-and-swap on raw JSON. A handle
counts up before its addresses are taken and down after they are given back: a crash in between leaves a
count too high, which garbage collection sees, and never an address nobody counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from felix_like.datastore import blocks
from felix_like.datastore.cas import RETRIES
from felix_like.datastore.claims import Claims, IpamConfig, NoBlock, block_cidrs
from felix_like.datastore.codec import decode
from felix_like.datastore.errors import CasConflict, NotFound
from felix_like.datastore.keys import BLOCKS, affinity_key, handle_key, resource_prefix
from felix_like.model.address import Address, IpVersion, Prefix
from felix_like.model.block import Block
from felix_like.model.ippool import IPPool

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Assigned:
    """Addresses taken, and why there are not more."""

    addresses: tuple[Address, ...]
    messages: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """A line of `ipam show`: a pool or a block, and how full it is."""

    grouping: str
    """"IP Pool" or "Block"."""
    cidr: Prefix
    total: int
    in_use: int
    node: str | None = None
    """Owner of a block."""
    borrowed: Mapping[Address, str] = field(default_factory=dict)

    @property
    def free(self) -> int:
        return self.total - self.in_use


def usage(pools: Sequence[IPPool], all_blocks: Sequence[Block]) -> tuple[Usage, ...]:
    """Each pool, followed by its blocks, sorted by CIDR."""
    lines: list[Usage] = []
    for pool in sorted(pools, key=lambda pool: pool.cidr):
        members = sorted((b for b in all_blocks if pool.cidr.covers(b.cidr)), key=lambda b: b.cidr)
        size = 1 << (pool.cidr.bits - pool.cidr.length)
        lines.append(Usage("IP Pool", pool.cidr, size, sum(b.in_use for b in members)))
        lines += [Usage("Block", b.cidr, b.size, b.in_use, b.affinity, b.borrowed) for b in members]
    return tuple(lines)


class Ipam(Claims):
    """IPAM for one process. Raises the errors of `datastore.errors`."""

    async def auto_assign(
        self,
        node: str,
        count: int,
        handle: str,
        attributes: Mapping[str, str],
        *,
        version: IpVersion = 4,
        pools: Sequence[IPPool] | None = None,
    ) -> Assigned:
        """Take `count` addresses: from the node's blocks, from new ones, then borrowed.

        `pools` None: all enabled, automatic pools with the use "Workload" (node selectors are the
        caller's business). Fewer addresses than asked for come with messages.
        """
        wanted = {**attributes, "node": node}
        config = await self.config()
        usable = [pool for pool in (await self.pools() if pools is None else pools) if _usable(pool, version)]
        if not usable:
            return Assigned((), (f"there is no enabled IPv{version} pool to assign from",))
        reserved = await self._reserved()
        taken: list[Address] = []
        messages: list[str] = []
        own = [
            cidr
            for cidr in await self.affine_blocks(node, version)
            if any(pool.cidr.covers(cidr) for pool in usable)
        ]
        async for cidr in self._own_sources(node, usable, own, config, messages):
            taken += await self._take(cidr, count - len(taken), handle, wanted, reserved, node)
            if len(taken) == count:
                return Assigned(tuple(taken))
        if config.strict_affinity:
            messages.append("strict affinity forbids borrowing from other nodes' blocks")
            return Assigned(tuple(taken), tuple(messages))
        for pool in usable:
            for cidr in await self._existing_blocks(pool, node):
                taken += await self._take(cidr, count - len(taken), handle, wanted, reserved, None)
                if len(taken) == count:
                    return Assigned(tuple(taken))
        messages.append("no block of the pools has a free address to borrow")
        return Assigned(tuple(taken), tuple(messages))

    async def _own_sources(
        self,
        node: str,
        pools: Sequence[IPPool],
        own: list[Prefix],
        config: IpamConfig,
        messages: list[str],
    ) -> AsyncIterator[Prefix]:
        """The node's blocks, repaired where a claim was cut short; then new ones, claimed one by one."""
        count = 0
        for cidr in own:
            if await self._claimed(node, cidr):
                count += 1
                yield cidr
        if not config.auto_allocate_blocks:
            messages.append("auto_allocate_blocks is off: the node gets no new block")
            return
        for pool in pools:
            while count < config.max_blocks:
                try:
                    claimed = await self.claim_block(node, pool)
                except NoBlock as error:
                    messages.append(str(error))
                    break
                count += 1
                yield claimed
        if count >= config.max_blocks:
            messages.append(f"node {node} has {count} IPAM blocks, and may have {config.max_blocks}")

    async def _claimed(self, node: str, cidr: Prefix) -> bool:
        """True when affinity and block agree; repairs an affinity that is not confirmed or lost its block."""
        affinity = await self._cas.get(affinity_key(node, cidr))
        block = await self.block(cidr)
        if (
            affinity is not None
            and affinity.value.get("state") in ("confirmed", "", None)
            and block is not None
            and blocks.owner(block.value) == node
        ):
            return True
        return await self._claim(node, cidr)

    async def _existing_blocks(self, pool: IPPool, node: str) -> list[Prefix]:
        """Blocks of the pool that exist, from this node's start on."""
        there = {cidr for cidr, _ in await self._blocks_of(pool)}
        return [cidr for cidr in block_cidrs(pool, node) if cidr in there]

    async def _take(
        self,
        cidr: Prefix,
        count: int,
        handle: str,
        attributes: Mapping[str, str],
        reserved: Sequence[Prefix],
        owner: str | None,
    ) -> list[Address]:
        """Up to `count` addresses of one block. `owner`: only while the block is that node's."""
        for attempt in range(RETRIES):
            stored = await self.block(cidr)
            if stored is None or (owner is not None and blocks.owner(stored.value) != owner):
                return []
            taken = blocks.assign(stored.value, cidr, count, handle, attributes, reserved)
            if not taken:
                return []
            blocks.bump(stored.value)
            await self._count_handle(handle, cidr, len(taken))
            try:
                await self._cas.replace(stored.key, stored.value, stored.mod_revision)
            except CasConflict:
                await self._count_handle(handle, cidr, -len(taken))
                await self._cas.pause(attempt)
                continue
            return taken
        raise CasConflict(f"the block {cidr} was changed by others {RETRIES} times in a row; try again")

    async def show(self) -> tuple[Usage, ...]:
        """How full the pools and blocks are; blocks that do not parse are left out."""
        listing = await self._client.get_prefixes((resource_prefix("IPPool"), BLOCKS))
        values = [decode(kv.key, kv.value) for kv in listing.kvs]
        return usage(
            [v for v in values if isinstance(v, IPPool)], [v for v in values if isinstance(v, Block)]
        )

    async def release_ips(self, addresses: Sequence[Address]) -> tuple[Address, ...]:
        """Give addresses back; returns those that were not assigned."""
        pools = await self.pools()
        missing: list[Address] = []
        by_block: dict[Prefix, list[Address]] = {}
        for address in addresses:
            pool = next((pool for pool in pools if pool.cidr.contains(address)), None)
            if pool is None:
                missing.append(address)
            else:
                by_block.setdefault(Prefix.within(address, pool.block_size), []).append(address)
        for cidr, members in by_block.items():
            ordinals = [blocks.ordinal_of(cidr, address) for address in members]
            freed = await self._give_back(cidr, partial(_always, ordinals))
            missing += [address for address in members if address not in freed]
        return tuple(missing)

    async def release_by_handle(self, handle: str) -> int:
        """Give back everything a handle holds; returns how many addresses. Raises NotFound."""
        stored = await self._cas.get(handle_key(handle))
        if stored is None:
            raise NotFound(f"there is no IPAM handle {handle}")
        count = 0
        for text in list(_counts(stored.value)):
            try:
                cidr = Prefix.parse(text)
            except ValueError:
                continue
            count += len(await self._give_back(cidr, lambda block: blocks.held_by(block, handle)))
        return count

    async def _give_back(self, cidr: Prefix, which: Callable[[Json], list[int]]) -> list[Address]:
        """Free the ordinals that `which` names; the block first, then the handles."""
        for attempt in range(RETRIES):
            stored = await self.block(cidr)
            if stored is None:
                return []
            ordinals = [o for o in which(stored.value) if stored.value["allocations"][o] is not None]
            if not ordinals:
                return []
            blocks.bump(stored.value)
            lost = blocks.release(stored.value, ordinals)
            try:
                if blocks.is_empty(stored.value) and not stored.value.get("affinity"):
                    await self._cas.delete(stored.key, stored.mod_revision)
                else:
                    await self._cas.replace(stored.key, stored.value, stored.mod_revision)
            except CasConflict:
                await self._cas.pause(attempt)
                continue
            for handle, number in lost.items():
                if handle:
                    await self._count_handle(handle, cidr, -number)
            return [blocks.address_at(cidr, ordinal) for ordinal in ordinals]
        raise CasConflict(f"the block {cidr} was changed by others {RETRIES} times in a row; try again")

    async def _count_handle(self, handle: str, cidr: Prefix, by: int) -> None:
        """Move a handle's count for a block; a handle that counts nothing is deleted."""
        key = handle_key(handle)
        for attempt in range(RETRIES):
            try:
                stored = await self._cas.get(key)
                if stored is None:
                    if by > 0:
                        await self._cas.create(key, {"block": {str(cidr): by}, "deleted": False})
                    return
                counts = Counter(_counts(stored.value))
                counts[str(cidr)] += by
                counts = +counts
                if counts:
                    await self._cas.replace(key, {**stored.value, "block": dict(counts)}, stored.mod_revision)
                else:
                    await self._cas.delete(key, stored.mod_revision)
                return
            except CasConflict:
                await self._cas.pause(attempt)
        raise CasConflict(
            f"the IPAM handle {handle} was changed by others {RETRIES} times in a row; try again"
        )

    async def _reserved(self) -> tuple[Prefix, ...]:
        """spec.reservedCIDRs of all IPReservations; what does not parse is left out."""
        found = []
        for kv in (await self._client.get_prefix(resource_prefix("IPReservation"))).kvs:
            try:
                spec = _object(kv.value).get("spec") or {}
                found += [Prefix.of(text) for text in spec.get("reservedCIDRs") or ()]
            except (ValueError, TypeError, AttributeError):
                continue
        return tuple(found)


def _always(ordinals: list[int], _: Json) -> list[int]:
    return ordinals


def _usable(pool: IPPool, version: IpVersion) -> bool:
    return (
        pool.cidr.version == version
        and not pool.disabled
        and pool.assignment_mode == "Automatic"
        and "Workload" in pool.allowed_uses
    )


def _counts(handle: Json) -> dict[str, int]:
    counts = handle.get("block")
    return {k: v for k, v in counts.items() if isinstance(v, int)} if isinstance(counts, dict) else {}


def _object(value: bytes) -> Json:
    decoded = json.loads(value)
    if not isinstance(decoded, dict):
        raise ValueError("not a JSON object")
    return decoded
