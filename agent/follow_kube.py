"""Follows Kubernetes for the calculation: services, endpoint slices, nodes, with the last good copy on disk.

Only what is configured is asked for: services while the datastore names ranges to advertise, all nodes where
their podCIDRs are in use. An API server that is away stops nothing: what is known stays, over a restart of
the agent by the copy, and pods' routes do not wait for it. No Secret gets here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from agent.calculation import Calculation
from agent.copy_on_disk import CopyOnDisk
from agent.kube_state import Track
from felix_like.calc.service_ranges import service_ranges
from felix_like.calc.snapshot import KubernetesResource
from felix_like.datastore.client import Header
from felix_like.datastore.errors import KeyValue
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.codec import collections
from felix_like.datastore.kube.informer import Collection, InSync, KubeBatch, KubeInformer, Pace, Stale
from felix_like.datastore.watch import Known
from felix_like.model.verdict import Refusal

log = logging.getLogger(__name__)

SUBJECT = "Kubernetes"
_HISTORY = Header(0, 0, 0)
"""The copy's format is that of the datastore's; Kubernetes has no history that a restart could go on with."""


class KubeFollower:
    """Tells the graph what Kubernetes holds. `look` says that the datastore may ask for something else."""

    def __init__(
        self,
        client: KubeClient,
        calculation: Calculation,
        *,
        copy_file: Path,
        track: Track,
        wall: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self._client = client
        self._calculation = calculation
        self.track = track
        self._wall = wall
        self._pace = pace
        self._wanted: tuple[Collection[KubernetesResource], ...] = ()
        self._asked_for = asyncio.Event()
        self.copy = CopyOnDisk(copy_file, "last good copy of Kubernetes", self._worth_keeping, wall)
        self._informer: KubeInformer[KubernetesResource] | None = None
        self._heard = False

    def look(self) -> None:
        """Follow what the datastore, as now known, asks for."""
        wanted = self._needed()
        if [one.identity for one in wanted] == [one.identity for one in self._wanted]:
            return
        self._wanted = wanted
        self.track.needed(bool(wanted))
        if self._informer is not None:
            self._informer.follow(wanted)
            self.copy.changed()
        elif wanted:
            self._asked_for.set()

    def _needed(self) -> tuple[Collection[KubernetesResource], ...]:
        graph = self._calculation.graph
        services, slices, nodes = collections(graph.local)
        wanted = {nodes.identity} if graph.local.use_pod_cidr else set()
        if any(service_ranges(graph.snapshot, graph.local)):
            wanted = {services.identity, slices.identity, nodes.identity}
        if graph.frozen is not None:
            # What a locked datastore no longer names is acted on all the same, until it is unlocked.
            wanted |= {one.identity for one in self._wanted}
        return tuple(one for one in (services, slices, nodes) if one.identity in wanted)

    def refusals(self) -> Sequence[Refusal]:
        """What the API server does not let us see, and what its absence costs."""
        refused = self._informer.refused.values() if self._informer is not None else ()
        found = [Refusal(SUBJECT, sentence) for sentence in sorted(refused)]
        state = self.track.state
        if state.state == "stale" and not self._heard:
            found.append(
                Refusal(
                    SUBJECT, f"nothing was heard from it since the start, and no copy is here: {state.reason}"
                )
            )
        return found

    async def run(self) -> None:
        """For ever. Nothing is asked before something is wanted."""
        await self._asked_for.wait()
        copied = await asyncio.to_thread(self.copy.load)
        known = {key: kv.value for key, kv in copied.kvs.items()} if copied is not None else {}
        informer = self._informer = KubeInformer(self._client, self._wanted, known=known, pace=self._pace)
        async with contextlib.aclosing(informer.events()) as events:
            async for event in events:
                self._tell(event)
                self.track.hear(event)
                self._calculation.told()

    def _tell(self, event: KubeBatch[KubernetesResource] | Stale | InSync) -> None:
        graph = self._calculation.graph
        match event:
            case KubeBatch(changes, in_sync):
                self._heard |= bool(changes) or self._listed
                if self._heard:
                    graph.on_kubernetes(changes, in_sync)
                if in_sync:
                    self.copy.changed()
                elif self._informer is not None and self._informer.known is None:
                    log.info("starting from the last good copy of Kubernetes on disk until it answers")
            case InSync():
                self._heard |= self._listed
                if self._heard:
                    graph.on_kubernetes((), True)
            case Stale(reason):
                graph.on_kubernetes_stale(reason)

    @property
    def _listed(self) -> bool:
        """The API server has told us something. One that refuses everything has not: it may be one that just
        starts, to which no token is known yet."""
        return self._informer is not None and any(map(self._informer.heard, self._wanted))

    def _worth_keeping(self) -> Callable[[], Known] | None:
        known = self._informer.known if self._informer is not None else None
        if known is None:
            return None
        return lambda: Known(_HISTORY, {key: KeyValue(key, value, 0) for key, value in known.items()})
