"""The informer against a real etcd that dies, freezes, forgets and lies: one test for each fault."""

from __future__ import annotations

import asyncio

import pytest

from felix_like.datastore.client import Client
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.watch import Batch, Informer, InSync, Stale
from tests.support.etcd import Cut, EtcdMember, etcd, etcdctl, eventually
from tests.support.follower import NODES, Follower, following, node_key, node_value, truth, write_nodes

pytestmark = pytest.mark.etcd


def client_of(*members: EtcdMember) -> Client:
    return Client(EtcdConfig(endpoints=tuple(member.endpoint for member in members)))


async def settled(follower: Follower, client: Client) -> None:
    """Until the follower holds what etcd holds."""
    wanted = await truth(client)
    await eventually(lambda: follower.state == wanted)


async def test_lists_then_follows_and_takes_deletes_along() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(3))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                assert isinstance(follower.events[0], Batch)
                assert len(follower.events[0].changes) == 3
                assert isinstance(follower.events[1], InSync)
                await client.put(node_key(7), node_value(7))
                await client.delete(node_key(0))
                await settled(follower, client)
                assert follower.deleted == [node_key(0)]


async def test_more_keys_than_a_page_are_listed_at_one_revision() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(2_350))
            listing = await client.get_prefix(NODES)
            assert len(listing.kvs) == len({kv.key for kv in listing.kvs}) == 2_350
            before = await client.get_prefix(NODES, revision=listing.header.revision - 10, page=17)
            assert len(before.kvs) == 1_400
            async with following(Informer(client)) as follower:
                await settled(follower, client)
                assert sum(isinstance(event, Batch) for event in follower.events) == 1


async def test_survives_kill_9_and_a_restart() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(5))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                member.kill()
                await eventually(lambda: follower.stale)
                assert follower.stale is not None
                assert member.endpoint in follower.stale
                # The end of a connection is told in many words; what stays on the screen is how things are.
                await eventually(lambda: follower.stale and "Connection refused" in follower.stale)
                assert len(follower.state) == 5, "an outage takes nothing away"
                await asyncio.sleep(5)
                told = [event.reason for event in follower.events if isinstance(event, Stale)]
                assert len(told) == len(set(told)), "each reason once, not at every attempt"
                member.start()
                member.wait_ready()
                await client.put(node_key(1), node_value(1, generation=2))
                await client.delete(node_key(2))
                await settled(follower, client)
                await eventually(lambda: follower.in_sync)


async def test_an_outage_with_compaction_ends_in_the_difference() -> None:
    with etcd() as (member,):
        async with client_of(member) as client, Cut(member.client_port) as cut:
            await write_nodes(client, range(5))
            async with Client(EtcdConfig(endpoints=(cut.endpoint,))) as watched:
                async with following(Informer(watched)) as follower:
                    await eventually(lambda: follower.in_sync)
                    cut.closed = True
                    cut.cut()
                    await eventually(lambda: follower.stale)
                    await client.delete(node_key(3))
                    await client.put(node_key(4), node_value(4, generation=1))
                    await client.compact(await client.put(node_key(9), node_value(9)))
                    seen = len(follower.events)
                    cut.closed = False
                    await settled(follower, client)
                    changed = [
                        change.key
                        for event in follower.events[seen:]
                        if isinstance(event, Batch)
                        for change in event.changes
                    ]
                    assert sorted(changed) == [node_key(3), node_key(4), node_key(9)], "the difference only"
                    assert follower.deleted == [node_key(3)]


async def test_no_event_is_lost_when_the_connection_is_cut_in_the_middle_of_a_backlog() -> None:
    with etcd() as (member,):
        async with client_of(member) as client, Cut(member.client_port) as cut:
            async with Client(EtcdConfig(endpoints=(cut.endpoint,))) as watched:
                async with following(Informer(watched)) as follower:
                    await eventually(lambda: follower.in_sync)
                    cut.closed = True
                    cut.cut()
                    await eventually(lambda: follower.stale)
                    await write_nodes(client, range(5_000))
                    cut.cuts, cut.cut_after = 0, 400_000
                    cut.closed = False
                    await settled(follower, client)
                    assert len(follower.state) == 5_000
                    assert cut.cuts >= 1, "the proxy was to cut within the backlog"


@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_another_member_takes_over_when_the_serving_one(fault: str) -> None:
    with etcd(3) as members:
        async with client_of(*members) as client:
            await write_nodes(client, range(3))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                serving = next(m for m in members if m.endpoint == follower.informer.endpoint)
                if fault == "kill":
                    serving.kill()
                else:
                    serving.freeze()
                others = [member for member in members if member is not serving]
                async with client_of(*others) as direct:
                    await direct.put(node_key(1), node_value(1, generation=1))
                    await settled(follower, direct)
                    assert follower.informer.endpoint != serving.endpoint


async def test_a_frozen_etcd_is_called_stale_and_found_again() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(2))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                member.freeze()
                await eventually(lambda: follower.stale)
                assert len(follower.state) == 2
                member.thaw()
                await eventually(lambda: follower.in_sync)
                await client.put(node_key(1), node_value(1, generation=1))
                await settled(follower, client)


async def test_fragments_of_a_large_reply_are_joined() -> None:
    with etcd() as (member,):
        async with client_of(member) as client, Cut(member.client_port) as cut:
            async with Client(EtcdConfig(endpoints=(cut.endpoint,))) as watched:
                async with following(Informer(watched)) as follower:
                    await eventually(lambda: follower.in_sync)
                    cut.closed = True
                    cut.cut()
                    await eventually(lambda: follower.stale)
                    for number in range(8):
                        await client.put(node_key(number), node_value(number, padding=1_000_000))
                    cut.closed = False
                    await settled(follower, client)
                    assert len(follower.informer.raw[node_key(7)].value) > 1_000_000


async def test_values_larger_than_grpcs_default_limit_are_listed() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            for number in range(6):
                await client.put(node_key(number), node_value(number, padding=1_000_000))
            async with following(Informer(client)) as follower:
                await settled(follower, client)


async def test_bad_values_are_reported_and_never_end_the_watch() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await client.put(NODES + "good", b'{"metadata":{"labels":{"generation":"0"}}}')
            await client.put(NODES + 'x"; {{ 7 }}\n', b"{}")
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                await client.put(NODES + "good", b"\xff\x00 not json")
                await eventually(lambda: follower.state.get(NODES + "good") == "Malformed")
                await client.put(NODES + "good", b'{"metadata":{"labels":{"generation":"1"}}}')
                await eventually(lambda: follower.state.get(NODES + "good") == "1")
                assert follower.state[NODES + 'x"; {{ 7 }}\n'] == "Malformed"


async def test_a_wiped_etcd_does_not_take_everything_away() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(5))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                member.kill()
                member.wipe()
                member.start()
                member.wait_ready()
                await eventually(lambda: follower.stale and "last known state is kept" in follower.stale)
                assert len(follower.state) == 5
                await write_nodes(client, range(4), generation=1)
                await settled(follower, client)
                await eventually(lambda: follower.in_sync)
                assert follower.deleted == [node_key(4)], "a plausible new state is taken over"


async def test_a_backup_that_is_restored_is_taken_over() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(3))
            backup = member.directory / "backup.db"
            await etcdctl("--endpoints", member.endpoint, "snapshot", "save", str(backup))
            await write_nodes(client, range(6), generation=1)
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                member.kill()
                member.wipe()
                await etcdctl(
                    "snapshot", "restore", str(backup), "--name", member.name,
                    "--data-dir", str(member.directory / "data"), "--initial-cluster", member.cluster,
                    "--initial-advertise-peer-urls", f"http://127.0.0.1:{member.peer_port}",
                )  # fmt: skip
                member.start()
                member.wait_ready()
                await settled(follower, client)
                assert sorted(follower.state) == [node_key(n) for n in range(3)]
                await client.put(node_key(1), node_value(1, generation=5))
                await settled(follower, client)


async def test_an_operator_who_deletes_everything_is_followed() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(5))
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                await client.delete_prefix("/calico/")
                await eventually(lambda: not follower.state)


async def test_the_last_good_state_comes_first_and_is_then_corrected() -> None:
    with etcd() as (member,):
        async with client_of(member) as client:
            await write_nodes(client, range(4))
            informer = Informer(client)
            async with following(informer) as follower:
                await eventually(lambda: follower.in_sync)
            known = informer.known
            assert known is not None
            await client.delete(node_key(0))
            member.kill()
            async with following(Informer(client, known=known)) as follower:
                await eventually(lambda: follower.stale)
                first = follower.events[0]
                assert isinstance(first, Batch)
                assert not first.in_sync
                assert len(follower.state) == 4
                member.start()
                await eventually(lambda: follower.in_sync)
                assert follower.deleted == [node_key(0)]


async def test_a_burst_comes_in_few_batches_and_the_first_event_at_once() -> None:
    with etcd() as (member,):
        async with client_of(member) as client, client_of(member) as writer:
            async with following(Informer(client)) as follower:
                await eventually(lambda: follower.in_sync)
                before = len(follower.events)
                await write_nodes(writer, range(2_000))
                await settled(follower, writer)
                batches = [event for event in follower.events[before:] if isinstance(event, Batch)]
                assert sum(len(batch.changes) for batch in batches) == 2_000
                assert len(batches) <= 20, "one transaction of 100 is never split"
                assert not any(isinstance(event, Stale) for event in follower.events[before:])
