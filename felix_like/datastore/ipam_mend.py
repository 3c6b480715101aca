"""What garbage collection writes: each step conditional on what was seen, so that who was faster wins.

    mending = Mending(leadership.client)

A step that is cut short leaves what the next look finds: a handle that counts too much, an affinity without a
block. Never an address that is given out twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from felix_like.datastore import blocks
from felix_like.datastore.errors import AlreadyExists, CasConflict
from felix_like.datastore.ipam import Ipam
from felix_like.datastore.keys import affinity_key, handle_key
from felix_like.model.address import Address, Prefix
from felix_like.model.ipam_use import Allocation, StoredAffinity, StoredHandle

Json = dict[str, Any]


class Mending(Ipam):
    """Raises the errors of `datastore.errors`; losing a race is no error but a False, or less released."""

    async def release_allocations(self, cidr: Prefix, wanted: Iterable[Allocation]) -> frozenset[Address]:
        """Give back those of a block's addresses that are still exactly these allocations; says which."""
        by_ordinal = {blocks.ordinal_of(cidr, one.address): one for one in wanted}

        def unchanged(block: Json) -> list[int]:
            return [ordinal for ordinal, one in by_ordinal.items() if _is(block, ordinal, one)]

        return frozenset(await self._give_back(cidr, unchanged))

    async def delete_affinity(self, affinity: StoredAffinity) -> bool:
        return await self._delete(affinity_key(affinity.node, affinity.cidr), affinity.revision)

    async def mend_handle(self, name: str, stored: StoredHandle | None, counts: dict[Prefix, int]) -> bool:
        """Make a handle say `counts`; none: delete it. False: somebody changed it since it was read."""
        key = handle_key(name)
        if not counts:
            return stored is None or await self._delete(key, stored.revision)
        value: Json = {"block": {str(cidr): count for cidr, count in counts.items()}, "deleted": False}
        try:
            if stored is None:
                await self._cas.create(key, value)
                return True
            current = await self._cas.get(key)
            if current is None or current.mod_revision != stored.revision:
                return False
            await self._cas.replace(key, {**current.value, **value}, stored.revision)
        except (AlreadyExists, CasConflict):
            return False
        return True

    async def _delete(self, key: str, revision: int) -> bool:
        try:
            await self._cas.delete(key, revision)
        except CasConflict:
            return False
        return True


def _is(block: Json, ordinal: int, wanted: Allocation) -> bool:
    """Whether an ordinal still carries this very allocation: same handle, same sequence number."""
    index = block["allocations"][ordinal]
    if index is None:
        return False
    numbers = block.get("sequenceNumberForAllocation")
    number = numbers.get(str(ordinal)) if isinstance(numbers, dict) else None
    return number == wanted.sequence and (block["attributes"][index].get("handle_id") or "") == wanted.handle
