"""The informer for Kubernetes: what some collections hold, first as a whole, then change by change, for ever.

    async with contextlib.aclosing(KubeInformer(client, collections).events()) as events:
        async for event in events:
            match event:
                case KubeBatch(changes): ...
                case Stale(reason): ...   # keep what is known, say so
                case InSync(): ...

The promise is that of `datastore.watch`: whatever breaks, applying the batches ends in the API server's
present state, deletes included, and nothing that was delivered is forgotten while it is away.

How: every collection has a task and a position of its own (`reflector`). What they learn piles up here, the
last word for each key, until it is asked for: a slow reader costs no more memory than the state itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Generic, TypeVar

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.collection import Collection, KubeBatch, KubeChange, trim
from felix_like.datastore.kube.reflector import Pace, Reflector
from felix_like.datastore.watch import InSync, Stale

__all__ = ["Collection", "InSync", "KubeBatch", "KubeChange", "KubeInformer", "Pace", "Stale", "trim"]

T = TypeVar("T")


class KubeInformer(Generic[T]):
    """Follows collections. `known`, kept octets by key, is delivered first, as a batch that is not in sync.

    Before every permitted collection has been listed nothing else is delivered; then one batch, then InSync.
    A forbidden collection is tried again now and then, named in `refused`, and holds up nothing else; what
    was known of it stays.
    """

    def __init__(
        self,
        client: KubeClient,
        collections: Sequence[Collection[T]],
        *,
        known: Mapping[str, bytes] | None = None,
        pace: Pace | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._pace = pace or Pace()
        self._rng = rng or random.Random()
        self._seed = dict(known or {})
        """Of the copy, what no collection has taken over yet."""
        self._reflectors: dict[tuple[str, str, str, str], Reflector[T]] = {}
        self._tasks: dict[tuple[str, str, str, str], asyncio.Task[None]] = {}
        self._pending: dict[str, T | Malformed | None] = {}
        self._wake = asyncio.Event()
        self._running = False
        self._whole_once = False
        self._heard: frozenset[tuple[str, str, str, str]] = frozenset()
        self._stale: str | None = None
        self._in_sync = False
        self._bug: BaseException | None = None
        self.follow(collections)

    @property
    def in_sync(self) -> bool:
        """Every permitted collection is being followed."""
        return self._in_sync

    @property
    def refused(self) -> Mapping[str, str]:
        """Path (and field selector) -> why a collection cannot be followed though the others can."""
        return {
            " ".join(filter(None, (one.collection.path, one.collection.field_selector))): one.refused
            for one in self._reflectors.values()
            if one.refused
        }

    def heard(self, collection: Collection[T]) -> bool:
        """The API server has said what is in it, and that was delivered."""
        return collection.identity in self._heard

    def refusal(self, collection: Collection[T]) -> str:
        """Why it cannot be followed; empty: nothing was said against it."""
        reflector = self._reflectors.get(collection.identity)
        return reflector.refused if reflector is not None else ""

    @property
    def known(self) -> dict[str, bytes] | None:
        """A copy to put on disk; None before everything was listed once."""
        if not self._whole_once:
            return None
        return {key: octets for one in self._reflectors.values() for key, octets in one.kept.items()}

    def follow(self, collections: Sequence[Collection[T]]) -> None:
        """Other collections from now on: new ones are listed, what dropped ones held is delivered as gone."""
        wanted = {collection.identity: collection for collection in collections}
        for identity in [identity for identity in self._reflectors if identity not in wanted]:
            if (task := self._tasks.pop(identity, None)) is not None:
                task.cancel()
            self._reflectors.pop(identity).forget()
        for identity, collection in wanted.items():
            if identity not in self._reflectors:
                self._reflectors[identity] = self._reflector(collection)
                if self._running:
                    self._start(identity)
        self._wake.set()

    def _reflector(self, collection: Collection[T]) -> Reflector[T]:
        made = Reflector(
            self._client,
            collection,
            put=self._put,
            changed=self._wake.set,
            pace=self._pace,
            rng=self._rng,
        )
        ours = [key for key in self._seed if key.startswith(f"{collection.prefix}/")]
        made.adopt({key: self._seed.pop(key) for key in ours})
        return made

    def _put(self, key: str, value: T | Malformed | None) -> None:
        self._pending[key] = value
        self._wake.set()

    def _start(self, identity: tuple[str, str, str, str]) -> None:
        task = asyncio.create_task(self._reflectors[identity].run(), name=f"watch {identity[0]}")
        task.add_done_callback(self._ended)
        self._tasks[identity] = task

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A reflector ends by being cancelled only; anything else is a bug, for who reads the events."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._bug = error
            self._wake.set()

    async def events(self) -> AsyncGenerator[KubeBatch[T] | Stale | InSync, None]:
        """Yields for ever. Close it (`contextlib.aclosing`) to let go of the connections."""
        if self._pending:
            yield self._batch(in_sync=False)
        self._running = True
        for identity in self._reflectors:
            self._start(identity)
        try:
            while True:
                if self._bug is not None:
                    raise self._bug
                for event in self._news():
                    yield event
                await self._wake.wait()
                self._wake.clear()
        finally:
            self._running = False
            tasks = list(self._tasks.values())
            self._tasks.clear()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _news(self) -> list[KubeBatch[T] | Stale | InSync]:
        """What there is to say now."""
        reflectors = self._reflectors.values()
        whole = all(one.settled for one in reflectors)
        failures = sorted({one.failure for one in reflectors if one.failure})
        news: list[KubeBatch[T] | Stale | InSync] = []
        first = whole and not self._whole_once
        self._whole_once |= whole
        if first or (self._whole_once and self._pending):
            news.append(self._batch(in_sync=whole))
        if self._whole_once:
            self._heard = frozenset(name for name, one in self._reflectors.items() if one.listed)
        if whole and not self._in_sync:
            self._stale = None
            news.append(InSync(0))
        self._in_sync = whole
        if failures and self._stale not in failures:
            self._stale = failures[0]
            news.append(Stale(failures[0]))
        return news

    def _batch(self, *, in_sync: bool) -> KubeBatch[T]:
        pending, self._pending = self._pending, {}
        return KubeBatch(tuple(KubeChange(key, value) for key, value in pending.items()), in_sync)
