"""Follows the datastore: informer -> graph, with the last good snapshot on disk on the side."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent.calculation import Calculation
from agent.copy_on_disk import CopyOnDisk
from felix_like.calc.desire import secret_refs
from felix_like.datastore.client import Client
from felix_like.datastore.keys import resource_key
from felix_like.datastore.watch import Batch, Event, Informer, InSync, Known, Stale
from felix_like.model.bgp import SecretRef

log = logging.getLogger(__name__)

SECRETS_EVERY = 10.0
"""Seconds between looks at the password files, while any is referred to."""


@dataclass(frozen=True, slots=True)
class StoreState:
    """What the status says of the datastore."""

    state: str
    """`connecting`, `in-sync` or `stale`."""
    since: float
    """Seconds since the epoch."""
    reason: str = ""


class Secrets(Protocol):
    """Where passwords come from."""

    def read(self, refs: Collection[SecretRef]) -> Mapping[SecretRef, str]:
        """Those there are."""


class Follower:
    """Tells the graph what etcd holds. `wall` is the time of day, for people.

    `told` is called when the graph was told something that may ask for something else from elsewhere.
    """

    def __init__(
        self,
        client: Client,
        calculation: Calculation,
        *,
        snapshot_file: Path,
        secrets: Secrets,
        wall: Callable[[], float],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._calculation = calculation
        self._secrets = secrets
        self._wall = wall
        self._told = told
        self.copy = CopyOnDisk(snapshot_file, "last good snapshot", self._worth_keeping, wall)
        self._informer: Informer | None = None
        self._refs: frozenset[SecretRef] = frozenset()
        self.state = StoreState("connecting", wall())

    async def run(self) -> None:
        """For ever; the last good snapshot is delivered first, so that a dead etcd stops nothing."""
        known = await asyncio.to_thread(self.copy.load)
        own = self._calculation.graph.local.name
        if known is not None and resource_key("Node", own) not in known.kvs:
            # All that would follow from it is that this node has no peers.
            log.warning("the last good snapshot does not know node %s: it is not used", own)
            known = None
        self._informer = Informer(self._client, known=known)
        async with contextlib.aclosing(self._informer.events()) as events:
            async for event in events:
                self._tell(event)
                self._calculation.told()

    def _tell(self, event: Event) -> None:
        graph = self._calculation.graph
        match event:
            case Batch(changes, _, in_sync):
                graph.on_datastore(changes, in_sync)
                self.read_secrets()
                self._told()
                if in_sync:
                    self.copy.changed()
                    self._enter("in-sync")
                else:
                    log.info("starting from the last good snapshot on disk until etcd answers")
            case InSync(revision):
                graph.on_datastore((), True)
                self._enter("in-sync")
                log.info("in sync with the datastore at revision %d", revision)
            case Stale(reason):
                graph.on_datastore_stale(reason)
                self._enter("stale", reason)
                log.warning(
                    "the datastore cannot be followed: %s; forwarding goes on with what is known", reason
                )

    def _enter(self, state: str, reason: str = "") -> None:
        if (state, reason) != (self.state.state, self.state.reason):
            since = self.state.since if state == self.state.state else self._wall()
            self.state = StoreState(state, since, reason)

    def read_secrets(self) -> None:
        """Read the passwords that peers refer to now."""
        graph = self._calculation.graph
        refs = secret_refs(graph.snapshot, graph.local)
        # Those that a locked datastore no longer refers to are in use until it is unlocked.
        self._refs = refs if graph.frozen is None else refs | self._refs
        graph.on_secrets(self._secrets.read(self._refs))

    def reread_secrets(self) -> None:
        """They may be others now."""
        self.read_secrets()
        self._calculation.told()

    async def watch_secrets(self) -> None:
        """Passwords are files: they come, change and go without an event."""
        while True:
            await asyncio.sleep(SECRETS_EVERY)
            if self._refs:
                self.reread_secrets()

    def _worth_keeping(self) -> Callable[[], Known] | None:
        known, graph = self._informer.known if self._informer is not None else None, self._calculation.graph
        if known is None or graph.frozen is not None:
            return None  # what is locked may be half a migration: the state before it is the good one
        if graph.local.name not in graph.snapshot.nodes:
            return None  # not registered yet, or no longer: such a start would end every session
        return lambda: known
