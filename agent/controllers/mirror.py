"""A controller that keeps copies of Kubernetes objects in etcd: follows both, writes by compare-and-swap.

Nothing is written before both sides are known, nor while one of them cannot be followed: what was copied
stays. A new leader finds what the last one left half done by comparing, and touches nothing that is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence

from agent.controllers.backlog import QUARREL, Backlog, Doubt
from agent.controllers.copying import Duty, Remove, Wanted, refused
from agent.controllers.deeds import Deeds
from agent.controllers.election import Leadership
from felix_like.datastore.cas import CasStore
from felix_like.datastore.errors import CasConflict, EtcdError, GuardFailed, KeyValue, Unavailable
from felix_like.datastore.keys import RESOURCES, quoted
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.informer import KubeBatch, KubeChange, KubeInformer, Pace
from felix_like.datastore.watch import Batch, Informer, InSync, Stale

log = logging.getLogger("tortie.controllers")

WRITERS = 8
"""Keys in work at the same time."""
CONFLICTS = 20
"""Lost races about a key in one turn before it waits."""
MOST_SAID = 50
"""Objects of one batch that cannot be copied and are named in the log."""
LOOK_AGAIN = 5.0
"""Seconds without news after which the worker looks whether it may read now."""
_SLICE = 500
"""Changes taken in before other tasks get a turn."""


class Mirror:
    """One duty of the leader. `duty` makes a new one for each term: nothing is remembered from the last."""

    def __init__(
        self,
        name: str,
        kube: KubeClient,
        duty: Callable[[], Duty],
        deeds: Deeds,
        *,
        pace: Pace | None = None,
    ) -> None:
        self.name = name
        self._kube = kube
        self._duty = duty
        self._deeds = deeds
        self._pace = pace

    async def run(self, leadership: Leadership) -> None:
        """For ever. Raises GuardFailed when another leads."""
        duty = self._duty()
        informer = KubeInformer[Wanted](self._kube, (duty.collection,), pace=self._pace)
        await Term(self.name, informer, duty, leadership, self._deeds).run()


class Term:
    """What one term of a mirror knows and does."""

    def __init__(
        self,
        name: str,
        kube: KubeInformer[Wanted],
        duty: Duty,
        leadership: Leadership,
        deeds: Deeds,
    ) -> None:
        self._name = name
        self._deeds = deeds
        self._duty = duty
        self._cas = CasStore(leadership.client)
        self._kube = kube
        self._etcd = Informer(
            leadership.reader, (duty.prefix,), vital=(), decode=lambda _, value: value, doubt=False
        )
        self._clock = asyncio.get_running_loop().time
        self._backlog = Backlog()
        self._doubt = Doubt(duty.patience)
        self._wake = asyncio.Event()
        self._away: dict[str, str] = {"Kubernetes": "", "etcd": ""}
        """Which side cannot be followed, and why; empty: it has not been listed yet."""
        self._listed = False
        self._half = False
        """A batch is being taken in."""
        self._held: set[str] = set()
        self._troubles: dict[str, str] = {}

    async def run(self) -> None:
        tasks = [
            asyncio.create_task(work, name=f"{self._name} {part}")
            for part, work in (
                ("Kubernetes", self._follow_kube()),
                ("etcd", self._follow_etcd()),
                ("writing", self._work()),
            )
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    def _tell(self) -> None:
        """The first of what is wrong; each sentence is logged once."""
        self._deeds.trouble(self._name, next(self._complaints(), None))

    def _complaints(self) -> Iterator[str]:
        for side, why in self._away.items():
            if why:
                yield f"nothing is written: {side}: {why}"
        if self._held:
            yield self._doubtful()
        for key, why in self._troubles.items():
            yield f"{_subject(key)}: {why}; tried again"
        for refusal in self._duty.refusals():
            yield str(refusal)

    # -- the two sides ---------------------------------------------------------------------------------

    async def _follow_kube(self) -> None:
        async with contextlib.aclosing(self._kube.events()) as events:
            async for event in events:
                match event:
                    case KubeBatch(changes):
                        await self._told(changes)
                    case Stale(reason):
                        self._lost("Kubernetes", reason)
                    case InSync():
                        self._mind_permission()
                        self._back("Kubernetes")
                self._wake.set()

    async def _told(self, changes: Sequence[KubeChange[Wanted]]) -> None:
        before = self._duty.objects()
        self._half = True
        said = 0
        for count, change in enumerate(changes, 1):
            for key in self._duty.told(change.key, change.value):
                self._backlog.wanted(key, self._clock())
            for refusal in refused(change.value):
                said += 1
                if said <= MOST_SAID:
                    log.warning("%s: %s", self._name, refusal)
            if not count % _SLICE:
                await asyncio.sleep(0)
        self._half = False
        if not self._kube.refused:
            self._doubt.told(before, self._duty.objects(), self._clock(), first=not self._listed)
            self._listed = True

    async def _follow_etcd(self) -> None:
        async with contextlib.aclosing(self._etcd.events()) as events:
            async for event in events:
                match event:
                    case Batch(changes):
                        for count, change in enumerate(changes, 1):
                            kv = self._etcd.raw.get(change.key)
                            for key in self._duty.seen(change.key, kv.value if kv is not None else None):
                                self._backlog.found(key, self._clock())
                            if not count % _SLICE:
                                await asyncio.sleep(0)
                    case Stale(reason):
                        self._lost("etcd", reason)
                    case InSync():
                        self._back("etcd")
                self._wake.set()

    def _mind_permission(self) -> None:
        """What an informer may not read holds it up no longer than what it may: it counts as in sync."""
        refusal = next(iter(self._kube.refused.values()), None)
        if refusal is None:
            self._back("permission")
        else:
            self._lost("permission", refusal)

    def _lost(self, side: str, reason: str) -> None:
        self._away[side] = reason
        self._tell()

    def _back(self, side: str) -> None:
        if self._away.pop(side, None) is not None:
            if not self._away:
                log.info("%s: follows Kubernetes and etcd", self._name)
            self._tell()

    # -- writing ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Hand out turns, some at a time, for ever."""
        busy: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._wake.clear()
                now = self._clock()
                self._mind_permission()
                if not self._away and not self._half:
                    if self._held and self._doubt.until() <= now:
                        self._reconsider()
                    for key in self._backlog.take(now, WRITERS - len(busy)):
                        busy.add(asyncio.create_task(self._turn(key), name=f"{self._name} {key}"))
                self._tell()
                woken = asyncio.create_task(self._wake.wait())
                try:
                    done, _ = await asyncio.wait(
                        {woken, *busy}, timeout=self._pause(len(busy)), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    woken.cancel()
                for task in done - {woken}:
                    busy.discard(task)
                    task.result()
        finally:
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)

    def _pause(self, busy: int) -> float:
        """Seconds until there may be something to do without being woken."""
        if self._away or self._half or busy == WRITERS:
            return LOOK_AGAIN
        now = self._clock()
        times = [self._backlog.next_due()]
        if self._held and self._duty.patience is not None:
            times.append(self._doubt.until())
        known = [time for time in times if time is not None]
        if not known:
            return LOOK_AGAIN
        return min(max(min(known), now) - now + 0.001, LOOK_AGAIN)

    async def _turn(self, key: str) -> None:
        """Make one key right. Raises GuardFailed; what else fails gets another turn later."""
        try:
            wrote = await self._settle(key)
        except GuardFailed:
            raise
        except EtcdError as error:
            self._backlog.failed(key, self._clock())
            if not isinstance(error, Unavailable):  # of which the informer tells
                self._troubles[key] = str(error)
            return
        self._troubles.pop(key, None)
        count = self._backlog.done(key, self._clock(), wrote=wrote)
        if count == QUARREL:
            log.warning(
                "%s: %s is changed by someone else again and again; does calico-kube-controllers run, too?",
                self._name,
                _subject(key),
            )

    async def _settle(self, key: str) -> bool:
        """Whether something had to be written."""
        known = self._etcd.raw.get(key)
        if self._duty.decide(key, known.value if known is not None else None) is None:
            self._held.discard(key)
            return False
        for attempt in range(CONFLICTS):
            try:
                return await self._swap(key, await self._cas.client.get(key))
            except CasConflict:
                await self._cas.pause(attempt)
        raise CasConflict(f"it was changed by others {CONFLICTS} times in a row")

    async def _swap(self, key: str, kv: KeyValue | None) -> bool:
        """Write what should be there over exactly what is there. Raises CasConflict."""
        decision = self._duty.decide(key, kv.value if kv is not None else None)
        if decision is None:
            self._held.discard(key)
            return False
        if isinstance(decision, Remove):
            if self._doubt.until() > self._clock():
                self._held.add(key)
                return False
            assert kv is not None
            why = "its Kubernetes object is gone"
            return await self._do("delete-copy", key, why, lambda: self._cas.delete(key, kv.mod_revision))
        document = decision.document
        if kv is None:
            return await self._do("write-copy", key, "it is new", lambda: self._cas.create(key, document))
        why = "it was not as its Kubernetes object is"
        return await self._do(
            "write-copy", key, why, lambda: self._cas.replace(key, document, kv.mod_revision)
        )

    async def _do(self, deed: str, key: str, why: str, write: Callable[[], Awaitable[object]]) -> bool:
        if not self._deeds.may(deed, _subject(key), why):
            return False
        await write()
        self._deeds.did(deed, self._name, _subject(key), why)
        return True

    def _doubtful(self) -> str:
        sentence = f"{self._duty.collection.path} is empty, all at once, and etcd has copies: they stay"
        if self._duty.patience is None:
            return f"{sentence}. Look at the API server"
        return f"{sentence}, unless it is still so after {self._duty.patience:.0f} s"

    def _reconsider(self) -> None:
        for key in self._held:
            self._backlog.found(key, self._clock())
        self._held.clear()


def _subject(key: str) -> str:
    return quoted(key.removeprefix(RESOURCES))
