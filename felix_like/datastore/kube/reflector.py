"""One collection of the Kubernetes API kept up to date: a list in pages, then watches from where it was.

Each watch goes on where the one before ended, as far as events and bookmarks moved the position. A whole
list, of which the difference is told, comes first and again when the API server has forgotten the position
(410), said something unintelligible, or went back in time.

Going back (etcd restored from a backup) needs care: a watch from a version that does not exist yet is
accepted and stays silent (seen with 1.36). So after every connection that broke, a listing of one object
shows whether the version is still ahead of ours; and because history may have been rewritten beyond it
meanwhile, a whole listing follows within `Pace.verify_within`, on every node at another time.

Fail static: a listing without any object is not believed where objects were known (`Collection.never_empty`):
services, slices and nodes there always are (the API server makes Service default/kubernetes itself), so it is
another or an emptied etcd that the API server looks at. Who deletes them all does so before our eyes, and is
followed. Where the last one may well go while we look away, as with one Secret, the listing is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from felix_like.calc.snapshot import Malformed
from felix_like.datastore.keys import quoted
from felix_like.datastore.kube.client import KubeClient
from felix_like.datastore.kube.collection import Collection
from felix_like.datastore.kube.errors import (
    Forbidden,
    Garbage,
    Gone,
    KubeError,
    NotFound,
    Overloaded,
    Refused,
    TooLarge,
)

T = TypeVar("T")

PAGE = 500
"""Objects asked for at a time."""
_DECODE_SLICE = 200
"""Objects decoded before other tasks get a turn."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds."""

    stale_after: float = 2.0
    """Of failed attempts, before the collection counts as not being followed."""
    max_pause: float = 10.0
    """Between attempts at most, before jitter."""
    refused_after: float = 5.0
    """Of refusals (403, 404), before one is believed: an API server that just starts knows neither roles nor
    all resources."""
    refused_pause: float = 30.0
    """Between attempts at a collection that is refused: roles may be corrected."""
    verify_within: float = 600.0
    """After a broken connection, until the whole is listed once more."""
    short_watch: float = 1.0
    """A watch that ends sooner is followed by a pause."""


class Held(KubeError):
    """The API server answers, but with a state that is not believed."""


class Reflector(Generic[T]):
    """Tells `put` what a collection holds, and `changed` when its own state differs."""

    def __init__(
        self,
        client: KubeClient,
        collection: Collection[T],
        *,
        put: Callable[[str, T | Malformed | None], None],
        changed: Callable[[], None],
        pace: Pace,
        rng: random.Random,
    ) -> None:
        self.collection = collection
        self.kept: dict[str, bytes] = {}
        """Everything told, as it is kept."""
        self.refused = ""
        """Why the API server will not let us; empty: it does."""
        self.listed = False
        """The API server has said what there is, once at least."""
        self.following = False
        """It was listed, and a watch continues from there."""
        self.failing_since: float | None = None
        self.failure = ""
        """Why it cannot be followed now."""
        self._client = client
        self._put = put
        self._changed = changed
        self._pace = pace
        self._rng = rng
        self._must_list = True
        self._must_probe = False
        self._verify_at: float | None = None
        self._position = ""
        self._page = PAGE
        self._whole = 0
        """Lists in a row that lost their continue token; then one without pages is tried."""
        self._failures = 0
        self._kind: type[KubeError] | None = None
        """Of `failure`: the same kind in other words is no news."""

    @property
    def settled(self) -> bool:
        """Nothing more is to be waited for before what is known counts as the whole."""
        return self.following or bool(self.refused)

    def adopt(self, kept: dict[str, bytes]) -> None:
        """Start from a copy."""
        for key, octets in kept.items():
            self._take(key, octets)

    def forget(self) -> None:
        """The collection is no longer wanted."""
        for key in list(self.kept):
            del self.kept[key]
            self._put(key, None)

    async def run(self) -> None:
        """For ever."""
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            try:
                if self._verify_at is not None and started >= self._verify_at:
                    self._must_list, self._verify_at = True, None
                if not self._must_list and self._must_probe:
                    await self._probe()
                if self._must_list:
                    await self._list()
                await self._watch()
                self._failures = 0
                if clock() - started < self._pace.short_watch:
                    await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._pace.short_watch)
            except KubeError as error:
                self._failed(error, clock())
                await asyncio.sleep(self._pause(error))

    # -- the whole -------------------------------------------------------------------------------------

    @property
    def _selectors(self) -> dict[str, str]:
        every = {
            "fieldSelector": self.collection.field_selector,
            "labelSelector": self.collection.label_selector,
        }
        return {name: text for name, text in every.items() if text}

    async def _probe(self) -> None:
        """Is the API server still where we were, or further?"""
        listing = await self._client.get(self.collection.path, {**self._selectors, "limit": "1"})
        self._must_probe = False
        if _went_back(self._position, _version(listing, self.collection.path)):
            self._must_list = True

    async def _list(self) -> None:
        fresh, position = await self._pages()
        if self.collection.never_empty and self.kept and not fresh:
            raise Held(
                f"the API server has nothing left under {self.collection.path}, where {len(self.kept)}"
                " objects were known; the last known state is kept. Is its etcd the right one?"
            )
        for key in [key for key in self.kept if key not in fresh]:
            del self.kept[key]
            self._put(key, None)
        for count, (key, octets) in enumerate(fresh.items(), 1):
            self._take(key, octets)
            if count % _DECODE_SLICE == 0:
                await asyncio.sleep(0)
        self._position, self.listed = position, True
        self._must_list = self._must_probe = False
        self._page, self._whole = PAGE, 0

    async def _pages(self) -> tuple[dict[str, bytes], str]:
        """All objects at one version, which comes with them."""
        path, fresh = self.collection.path, dict[str, bytes]()
        limit = {"limit": str(self._page)} if self._whole < 2 else {}
        token, position = "", ""
        while True:
            more = {"continue": token} if token else {}
            try:
                listing = await self._client.get(path, {**self._selectors, **limit, **more})
            except Gone:
                self._whole += 1
                raise
            except TooLarge:
                self._page = max(self._page // 8, 1)
                raise
            position = position or _version(listing, path)
            for count, item in enumerate(_items(listing, path), 1):
                key = self.collection.key(item)
                if key is not None:
                    fresh[key] = self.collection.kept(item)
                if count % _DECODE_SLICE == 0:
                    await asyncio.sleep(0)
            token = listing["metadata"].get("continue") or ""
            if not isinstance(token, str):
                raise Garbage(f"the answer for {path} has a continue token that is no text")
            if not token:
                return fresh, position

    # -- the changes -----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """One watch, to its end."""
        params = {**self._selectors, "resourceVersion": self._position, "allowWatchBookmarks": "true"}
        async with self._client.watching(self.collection.path, params) as stream:
            self._works()
            async with contextlib.aclosing(stream) as events:
                async for event in events:
                    self._failures = 0
                    self._hear(event)

    def _hear(self, event: dict[str, Any]) -> None:
        """Raises Garbage, Gone."""
        raw, path = event["object"], self.collection.path
        position = _version(raw, f"the watch of {path}")
        if _went_back(self._position, position):
            raise Gone(f"the watch of {path} went back from version {self._position} to {position}")
        self._position = position
        key = self.collection.key(raw)
        if event["type"] == "BOOKMARK" or key is None:
            return
        if event["type"] == "DELETED":
            if self.kept.pop(key, None) is not None:
                self._put(key, None)
        elif event["type"] in ("ADDED", "MODIFIED"):
            self._take(key, self.collection.kept(raw))
        else:
            raise Garbage(f"the watch of {path} brought an event of type {quoted(event['type'])}")

    def _take(self, key: str, octets: bytes) -> None:
        before = self.kept.get(key)
        if before == octets:
            return
        value = self.collection.value(key, octets)
        if value is not None:
            self.kept[key] = octets
            self._put(key, value)
        elif before is not None:
            del self.kept[key]
            self._put(key, None)

    # -- how it goes -----------------------------------------------------------------------------------

    def _works(self) -> None:
        self.failing_since, self.failure, self._kind = None, "", None
        if not self.following or self.refused:
            self.following, self.refused = True, ""
            self._changed()

    def _failed(self, error: KubeError, now: float) -> None:
        self._must_probe = True
        if isinstance(error, Gone | Garbage):
            self._must_list = True
        if self._verify_at is None and not self._must_list:
            self._verify_at = now + self._rng.uniform(0.5, 1.0) * self._pace.verify_within
        if self.failing_since is None:
            self.failing_since = now
        self._failures += 1
        lasted = now - self.failing_since
        if isinstance(error, Forbidden | NotFound | Refused):
            if self.refused or lasted >= self._pace.refused_after:
                self.refused, self.failure, self._kind = str(error), "", None
                self._changed()
        elif self.refused:
            pass  # what is refused is not missed more while the API server is away
        elif lasted >= self._pace.stale_after or isinstance(error, Held):
            self.following = False
            if type(error) is not self._kind:
                self.failure, self._kind = str(error), type(error)
                self._changed()

    def _pause(self, error: KubeError) -> float:
        """Jittered exponential backoff; the first retry is nearly at once."""
        if self.refused:
            return self._rng.uniform(0.75, 1.25) * self._pace.refused_pause
        longest = min(self._pace.max_pause, 0.05 * float(2 ** min(self._failures - 1, 10)))
        asked = error.retry_after or 0.0 if isinstance(error, Overloaded) else 0.0
        return max(self._rng.uniform(0.5, 1.5) * longest, self._rng.uniform(1.0, 1.25) * asked)


def _version(raw: dict[str, Any], subject: str) -> str:
    """resourceVersion of an object or a list."""
    metadata = raw.get("metadata")
    version = metadata.get("resourceVersion") if isinstance(metadata, dict) else None
    if not isinstance(version, str) or not 0 < len(version) <= 100:
        raise Garbage(f"{subject}: something without metadata.resourceVersion")
    return version


def _items(listing: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """An empty Go list may come as null."""
    items = listing.get("items") or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Garbage(f"the answer for {path} has items that are no objects")
    return items


def _went_back(before: str, now: str) -> bool:
    """Versions are compared where they are numbers, as those of Kubernetes' own server are."""
    return before.isdecimal() and now.isdecimal() and int(now) < int(before)
