"""The informer: what etcd holds under some prefixes, first as a whole, then change by change, for ever.

    async with contextlib.aclosing(Informer(client).events()) as events:
        async for event in events:
            match event:
                case Batch(): snapshot.apply(event.changes)
                case Stale(): ...   # keep forwarding, say so
                case InSync(): ...

The promise: whatever breaks (a cut connection, a dead, frozen or restarted member, compaction), applying
the batches ends in etcd's present state, deletes included, and nothing that was delivered is forgotten.

How: one paged list at a fixed revision; one watch per prefix from the revision after it; every watch has
its own position, which moves only to the mod revision of the last event delivered or to the header of an
empty progress reply of that very watch. (Replies to a manual progress request are not used: etcd before
3.4.25 and 3.5.8 may send them ahead of the events.) Previous values are not asked for: they are here.

Fail static: when etcd comes back as another cluster, or with its history set back (a wipe, a restored
backup), the new state is taken over only if it is plausible; see `_check_plausible`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from felix_like.calc.snapshot import Change
from felix_like.datastore.attachment import Attachment, CanceledWatch
from felix_like.datastore.client import Client, Header, Listing, decode_key
from felix_like.datastore.codec import decode
from felix_like.datastore.errors import Compacted, Denied, EtcdError, KeyValue, Unauthenticated
from felix_like.datastore.keys import VITAL, WATCHED
from felix_like.datastore.outage import Outage
from felix_like.datastore.proto import etcd_pb2 as pb

PROBE_TIMEOUT = 3.0
"""Seconds for the first question after a connection was lost."""
PROBE_EACH = 1.0
"""Seconds for one endpoint: etcd 3.4 loses the question when the leader changes, so ask again soon."""
STALE_AFTER = 2.0
"""Seconds of failed attempts before the datastore is called stale."""
MAX_PAUSE = 2.0
"""Seconds between attempts at most, before jitter."""
_DECODE_SLICE = 500
"""Values decoded before other tasks get a turn."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that belong together, one for each key; nothing in it is older than what came before."""

    changes: tuple[Change, ...]
    revision: int
    in_sync: bool
    """False: from the last good snapshot on disk, not from etcd."""


@dataclass(frozen=True, slots=True)
class Stale:
    """etcd cannot be followed at the moment; what was delivered is the last known state."""

    reason: str


@dataclass(frozen=True, slots=True)
class InSync:
    """The watches are set again from where they were, at the first time after a whole listing.

    After an outage, what happened meanwhile follows in the next batches.
    """

    revision: int


Event = Batch | Stale | InSync


@dataclass(frozen=True, slots=True)
class Known:
    """Raw state at one point of one history: what the last good snapshot on disk holds."""

    header: Header
    kvs: Mapping[str, KeyValue]


class Held(EtcdError):
    """etcd answers, but with a state that is not believed."""


class Informer:
    """Follows prefixes of etcd. `known` is delivered first, as a batch that is not in sync."""

    def __init__(
        self,
        client: Client,
        prefixes: Sequence[str] = WATCHED,
        *,
        vital: Sequence[str] = VITAL,
        known: Known | None = None,
        decode: Callable[[str, bytes], Any] = decode,
        doubt: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        """`decode`: key and value -> what a change carries; None: not worth a change. Never raises.

        `doubt` False: for a reader that loses nothing by a state that is not plausible.
        """
        self._client = client
        self._decode = decode
        self._doubt = doubt
        self._prefixes = tuple(prefixes)
        self._vital = tuple(vital)
        self._rng = rng or random.Random()
        self._raw: dict[str, KeyValue] = dict(known.kvs) if known else {}
        self._header = known.header if known else None
        self._seeded = known is not None
        self._must_list = True
        self._new_history = ""
        self._positions: dict[int, int] = {}
        self._attachment: Attachment | None = None
        self._failures = 0
        self._failing_since = 0.0
        self._in_sync = False
        self._outage = Outage()

    @property
    def raw(self) -> Mapping[str, KeyValue]:
        """Every key delivered, as etcd holds it; copy it before awaiting."""
        return MappingProxyType(self._raw)

    @property
    def known(self) -> Known | None:
        """A copy to put on disk; None before the first listing."""
        return Known(self._header, dict(self._raw)) if self._header else None

    @property
    def endpoint(self) -> str:
        """The endpoint in use, or tried at the moment."""
        return self._attachment.endpoint if self._attachment else self._client.wire.endpoint.url

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields for ever. Close it (`contextlib.aclosing`) to let go of the connection."""
        if self._seeded and self._header:
            changes = await self._decoded(self._raw.values())
            yield Batch(changes, self._header.revision, in_sync=False)
        try:
            while True:
                try:
                    if self._attachment is None:
                        batch = await self._catch_up()
                        if batch:
                            self._outage.over()  # whoever hears a batch takes us for in sync
                            yield batch
                        await self._attach()
                        if not self._in_sync:
                            self._in_sync = True
                            self._outage.over()
                            yield InSync(self._header.revision if self._header else 0)
                    batch = await self._next()
                    self._failures = 0
                    if batch:
                        yield batch
                except EtcdError as error:
                    stale = self._failed(error)
                    if stale:
                        yield stale
                    await self._pause()
        finally:
            self._detach()

    # -- keeping up ------------------------------------------------------------------------------------

    async def _catch_up(self) -> Batch | None:
        """Make sure the history is the one we know; list when it is not, or when the watch lost track."""
        await self._check_history()
        if not self._must_list:
            return None
        listing = await self._client.get_prefixes(self._prefixes)
        if not self._same_history(listing.header):
            self._new_history = self._new_history or "the history of etcd changed"
        fresh = {kv.key: kv for kv in listing.kvs}
        if self._doubt:
            self._check_plausible(fresh)
        changes = await self._difference(fresh)
        first = self._header is None or self._seeded
        self._take_over(listing, fresh)
        return Batch(changes, listing.header.revision, in_sync=True) if changes or first else None

    async def _check_history(self) -> None:
        """Ask for the oldest key we know: same creation, same history. Also proves there is a quorum."""
        witness = min(self._raw.values(), key=lambda kv: kv.create_revision, default=None)
        key = witness.key if witness else self._prefixes[0]
        header, found = await self._client.probe(key, seconds=PROBE_TIMEOUT, each=PROBE_EACH)
        if not self._same_history(header):
            self._must_list = True
        elif witness and (found is None or found.create_revision != witness.create_revision):
            self._must_list = True
            if found and self._header and found.create_revision <= self._header.revision:
                self._new_history = f"{witness.key} was created at another revision than the one we know"

    def _same_history(self, header: Header) -> bool:
        known = self._header
        if known is None:
            return True
        if header.cluster_id != known.cluster_id:
            self._new_history = (
                f"another etcd cluster answers (ID {header.cluster_id:x}, until now {known.cluster_id:x})"
            )
        elif header.revision < known.revision:
            self._new_history = (
                f"etcd's revision went back from {known.revision} to {header.revision} (wiped or restored?)"
            )
        elif header.raft_term < known.raft_term:
            self._new_history = "etcd's raft term went back (wiped or restored?)"
        else:
            return True
        return False

    def _check_plausible(self, fresh: Mapping[str, KeyValue]) -> None:
        """Refuse a state that would delete everything. Raises Held.

        Held is: a listing that is empty when we knew something; and, in another history, one in which all
        nodes, all pools or all blocks are gone. An operator's own `etcdctl del` comes as watch events and
        is followed; a wiped or wrong etcd is not allowed to withdraw a cluster's routes.
        """
        gone = [
            prefix
            for prefix in self._vital
            if any(key.startswith(prefix) for key in self._raw)
            and not any(k.startswith(prefix) for k in fresh)
        ]
        if not self._raw or (fresh and not (self._new_history and gone)):
            return
        missing = ", ".join(gone) if fresh else "the watched prefixes"
        raise Held(
            f"{self._new_history or 'etcd was emptied'}: nothing is left under {missing}; the last known"
            " state is kept. Restore etcd; if the loss is intended, remove the agent's last good snapshot and"
            " restart the agent"
        )

    async def _difference(self, fresh: Mapping[str, KeyValue]) -> tuple[Change, ...]:
        revision = max((kv.mod_revision for kv in fresh.values()), default=0)
        changed = [
            kv for key, kv in fresh.items() if key not in self._raw or self._raw[key].value != kv.value
        ]
        gone = [
            Change(key, None, revision)
            for key, kv in self._raw.items()
            if key not in fresh and self._decode(key, kv.value) is not None
        ]
        return (*gone, *await self._decoded(changed))

    async def _decoded(self, kvs: Iterable[KeyValue]) -> tuple[Change, ...]:
        changes = []
        for count, kv in enumerate(list(kvs)):
            value = self._decode(kv.key, kv.value)
            if value is not None:
                changes.append(Change(kv.key, value, kv.mod_revision))
            if count % _DECODE_SLICE == _DECODE_SLICE - 1:
                await asyncio.sleep(0)
        return tuple(changes)

    def _take_over(self, listing: Listing, fresh: dict[str, KeyValue]) -> None:
        self._raw = fresh
        self._header = listing.header
        self._seeded = False
        self._positions = dict.fromkeys(range(1, len(self._prefixes) + 1), listing.header.revision)
        self._must_list = False
        self._new_history = ""

    # -- the watch -------------------------------------------------------------------------------------

    async def _attach(self) -> None:
        stream = await self._client.wire.open_watch()
        attachment = Attachment(stream)
        try:
            await attachment.create(
                {
                    number: (prefix, self._positions[number] + 1)
                    for number, prefix in enumerate(self._prefixes, 1)
                }
            )
        except BaseException:
            attachment.close()
            self._client.wire.rotate(stream.endpoint)
            raise
        self._attachment = attachment

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.close()
            self._attachment = None

    async def _next(self) -> Batch | None:
        """Wait for a reply, take along what has arrived meanwhile, and apply it. Raises EtcdError."""
        assert self._attachment is not None
        replies = await self._attachment.take()
        latest: dict[str, KeyValue | None] = {}
        revision = self._header.revision if self._header else 0
        for reply in replies:
            if self._header and reply.header.cluster_id != self._header.cluster_id:
                self._must_list = True
                raise Held("another etcd cluster answers the watch; listing again")
            for event in reply.events:
                key, gone = decode_key(event.kv.key), event.type == pb.Event.DELETE
                latest[key] = None if gone else _from_event(key, event.kv)
                revision = max(revision, event.kv.mod_revision)
            if reply.events:
                self._positions[reply.watch_id] = reply.events[-1].kv.mod_revision
            elif reply.watch_id in self._positions and not reply.created:
                self._positions[reply.watch_id] = max(self._positions[reply.watch_id], reply.header.revision)
            if self._header:
                term = max(self._header.raft_term, reply.header.raft_term)
                revision = max(revision, self._positions.get(reply.watch_id, 0))
                self._header = Header(self._header.cluster_id, revision, term)
        changes = self._apply(latest, revision)
        return Batch(changes, revision, in_sync=True) if changes else None

    def _apply(self, latest: Mapping[str, KeyValue | None], revision: int) -> tuple[Change, ...]:
        changes = []
        for key, kv in latest.items():
            before = self._raw.get(key)
            if kv is not None:
                self._raw[key] = kv
                value = self._decode(key, kv.value)
                if value is not None:
                    changes.append(Change(key, value, kv.mod_revision))
            elif before is not None:
                del self._raw[key]
                if self._decode(key, before.value) is not None:
                    changes.append(Change(key, None, revision))
        return tuple(changes)

    # -- failing ---------------------------------------------------------------------------------------

    def _failed(self, error: EtcdError) -> Stale | None:
        """Let go of the stream, move to the next endpoint, and tell when it is time to say so."""
        now = asyncio.get_running_loop().time()
        if isinstance(error, Compacted):
            self._must_list = True
        if isinstance(error, CanceledWatch) and error.refused:
            self._client.wire.forget_token()
        if self._attachment is not None:
            self._client.wire.rotate(self._attachment.stream.endpoint)
            self._detach()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        lasting = isinstance(error, Held | Denied | Unauthenticated) and self._failures > 1
        patient = self._failures <= len(self._client.endpoints) and now - self._failing_since < STALE_AFTER
        if isinstance(error, Compacted) or (patient and not lasting):
            return None
        self._in_sync = False
        reason = str(error)
        return Stale(reason) if self._outage.is_news(reason) else None

    async def _pause(self) -> None:
        """Jittered exponential backoff; the first retry is nearly at once."""
        await asyncio.sleep(
            self._rng.uniform(0.5, 1.5) * min(MAX_PAUSE, 0.05 * 2 ** min(self._failures - 1, 10))
        )


def _from_event(key: str, kv: pb.KeyValue) -> KeyValue:
    return KeyValue(key, kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.lease)
