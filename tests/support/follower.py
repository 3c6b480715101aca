"""What a consumer of the informer ends up with, recorded; and node values to write."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

from felix_like.datastore.client import Client, Put
from felix_like.datastore.keys import RESOURCES
from felix_like.datastore.watch import Batch, Event, Informer, InSync, Stale

NODES = RESOURCES + "nodes/"


def node_key(number: int) -> str:
    return f"{NODES}node-{number}"


def node_value(number: int, generation: int = 0, padding: int = 0) -> bytes:
    name = f"node-{number}"
    resource = {
        "kind": "Node",
        "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name, "labels": {"generation": str(generation)}},
        "spec": {"bgp": {"ipv4Address": f"10.{number >> 8 & 255}.{number & 255}.1/24"}},
    }
    if padding:
        resource["status"] = {"padding": "x" * padding}
    return json.dumps(resource, separators=(",", ":")).encode()


async def write_nodes(client: Client, numbers: range, generation: int = 0) -> None:
    """Put nodes, 100 to a transaction."""
    puts = [Put(node_key(n), node_value(n, generation)) for n in numbers]
    for start in range(0, len(puts), 100):
        await client.txn((), puts[start : start + 100])


class Follower:
    """Consumes events; `state` is generation (a node's label) by key."""

    def __init__(self, informer: Informer) -> None:
        self.informer = informer
        self.events: list[Event] = []
        self.state: dict[str, str] = {}
        self.deleted: list[str] = []

    async def run(self) -> None:
        async with contextlib.aclosing(self.informer.events()) as events:
            async for event in events:
                self.events.append(event)
                if isinstance(event, Batch):
                    self._apply(event)

    def _apply(self, batch: Batch) -> None:
        for change in batch.changes:
            if change.value is None:
                del self.state[change.key]
                self.deleted.append(change.key)
            else:
                labels = getattr(change.value, "labels", {})
                self.state[change.key] = labels.get("generation", type(change.value).__name__)

    @property
    def in_sync(self) -> bool:
        last = next((e for e in reversed(self.events) if isinstance(e, InSync | Stale)), None)
        return isinstance(last, InSync)

    @property
    def stale(self) -> str | None:
        """The reason, when staleness is the last word."""
        last = next((e for e in reversed(self.events) if isinstance(e, InSync | Stale)), None)
        return last.reason if isinstance(last, Stale) else None


@contextlib.asynccontextmanager
async def following(informer: Informer) -> AsyncIterator[Follower]:
    """A follower at work; an exception in it fails the test."""
    follower = Follower(informer)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def truth(client: Client) -> dict[str, str]:
    """What etcd holds, in the follower's terms."""
    listing = await client.get_prefix(NODES)
    return {kv.key: json.loads(kv.value)["metadata"]["labels"]["generation"] for kv in listing.kvs}
