"""Leader election on a real etcd, between real processes that are stopped, frozen and killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.controllers.controller import run_all
from agent.controllers.election import LEADER_KEY, Election, Leadership, identity_of
from felix_like.datastore.cas import CasStore
from felix_like.datastore.client import Client, Compare, Delete, Get, Put
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.errors import CasConflict, GuardFailed, NotFound
from felix_like.datastore.guarded import GuardedClient
from tests.support.candidate import WORK
from tests.support.etcd import Cut, EtcdMember, etcd, eventually

pytestmark = pytest.mark.etcd
ROOT = Path(__file__).parents[2]
TTL = 2
"""Seconds; etcd makes it the least that its election time-out allows."""
PATIENCE = 60.0


@pytest.fixture
async def member() -> AsyncIterator[EtcdMember]:
    with etcd() as (member,):
        yield member


@pytest.fixture
async def client(member: EtcdMember) -> AsyncIterator[Client]:
    async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
        yield client


class Candidate:
    """A process of tests.support.candidate."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, Any]] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.said.append(json.loads(line))

    def heard(self, word: str) -> int:
        return sum(word in line for line in self.said)

    async def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reader


@contextlib.asynccontextmanager
async def candidate(endpoint: str, identity: str, ttl: int = TTL) -> AsyncIterator[Candidate]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.candidate", endpoint, identity, str(ttl),
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    one = Candidate(process)
    try:
        yield one
    finally:
        await one.close()


async def history(client: Client, since: int) -> list[str]:
    """Who wrote the count, in the order in which etcd carried it out, from a revision on."""
    writers: list[str] = []
    latest = await client.get(WORK + "count")
    while latest is not None and latest.mod_revision >= since:
        writers.append(json.loads(latest.value)["by"])
        latest = await client.get(WORK + "count", revision=latest.mod_revision - 1)
    return writers[::-1]


async def test_a_frozen_leader_that_wakes_up_writes_nothing_any_more(
    member: EtcdMember, client: Client
) -> None:
    """SIGSTOP beyond its lease, SIGCONT while the other leads: the late write is refused by etcd itself."""
    async with candidate(member.endpoint, "one") as one:
        await eventually(lambda: one.heard("leads"), PATIENCE)
        async with candidate(member.endpoint, "two") as two:
            one.process.send_signal(signal.SIGSTOP)
            await eventually(lambda: two.heard("leads"), PATIENCE)
            found = await client.get(LEADER_KEY)
            assert found is not None
            assert identity_of(found) == "two"
            one.process.send_signal(signal.SIGCONT)
            await eventually(lambda: one.heard("over"), PATIENCE)
            assert {"over": "refused"} in one.said, "it tried"
            wrote = await history(client, found.create_revision)
            assert set(wrote) <= {"two"}, "nothing of the old leader after the new one's term began"
            await eventually_wrote(client, "two")
            assert one.process.returncode is None, "it stands by again"
            one.process.terminate()
            await one.process.wait()
            assert not two.heard("over"), "a standby that goes is nobody's business"


async def eventually_wrote(client: Client, who: str) -> None:
    before = await client.get(WORK + "count")
    assert before is not None
    revision = before.mod_revision
    async with asyncio.timeout(PATIENCE):
        while True:
            now = await client.get(WORK + "count")
            if now is not None and now.mod_revision > revision and json.loads(now.value)["by"] == who:
                return
            await asyncio.sleep(0.02)


async def test_sigterm_hands_over_at_once(member: EtcdMember, client: Client) -> None:
    """With a lease of an hour: nobody waits for it to run out."""
    async with candidate(member.endpoint, "one", 3600) as one:
        await eventually(lambda: one.heard("leads"), PATIENCE)
        async with candidate(member.endpoint, "two", 3600) as two:
            one.process.terminate()
            assert await one.process.wait() == 0
            await eventually(lambda: two.heard("leads"), PATIENCE)
            assert one.heard("over") == 1


async def test_a_killed_leader_is_followed_when_its_lease_ends(member: EtcdMember, client: Client) -> None:
    async with candidate(member.endpoint, "one") as one:
        await eventually(lambda: one.heard("leads"), PATIENCE)
        async with candidate(member.endpoint, "two") as two:
            one.process.kill()
            await eventually(lambda: two.heard("leads"), PATIENCE)
            await eventually_wrote(client, "two")


async def test_a_leader_that_is_cut_off_stops_and_stands_by_again(member: EtcdMember, client: Client) -> None:
    async with Cut(member.client_port) as proxy:
        async with candidate(proxy.endpoint, "one") as one:
            await eventually(lambda: one.heard("leads"), PATIENCE)
            async with candidate(member.endpoint, "two") as two:
                proxy.closed = True
                proxy.cut()
                await eventually(lambda: two.heard("leads"), PATIENCE)
                await eventually(lambda: one.heard("over"), PATIENCE)
                proxy.closed = False
                await eventually_wrote(client, "two")
                two.process.terminate()
                await eventually(lambda: one.heard("leads") == 2, PATIENCE)


async def test_an_etcd_that_restarts_keeps_or_ends_the_term_and_somebody_leads_again(
    member: EtcdMember, client: Client
) -> None:
    async with candidate(member.endpoint, "one") as one, candidate(member.endpoint, "two") as two:
        await eventually(lambda: one.heard("leads") + two.heard("leads"), PATIENCE)
        member.kill()
        member.start()
        member.wait_ready()
        # Whoever leads now writes; the witness is etcd's revision, which moves on.
        revision = (await client.read(LEADER_KEY))[0].revision
        async with asyncio.timeout(PATIENCE):
            while True:
                header, _ = await client.read(WORK + "count")
                if header.revision > revision + 50:
                    break
                await asyncio.sleep(0.05)


async def test_a_leader_whose_key_an_operator_deletes_steps_down_and_campaigns_again(
    member: EtcdMember, client: Client
) -> None:
    async with candidate(member.endpoint, "one", 3600) as one:
        await eventually(lambda: one.heard("leads"), PATIENCE)
        await client.delete(LEADER_KEY)
        await eventually(lambda: one.heard("leads") == 2, PATIENCE)
        assert one.heard("over") >= 1


async def test_of_many_candidates_one_leads_at_a_time(client: Client) -> None:
    """Each leads for a moment and resigns: the terms never overlap and everybody has one."""
    terms: list[str] = []
    inside = 0

    async def take_part(name: str) -> None:
        async def lead(leadership: Leadership) -> None:
            nonlocal inside
            inside += 1
            assert inside == 1
            terms.append(leadership.identity)
            await leadership.client.put("/task/term", name.encode())
            inside -= 1
            run.cancel()
            await asyncio.get_running_loop().create_future()

        run = asyncio.ensure_future(Election(client, name, ttl=30).run(lead))
        with contextlib.suppress(asyncio.CancelledError):
            await run

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(take_part(f"c{n}") for n in range(8)))
    assert sorted(terms) == [f"c{n}" for n in range(8)]
    assert await client.get(LEADER_KEY) is None


async def test_a_bug_ends_the_run_after_resigning(client: Client) -> None:
    async def lead(leadership: Leadership) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Election(client, "one", ttl=3600).run(lead)
    assert await client.get(LEADER_KEY) is None


# -- the guarded client ------------------------------------------------------------------------------------


class Writes:
    """A controller that writes once after the key has been taken away."""

    name = "writes"

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, leadership: Leadership) -> None:
        await leadership.client.put("/task/before", b"")
        await self._client.delete(LEADER_KEY)
        await leadership.client.put("/task/after", b"")


async def test_a_late_write_ends_the_term(client: Client) -> None:
    terms = 0

    async def lead(leadership: Leadership) -> None:
        nonlocal terms
        terms += 1
        if terms == 1:
            await run_all([Writes(client)], leadership)
        run.cancel()
        await asyncio.get_running_loop().create_future()

    run = asyncio.ensure_future(Election(client, "one", ttl=3600).run(lead))
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(asyncio.CancelledError):
            await run
    assert terms == 2
    assert await client.get("/task/before") is not None
    assert await client.get("/task/after") is None


async def test_every_kind_of_write_carries_the_guards(client: Client) -> None:
    revision = await client.put("/guard", b"")
    await client.put("/old/1", b"{}")
    good = GuardedClient(client, (Compare("/guard", "create_revision", revision),))
    bad = GuardedClient(client, (Compare("/guard", "create_revision", revision + 1),))
    before = (await client.read("/guard"))[0].revision
    stored = CasStore(bad)
    for write in (
        bad.put("/new", b"{}"),
        bad.delete("/old/1"),
        bad.delete_prefix("/old/"),
        bad.txn((), (Put("/new", b"{}"),)),
        stored.create("/new", {}),
        stored.replace("/old/1", {"a": 1}, 1),
        stored.update("/old/1", lambda value: {**value, "a": 1}),
        stored.delete("/old/1"),
    ):
        with pytest.raises(GuardFailed):
            await write
    assert (await client.read("/guard"))[0].revision == before
    assert (await good.get("/old/1")) is not None
    await good.put("/new", b"{}")
    assert await good.delete("/new")
    assert not await good.delete("/new")
    assert await good.delete_prefix("/old/") == 1


async def test_a_lost_race_under_a_good_guard_is_a_conflict_and_not_a_lost_term(client: Client) -> None:
    revision = await client.put("/guard", b"")
    good = GuardedClient(client, (Compare("/guard", "create_revision", revision),))
    await client.put("/a", b'{"n":1}')
    with pytest.raises(CasConflict) as conflict:
        await CasStore(good).replace("/a", {"n": 2}, revision)
    assert conflict.value.current is not None
    assert conflict.value.current.value == b'{"n":1}'
    with pytest.raises(NotFound):
        await CasStore(good).replace("/b", {"n": 2}, revision)
    reply = await good.txn((Compare("/a", "version", 7),), (Delete("/a"),), (Get("/a"), Get("/b")))
    assert [kv and kv.key for kv in reply.got] == ["/a", None]
    with pytest.raises(ValueError, match="must not write"):
        await good.txn((), (), (Delete("/a"),))
