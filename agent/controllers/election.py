"""Leader election in etcd: of any number of replicas one leads, and only its writes are carried out.

    await Election(client, "tortie-controllers-abc").run(lead)     # lead(leadership) is cancelled at the end

The leader's key hangs on a lease. Whoever finds no key creates it, if nobody else does; the others wait by a
watch for it to go. A leader that is paused or cut off loses its lease and so its key, and its late writes
fail in etcd: every one of them carries the key's creation revision as a condition (`Leadership.guards`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property

from felix_like.datastore.attachment import Attachment
from felix_like.datastore.client import Client, Compare, Get, Put
from felix_like.datastore.errors import EtcdError, GuardFailed, KeyValue, OutcomeUnknown
from felix_like.datastore.guarded import GuardedClient
from felix_like.datastore.keys import quoted
from felix_like.datastore.proto import etcd_pb2 as pb

log = logging.getLogger("tortie.controllers")

LEADER_KEY = "/calico/tortie/v1/controllers/leader"
LEASE_TTL = 15
"""Seconds after which the key of a leader that is silent goes."""
RENEWALS = 3
"""Tries to renew within one TTL."""
RESIGN_PATIENCE = 2.0
"""Seconds for giving the lease back; without an answer it runs out by itself."""
LONGEST_PAUSE = 5.0
"""Seconds between attempts while etcd cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Leadership:
    """One term of office. It exists only while we lead, and what was written with it only while we led."""

    identity: str
    key: str
    create_revision: int
    """Of the key: no other term has the same."""
    reader: Client
    """The process's own client. Not for writing: that is what `client` is for."""

    @property
    def guards(self) -> tuple[Compare, ...]:
        """The condition of every write."""
        return (Compare(self.key, "create_revision", self.create_revision),)

    @cached_property
    def client(self) -> Client:
        """For all that is written in this term: each transaction carries the guards.

        A write that comes too late raises GuardFailed and has not happened.
        """
        return GuardedClient(self.reader, self.guards)


@dataclass(frozen=True, slots=True)
class Standing:
    """How the election stands, as this process knows it."""

    leading: bool
    leader: str = ""
    """Identity of who leads; empty: nobody that we know of."""
    trouble: str = ""
    """Why there is no progress: a sentence of the datastore's."""


class Election:
    """One candidate. `identity` tells replicas apart: the pod's name, or host and process."""

    def __init__(
        self,
        client: Client,
        identity: str,
        *,
        key: str = LEADER_KEY,
        ttl: int = LEASE_TTL,
        rng: random.Random | None = None,
    ) -> None:
        self._client = client
        self._identity = identity
        self._key = key
        self._ttl = ttl
        self._rng = rng or random.Random()
        self.standing = Standing(False)

    async def run(self, lead: Callable[[Leadership], Awaitable[None]]) -> None:
        """Campaign, lead, and again, for ever. What etcd refuses is said once and tried again.

        `lead` is cancelled when the leadership is lost; when it raises GuardFailed it is lost, too. Anything
        else it raises ends the run, after resigning. Cancel the run to resign at once.
        """
        failures = 0
        while True:
            try:
                await self._campaign_once(lead)
                failures = 0
            except EtcdError as error:
                failures += 1
                if str(error) != self.standing.trouble:
                    log.warning("%s; no controller runs here until it does", error)
                self.standing = Standing(False, self.standing.leader, str(error))
                await asyncio.sleep(
                    self._rng.uniform(0.5, 1.5) * min(LONGEST_PAUSE, 0.1 * 2 ** min(failures, 10))
                )

    async def _campaign_once(self, lead: Callable[[Leadership], Awaitable[None]]) -> None:
        """Wait for the key to be free, or take it and lead until it is lost."""
        holder = await self._client.get(self._key)
        if holder is not None:
            standing = Standing(False, identity_of(holder))
            if standing != self.standing:
                log.info("standing by: %s leads", quoted(standing.leader))
            self.standing = standing
            await self._until_gone(holder)
            return
        asked_at = asyncio.get_running_loop().time()
        lease = await self._client.lease_grant(self._ttl)
        try:
            leadership = await self._take(lease)
            if leadership is not None:
                log.info("%s leads (term %d)", self._identity, leadership.create_revision)
                self.standing = Standing(True, self._identity)
                await self._serve(leadership, lease, asked_at, lead)
        finally:
            self.standing = Standing(False)
            await self._resign(lease)

    async def _take(self, lease: int) -> Leadership | None:
        """Create the key; None: someone else was faster."""
        value = json.dumps({"identity": self._identity}).encode()
        try:
            reply = await self._client.txn(
                (Compare(self._key, "version", 0),), (Put(self._key, value, lease),), (Get(self._key),)
            )
            revision = reply.header.revision if reply.succeeded else 0
        except OutcomeUnknown:
            found = await self._client.get(self._key)
            revision = found.create_revision if found is not None and found.lease == lease else 0
        if not revision:
            return None
        return Leadership(
            identity=self._identity, key=self._key, create_revision=revision, reader=self._client
        )

    async def _serve(
        self,
        leadership: Leadership,
        lease: int,
        renewed: float,
        lead: Callable[[Leadership], Awaitable[None]],
    ) -> None:
        """Lead until the lease runs out, the key goes, or a write finds that another leads.

        Returns when the leadership is lost; what was started by `lead` has ended by then.
        """
        found = KeyValue(self._key, b"", leadership.create_revision, leadership.create_revision)
        work = asyncio.ensure_future(lead(leadership))
        signs = {
            asyncio.create_task(self._renew(lease, renewed), name="lease renewal"): "its lease ran out",
            asyncio.create_task(self._deposed(found), name="leader key"): "its key was taken away",
        }
        try:
            done, _ = await asyncio.wait({work, *signs}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, *signs):
                task.cancel()
            await asyncio.gather(work, *signs, return_exceptions=True)
        if work in done:
            reasons = [_loss(work)]
        else:
            reasons = [reason for sign, reason in signs.items() if sign in done]
            for sign in done:
                sign.result()  # a bug in the looking is not a loss
        log.warning("%s leads no more: %s", self._identity, ", ".join(reasons))

    async def _renew(self, lease: int, renewed: float) -> None:
        """Keep the lease alive; return when it is gone, or must be taken for gone."""
        clock = asyncio.get_running_loop().time
        while (left := renewed + self._ttl - clock()) > 0:
            await asyncio.sleep(min(left, self._ttl / RENEWALS))
            asked = clock()
            try:
                # Short: the next try goes to another endpoint.
                if await self._client.wire.lease_keepalive(lease, self._ttl / RENEWALS) <= 0:
                    return
                renewed = asked
            except EtcdError as error:
                log.warning("the leader's lease is not renewed: %s", error)

    async def _deposed(self, found: KeyValue) -> None:
        """Return once the key is not ours any more; etcd's silence is the lease's business."""
        failures = 0
        while True:
            try:
                await self._until_gone(found)
                return
            except EtcdError:
                failures += 1
                await asyncio.sleep(self._rng.uniform(0.5, 1.5) * min(LONGEST_PAUSE, 0.1 * 2**failures))

    async def _until_gone(self, found: KeyValue) -> None:
        """Wait, by a watch, for a key of this creation to be deleted or replaced. Raises EtcdError."""
        current = await self._client.get(self._key)
        if current is None or current.create_revision != found.create_revision:
            return
        stream = await self._client.wire.open_watch()
        attachment = Attachment(stream)
        try:
            await attachment.create({1: (self._key, current.mod_revision + 1)})
            while True:
                for reply in await attachment.take():
                    for event in reply.events:
                        if event.kv.key != self._key.encode():
                            continue
                        gone = event.type == pb.Event.DELETE
                        if gone or event.kv.create_revision != found.create_revision:
                            return
        except EtcdError:
            self._client.wire.rotate(stream.endpoint)
            raise
        finally:
            attachment.close()

    async def _resign(self, lease: int) -> None:
        """Give the lease back, and the key with it, so that nobody has to wait for it to run out."""
        with contextlib.suppress(EtcdError, TimeoutError):
            async with asyncio.timeout(RESIGN_PATIENCE):
                await self._client.lease_revoke(lease)


def _loss(work: asyncio.Future[None]) -> str:
    """The sentence of the write that found another leader; raises what is anything else."""
    error = work.exception() if not work.cancelled() else None
    if error is None:
        raise RuntimeError("what is led ended by itself")
    lost, rest = error.split(GuardFailed) if isinstance(error, BaseExceptionGroup) else (error, None)
    if rest is not None:
        raise rest
    while isinstance(lost, BaseExceptionGroup):
        lost = lost.exceptions[0]
    if not isinstance(lost, GuardFailed):
        raise error
    return str(lost)


def identity_of(holder: KeyValue) -> str:
    """What a leader's key says of its holder."""
    try:
        value = json.loads(holder.value)
    except (ValueError, RecursionError):
        value = None
    identity = value.get("identity") if isinstance(value, dict) else None
    return identity if isinstance(identity, str) and identity else "another process"
