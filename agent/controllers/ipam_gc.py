"""The IPAM controller: gives back what nobody uses any more, and puts IPAM's bookkeeping right.

A look takes all of IPAM out of etcd at one revision, beside the pods and nodes that Kubernetes has; the
decisions are `felix_like.calc`'s. Before an address is released, Kubernetes is asked about its pod once more,
directly, and the write is conditional on the very allocation that was judged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime

from agent.controllers.deeds import Deeds
from agent.controllers.election import Leadership
from agent.controllers.kube_view import KubeView
from felix_like.calc import garbage, upkeep
from felix_like.calc.garbage import Judged, Kept, Leak, LeakId, Standing, Word
from felix_like.calc.upkeep import EmptyBlock, Finding, Sight, StaleAffinity, WrongHandle
from felix_like.datastore.claims import RECLAIM_AFTER
from felix_like.datastore.client import Client
from felix_like.datastore.errors import CasConflict, Refused
from felix_like.datastore.ipam_listing import ipam_state
from felix_like.datastore.ipam_mend import Mending
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.errors import KubeError, Unreachable
from felix_like.model.address import Address, Prefix
from felix_like.model.ipam_use import Allocation, Cluster, IpamState
from felix_like.model.verdict import No

DEFAULT_GRACE = 900.0
"""Seconds that an address must be unused (Calico's leakGracePeriod)."""
LONGEST_PERIOD = 300.0
SHORTEST_PERIOD = 0.2
"""Seconds from one look to the next; half the grace in between, as Calico does."""
AT_ONCE = 500
"""Handles released after one look at most: each costs a question to the API server."""
ASKING = 30.0
"""Seconds of asking in one look: what was heard first must not be old when the addresses are released."""
SETTLE = 1.0
"""Seconds after a Node was removed until the next look."""


class IpamController:
    """`kube` None: only what needs no Kubernetes is done. `grace` None: as the cluster is configured."""

    name = "ipam"

    def __init__(
        self,
        etcd: Client,
        kube: KubeClient | None,
        deeds: Deeds,
        *,
        grace: float | None,
        removed: asyncio.Event,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._etcd = etcd
        self._kube = kube
        self._deeds = deeds
        self._grace = grace
        self._removed = removed
        self._wall = wall

    async def run(self, leadership: Leadership) -> None:
        term = Term(self, leadership)
        async with asyncio.TaskGroup() as group:
            if term.view is not None:
                group.create_task(term.view.run(), name="ipam: Kubernetes")
            group.create_task(self._look_again(term), name="ipam: look")

    async def _look_again(self, term: Term) -> None:
        clock = asyncio.get_running_loop().time
        if term.view is not None:
            await self._first_news(term.view)
        while True:
            self._removed.clear()
            began = clock()
            more = await term.look(began)
            self._deeds.gauges["look_seconds"] = clock() - began
            self._deeds.gauges["look_at"] = self._wall().timestamp()
            if more:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(term.period):
                    await self._removed.wait()
                    await asyncio.sleep(SETTLE)

    async def _first_news(self, view: KubeView) -> None:
        """What needs no Kubernetes is not held up for long by one that does not answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(10):
                while view.doubt:
                    view.changed.clear()
                    await view.changed.wait()


class Term:
    """One term of office: since when what was seen, and the hands that do something about it."""

    def __init__(self, controller: IpamController, leadership: Leadership) -> None:
        self._own = controller
        self._deeds = controller._deeds
        self._mending = Mending(leadership.client)
        self._since: dict[LeakId, float] = {}
        self._sights: dict[str, Sight] = {}
        self._grace = DEFAULT_GRACE
        self.view = KubeView(controller._kube, pods=True) if controller._kube is not None else None

    @property
    def period(self) -> float:
        half = self._grace / 2 if self._grace > 0 else LONGEST_PERIOD
        return max(SHORTEST_PERIOD, min(LONGEST_PERIOD, half))

    async def look(self, now: float) -> bool:
        """One look, and what follows from it. True: there is more to do at once. Raises EtcdError."""
        state = await ipam_state(self._own._etcd)
        self._grace = self._own._grace if self._own._grace is not None else _default(state.leak_grace)
        if bar := state.locked or (state.unknown_grace if self._own._grace is None else ""):
            self._deeds.trouble(self._own.name, f"{bar}: nothing is collected")
            return False
        cluster, doubt = self._cluster()
        judged = garbage.judge(state, cluster, since=self._since, now=now, grace=self._grace)
        self._since = garbage.remembered(judged)
        self._count(judged, state)
        notes = [doubt, *(f"{subject}: {reason}" for subject, reason in sorted(state.damaged.items()))]
        leaks = garbage.leaks(judged) if self._grace > 0 else ()
        released, rest = await self._release(leaks, state, notes)
        if self._grace > 0:
            await self._tidy(state, cluster, now, notes)
        self._deeds.trouble(self._own.name, "; ".join(list(filter(None, notes))[:3]))
        return released > 0 and rest

    def _cluster(self) -> tuple[Cluster | None, str]:
        if self.view is None:
            return None, ""
        found = self.view.cluster()
        return (None, f"no address is judged: {found.reason}") if isinstance(found, No) else (found, "")

    def _count(self, judged: Iterable[Judged], state: IpamState) -> None:
        for standing in Standing:
            self._deeds.gauges[f"allocations {standing}"] = 0
        for one in judged:
            self._deeds.gauges[f"allocations {one.standing}"] += 1
        self._deeds.gauges["damaged"] = len(state.damaged)

    # -- leaks -----------------------------------------------------------------------------------------

    async def _release(self, leaks: Sequence[Leak], state: IpamState, notes: list[str]) -> tuple[int, bool]:
        """Ask Kubernetes once more about each, then give back block by block.

        Returns how many addresses, and whether some were not asked about. `notes` hears what stands in the
        way.
        """
        by_block: defaultdict[Prefix, list[Judged]] = defaultdict(list)
        nodes: dict[str, bool] = {}
        clock = asyncio.get_running_loop().time
        until, rest = clock() + ASKING, list(reversed(leaks))
        while rest and len(leaks) - len(rest) < AT_ONCE and clock() < until:
            leak = rest.pop()
            try:
                if await self._confirmed(leak, state, nodes):
                    for one in leak.members:
                        by_block[one.allocation.block].append(one)
            except KubeError as error:
                notes.append(f"IPAM handle {leak.handle} is not released: {error}")
                if isinstance(error, Unreachable):
                    break  # a time-out for each of hundreds would hold up everything else for hours
        count = 0
        for cidr, members in sorted(by_block.items()):
            count += await self._give_back(cidr, members, notes)
        return count, bool(rest)

    async def _confirmed(self, leak: Leak, state: IpamState, nodes: dict[str, bool]) -> bool:
        """Whether all of a handle's addresses are leaks still. `nodes`: which exist, as asked so far.

        Raises KubeError.
        """
        if not all(
            self._deeds.may("release-address", _subject(one.allocation), one.reason) for one in leak.members
        ):
            return False
        assert self.view is not None
        for one in leak.members:
            reason = await self._revived(one, state, nodes)
            if reason:
                self._since.pop(garbage.leak_id(one.allocation), None)
                self._deeds.did("keep-address", "revived", _subject(one.allocation), reason)
                return False
        return True

    async def _revived(self, one: Judged, state: IpamState, nodes: dict[str, bool]) -> str:
        """Why it is no leak after all, asked of Kubernetes itself; empty: it is one. Raises KubeError."""
        assert self.view is not None
        allocation = one.allocation
        if one.word is Word.NODE_GONE:
            if allocation.node not in nodes:
                nodes[allocation.node] = await self.view.node_exists(allocation.node)
            if nodes[allocation.node]:
                return f"Kubernetes has a Node {allocation.node} after all"
        if allocation.is_tunnel:
            return ""
        pod = await self.view.pod(allocation.namespace, allocation.pod)
        found = garbage.pod_use(allocation, pod, state.nodes.get(allocation.node))
        return found.reason if isinstance(found, Kept) else ""

    async def _give_back(self, cidr: Prefix, members: list[Judged], notes: list[str]) -> int:
        try:
            freed = await self._mending.release_allocations(cidr, [one.allocation for one in members])
        except (Refused, CasConflict) as error:  # damaged since the look, or fought over
            notes.append(str(error))
            return 0
        for one in members:
            if one.allocation.address in freed:
                word = one.word.value if one.word is not None else "unknown"
                self._deeds.did("release-address", word, _subject(one.allocation), one.reason)
        return len(freed)

    # -- blocks, affinities, handles -------------------------------------------------------------------

    async def _tidy(self, state: IpamState, cluster: Cluster | None, now: float, notes: list[str]) -> None:
        orphaned = upkeep.orphaned_blocks(state, cluster)
        doomed = {block.subject for block in orphaned}
        recent = (self._own._wall() - RECLAIM_AFTER).strftime("%Y-%m-%dT%H:%M:%SZ")
        idle = [b for b in upkeep.idle_blocks(state, claimed_before=recent) if b.subject not in doomed]
        findings: list[Finding] = [*orphaned, *idle]
        findings += upkeep.stale_affinities(state)
        findings += upkeep.wrong_handles(state)
        self._deeds.gauges["findings"] = len(findings)
        ripe, self._sights = upkeep.settled(findings, self._sights, now=now, settle=self._grace)
        for finding in ripe:
            try:
                await self._mend(finding)
            except (Refused, CasConflict) as error:
                notes.append(str(error))

    async def _mend(self, finding: Finding) -> None:
        match finding:
            case EmptyBlock(node, cidr, sequence):
                if self._deeds.may("release-block", finding.subject, finding.reason) and (
                    await self._mending.release_block(node, cidr, only_empty=True, sequence=sequence)
                ):
                    self._deeds.did("release-block", finding.word, finding.subject, finding.reason)
            case StaleAffinity(affinity):
                if self._deeds.may("delete-affinity", finding.subject, finding.reason) and (
                    await self._mending.delete_affinity(affinity)
                ):
                    self._deeds.did("delete-affinity", finding.word, finding.subject, finding.reason)
            case WrongHandle(name, stored, counts):
                if self._deeds.may("mend-handle", finding.subject, finding.reason) and (
                    await self._mending.mend_handle(name, stored, dict(counts))
                ):
                    self._deeds.did("mend-handle", finding.word, finding.subject, finding.reason)


def _subject(allocation: Allocation) -> str:
    address: Address = allocation.address
    return f"address {address} (handle {allocation.handle}, node {allocation.node})"


def _default(grace: float | None) -> float:
    return DEFAULT_GRACE if grace is None else grace
