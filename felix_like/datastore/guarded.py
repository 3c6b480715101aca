"""An etcd client whose every write carries conditions: a writer that has been replaced writes nothing.

    guarded = GuardedClient(client, (Compare(leader_key, "create_revision", ours),))
    Ipam(guarded); ResourceStore(guarded)      # as with any client

etcd itself judges the conditions, in the transaction that writes: neither a pause of the process nor a
partition nor a wrong clock lets a write through.
"""

from __future__ import annotations

from collections.abc import Sequence

from felix_like.datastore.client import Client, Compare, Delete, Get, Put, TxnReply
from felix_like.datastore.errors import GuardFailed, KeyValue
from felix_like.datastore.keys import quoted

_AT_A_TIME = 100
"""Deletes in one transaction; etcd allows 128 operations."""


class GuardedClient(Client):
    """Shares another client's connections, which the owner of that one closes.

    Reads are as ever. A write raises GuardFailed, and has not happened, when a guard does not hold.
    """

    def __init__(self, client: Client, guards: Sequence[Compare]) -> None:
        self.wire = client.wire
        self._timeout = client._timeout
        self.guards = tuple(guards)

    async def close(self) -> None:
        """Nothing: the connections are the other client's."""

    async def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Put | Delete | Get],
        failure: Sequence[Put | Delete | Get] = (),
    ) -> TxnReply:
        """As a client's, with the guards among the conditions. `failure` may only read."""
        if not all(isinstance(one, Get) for one in failure):
            raise ValueError("a guarded transaction must not write when its conditions do not hold")
        looks = [Get(guard.key) for guard in self.guards]
        reply = await super().txn((*self.guards, *compare), success, (*failure, *looks))
        if reply.succeeded:
            return reply
        count = len(failure)
        for guard, found in zip(self.guards, reply.got[count:], strict=True):
            if not holds(guard, found):
                raise GuardFailed(
                    f"{quoted(guard.key)} is not what it was when this writer was let in: nothing was written"
                )
        return TxnReply(False, reply.header, reply.got[:count])

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Write unless a guard fails; returns the revision. Raises OutcomeUnknown, too."""
        return (await self.txn((), (Put(key, value, lease),))).header.revision

    async def delete(self, key: str) -> bool:
        return (await self.txn((), (Get(key), Delete(key)))).got[0] is not None

    async def delete_prefix(self, prefix: str) -> int:
        keys = [kv.key for kv in (await self.get_prefix(prefix)).kvs]
        for start in range(0, len(keys), _AT_A_TIME):
            await self.txn((), [Delete(key) for key in keys[start : start + _AT_A_TIME]])
        return len(keys)


def holds(compare: Compare, found: KeyValue | None) -> bool:
    """Whether a condition is true of what was found."""
    if found is None:
        value = 0
    elif compare.target == "version":
        value = found.version
    elif compare.target == "mod_revision":
        value = found.mod_revision
    else:
        value = found.create_revision
    return (value == compare.value) is compare.equal
