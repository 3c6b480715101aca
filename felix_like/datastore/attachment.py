"""One watch stream and the task that reads it: replies pile up here while the reader of them is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from felix_like.datastore.client import encode_key, range_end
from felix_like.datastore.errors import Compacted, EtcdError, Unavailable
from felix_like.datastore.keys import quoted
from felix_like.datastore.proto import etcd_pb2 as pb
from felix_like.datastore.wire import WatchStream

CREATE_TIMEOUT = 5.0
"""Seconds until all watches must be confirmed."""
BACKLOG = 256
"""Replies waiting at most; then gRPC's flow control slows etcd down."""
BATCH_EVENTS = 10_000
"""Events taken at a time at most."""


class CanceledWatch(EtcdError):
    """etcd ended a watch for another reason than compaction."""

    def __init__(self, sentence: str, *, refused: bool) -> None:
        super().__init__(sentence)
        self.refused = refused
        """For lack of permission, which may also mean that the login token has expired."""


class Attachment:
    """Watches on one stream, read ahead by a task of its own."""

    def __init__(self, stream: WatchStream) -> None:
        self.stream = stream
        self._replies: asyncio.Queue[pb.WatchResponse | EtcdError] = asyncio.Queue(BACKLOG)
        self._early: list[pb.WatchResponse] = []
        self._failure: EtcdError | None = None
        self._reader: asyncio.Task[None] | None = None

    @property
    def endpoint(self) -> str:
        return self.stream.endpoint.url

    async def create(self, watches: Mapping[int, tuple[str, int]]) -> None:
        """Set watches: id -> (prefix, start revision). Returns when etcd confirmed all. Raises EtcdError."""
        try:
            async with asyncio.timeout(CREATE_TIMEOUT):
                for watch_id, (prefix, start) in watches.items():
                    await self.stream.create(watch_id, encode_key(prefix), range_end(prefix), start)
                waiting = set(watches)
                while waiting:
                    reply = await self.stream.read()
                    check(reply)
                    if reply.created:
                        waiting.discard(reply.watch_id)
                    else:
                        self._early.append(reply)
        except TimeoutError:
            raise Unavailable(
                f"etcd at {self.endpoint} did not confirm the watches within {CREATE_TIMEOUT:.0f} s"
            ) from None
        self._reader = asyncio.create_task(self._read(), name=f"etcd watch reader {self.endpoint}")

    async def _read(self) -> None:
        try:
            while True:
                await self._replies.put(await self.stream.read())
        except EtcdError as error:
            # Without what it went through: the frames keep the call, and with it the channel, from ending.
            error.__context__ = None
            await self._replies.put(error.with_traceback(None))

    async def take(self) -> list[pb.WatchResponse]:
        """At least one reply, and all that are here already. Raises EtcdError after the last good one."""
        if self._failure is not None:
            raise self._failure
        if self._early:
            taken, self._early = self._early, []
            return taken
        taken = []
        events = 0
        item = await self._replies.get()
        while True:
            failure = item if isinstance(item, EtcdError) else _failure(item)
            if failure is not None:
                self._failure = failure
                if taken:
                    return taken
                raise failure
            assert isinstance(item, pb.WatchResponse)
            taken.append(item)
            events += len(item.events)
            if events >= BATCH_EVENTS or self._replies.empty():
                return taken
            item = self._replies.get_nowait()

    def close(self) -> None:
        self.stream.cancel()
        if self._reader is not None:
            self._reader.cancel()


def _failure(reply: pb.WatchResponse) -> EtcdError | None:
    try:
        check(reply)
    except EtcdError as error:
        return error
    return None


def check(reply: pb.WatchResponse) -> None:
    """Raises Compacted or CanceledWatch when etcd ended the watch."""
    if reply.compact_revision:
        raise Compacted(
            f"etcd has compacted its history up to revision {reply.compact_revision}", reply.compact_revision
        )
    if reply.canceled:
        reason = quoted(reply.cancel_reason or "no reason given", 200)
        raise CanceledWatch(f"etcd ended the watch: {reason}", refused="permission denied" in reason)
