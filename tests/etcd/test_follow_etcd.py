"""The datastore's way into the calculation, from a real etcd: alive, dead, denying, remembered on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.calculation import Calculation
from agent.copy_on_disk import SAVE_DELAY
from agent.follow import Follower
from agent.secret_files import SecretFiles
from felix_like.datastore import cache
from felix_like.datastore.client import Client, Delete, Put
from felix_like.datastore.config import EtcdConfig
from felix_like.datastore.keys import resource_key
from felix_like.model.bgp import SecretRef
from tests.support.etcd import EtcdMember, etcd, etcdctl, eventually
from tests.support.hands import Hands, calculation
from tests.support.rib_world import ip

pytestmark = pytest.mark.etcd

UNIX = 1_800_000_000.0
OTHER = ip("192.0.2.2")
TOR = ip("192.0.2.254")


def put(kind: str, name: str, **spec: Any) -> Put:
    key = resource_key(kind, name)
    value = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec}
    return Put(key, json.dumps(value).encode())


NODES = (
    put("Node", "a", bgp={"ipv4Address": "192.0.2.1/24"}),
    put("Node", "b", bgp={"ipv4Address": "192.0.2.2/24"}),
)
TOR_PEER = put(
    "BGPPeer",
    "tor",
    peerIP="192.0.2.254",
    asNumber=64600,
    password={"secretKeyRef": {"name": "tor", "key": "password"}},
)


class Recording(SecretFiles):
    """Remembers which passwords it was last asked for."""

    asked: frozenset[SecretRef] = frozenset()

    def read(self, refs: Collection[SecretRef]) -> dict[SecretRef, str]:
        self.asked = frozenset(refs)
        return super().read(refs)


class World:
    """A follower of one etcd with what it leads to."""

    def __init__(self, endpoint: str, directory: Path, **access: str) -> None:
        self.hands = Hands()
        self.calculation: Calculation = calculation(self.hands)
        self.file = directory / "last-good-snapshot"
        self.secrets = directory / "secrets"
        self.files = Recording(self.secrets)
        self.client = Client(EtcdConfig(endpoints=(endpoint,), **access))
        self.follower = Follower(
            self.client,
            self.calculation,
            snapshot_file=self.file,
            secrets=self.files,
            wall=lambda: UNIX,
        )

    @property
    def state(self) -> str:
        return self.follower.state.state

    @property
    def peers(self) -> set[str] | None:
        desired = self.calculation.graph.desired
        return None if desired is None else {str(address) for address in desired.peers}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        tasks = [
            asyncio.create_task(self.follower.run(), name="run"),
            asyncio.create_task(self.follower.copy.run(), name="save"),
        ]
        try:
            yield self
            for task in tasks:
                assert not task.done(), task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await self.client.close()


@pytest.fixture
def member() -> Iterator[EtcdMember]:
    with etcd() as [one]:
        yield one


async def write(member: EtcdMember, *puts: Put) -> None:
    async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
        await client.txn((), puts)


async def test_what_etcd_holds_is_calculated_and_followed(member: EtcdMember, tmp_path: Path) -> None:
    await write(member, *NODES)
    world = World(member.endpoint, tmp_path)
    assert (world.state, world.peers) == ("connecting", None)
    async with world.running():
        await eventually(lambda: world.state == "in-sync" and world.hands.calls)
        assert world.peers == {"192.0.2.2"}
        assert world.hands.last("allow_sweep")[0] is True
        await write(member, put("Node", "c", bgp={"ipv4Address": "192.0.2.3/24"}))
        await eventually(lambda: world.peers == {"192.0.2.2", "192.0.2.3"})
        assert world.follower.state.since == UNIX


async def test_an_agent_that_starts_without_etcd_and_without_memory_leaves_everything_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Above all the file with the speaker's peers: an empty answer would end every session."""
    world = World("http://127.0.0.1:1", tmp_path)
    async with world.running():
        await eventually(lambda: world.state == "stale")
        await asyncio.sleep(0.1)
        assert world.peers is None
        assert world.calculation.desired.peek() is None
        assert world.hands.calls in ([], [("allow_sweep", (False, frozenset(), frozenset()))])
        assert "http://127.0.0.1:1" in world.follower.state.reason
        assert "ETCD_ENDPOINTS" in world.follower.state.reason
    assert caplog.text.count("cannot be followed") <= 2
    assert not world.file.exists()


async def test_a_user_without_rights_is_told_what_to_grant_and_changes_nothing(
    member: EtcdMember, tmp_path: Path
) -> None:
    await write(member, *NODES)
    at = ("--endpoints", member.endpoint)
    await etcdctl(*at, "user", "add", "root:secret")
    await etcdctl(*at, "user", "grant-role", "root", "root")
    await etcdctl(*at, "user", "add", "calico:tiger")
    await etcdctl(*at, "auth", "enable")
    world = World(member.endpoint, tmp_path, username="calico", password="tiger")
    async with world.running():
        await eventually(lambda: world.state == "stale")
        assert "permission denied" in world.follower.state.reason
        assert "grant the user's role access to /calico/" in world.follower.state.reason
        assert "tiger" not in world.follower.state.reason
        assert world.peers is None
        root = (*at, "--user", "root:secret")
        await etcdctl(*root, "role", "add", "calico")
        await etcdctl(*root, "role", "grant-permission", "calico", "--prefix=true", "read", "/calico/")
        await etcdctl(*root, "user", "grant-role", "calico", "calico")
        await eventually(lambda: world.state == "in-sync")
        assert world.peers == {"192.0.2.2"}


async def test_the_next_life_starts_from_the_disk_when_etcd_is_gone(
    member: EtcdMember, tmp_path: Path
) -> None:
    await write(member, *NODES)
    first = World(member.endpoint, tmp_path)
    async with first.running():
        await eventually(first.file.exists)
    assert first.file.stat().st_mode & 0o777 == 0o600
    member.kill()
    second = World(member.endpoint, tmp_path)
    async with second.running():
        await eventually(lambda: second.peers is not None)
        await asyncio.sleep(0)
        assert (second.state, second.peers) == ("stale", {"192.0.2.2"})
        await eventually(lambda: "allow_sweep" in [name for name, _ in second.hands.calls])
        assert second.hands.last("allow_sweep")[0] is False, "what it does not know of may be right"
        member.start()
        await eventually(lambda: second.state == "in-sync")
        assert second.peers == {"192.0.2.2"}


async def test_a_locked_datastore_is_not_remembered_and_the_state_before_it_counts_in_the_next_life(
    member: EtcdMember, tmp_path: Path
) -> None:
    await write(member, *NODES)
    first = World(member.endpoint, tmp_path)
    async with first.running():
        await eventually(first.file.exists)
        good = first.file.read_bytes()
        await write(member, put("ClusterInformation", "default", datastoreReady=False))
        await eventually(lambda: first.calculation.graph.frozen is not None)
        await asyncio.sleep(SAVE_DELAY + 0.5)
        assert first.file.read_bytes() == good
    second = World(member.endpoint, tmp_path)
    async with second.running():
        await eventually(lambda: second.state == "in-sync")
        assert second.peers == {"192.0.2.2"}
        assert second.calculation.graph.frozen is not None
        await write(member, put("ClusterInformation", "default", datastoreReady=True))
        await eventually(lambda: second.file.read_bytes() != good)


async def test_nothing_is_remembered_that_does_not_know_this_node(
    member: EtcdMember, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that is killed just when it has registered itself would end all sessions in its next life."""
    own, other = NODES
    await write(member, other)
    first = World(member.endpoint, tmp_path)
    async with first.running():
        await eventually(lambda: first.state == "in-sync")
        await asyncio.sleep(0.5)
        assert not first.file.exists()
        await write(member, own)
        await eventually(first.file.exists)
        good = first.file.read_bytes()
        async with Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
            await client.txn((), (Delete(own.key),))
        await eventually(lambda: first.peers == set())
        await asyncio.sleep(SAVE_DELAY + 0.5)
        assert first.file.read_bytes() == good
    loaded = cache.load(first.file).known
    assert loaded is not None
    less = replace(loaded, kvs={key: kv for key, kv in loaded.kvs.items() if key != own.key})
    cache.write(first.file, cache.encode(less, UNIX))
    member.kill()
    second = World(member.endpoint, tmp_path)
    async with second.running():
        await eventually(lambda: second.state == "stale")
        assert second.peers is None, "nothing is wanted, and nothing unwanted"
        assert "does not know node a: it is not used" in caplog.text


async def test_an_agent_that_lives_for_a_moment_leaves_what_it_knew(
    member: EtcdMember, tmp_path: Path
) -> None:
    """Twice restarted within seconds, the second time without etcd: it announces all the same."""
    await write(member, *NODES)
    for peers in ({"192.0.2.2"}, {"192.0.2.2", "192.0.2.3"}):
        world = World(member.endpoint, tmp_path)
        async with world.running():
            await eventually(
                lambda world=world, peers=peers: world.state == "in-sync" and world.peers == peers
            )
        await write(member, put("Node", "c", bgp={"ipv4Address": "192.0.2.3/24"}))
    member.kill()
    last = World(member.endpoint, tmp_path)
    async with last.running():
        await eventually(lambda: last.state == "stale")
        assert last.peers == {"192.0.2.2", "192.0.2.3"}


async def test_a_following_agent_keeps_what_it_knows_while_etcd_is_away(
    member: EtcdMember, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await write(member, *NODES)
    world = World(member.endpoint, tmp_path)
    async with world.running():
        await eventually(lambda: world.state == "in-sync" and world.peers)
        world.hands.calls.clear()
        member.kill()
        await eventually(lambda: world.state == "stale")
        assert world.peers == {"192.0.2.2"}
        assert world.hands.calls == []
        await asyncio.sleep(3)
        assert caplog.text.count("cannot be followed") <= 2, "said, not repeated"
        member.start()
        await eventually(lambda: world.state == "in-sync")


async def test_a_damaged_memory_is_named_and_not_needed(
    member: EtcdMember, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await write(member, *NODES)
    world = World(member.endpoint, tmp_path)
    world.file.write_bytes(b"rubbish")
    async with world.running():
        await eventually(lambda: world.peers == {"192.0.2.2"})
        assert f"last good snapshot: {world.file}" in caplog.text or "is not a snapshot" in caplog.text
        await eventually(lambda: world.file.stat().st_size > 100)


async def test_half_a_file_of_a_killed_agent_is_cleared_away(member: EtcdMember, tmp_path: Path) -> None:
    left = tmp_path / ".last-good-snapshot.x1y2z3"
    left.write_bytes(b"half")
    other = tmp_path / "exabgp.conf"
    other.write_text("not ours")
    async with World(member.endpoint, tmp_path).running() as world:
        await eventually(lambda: world.state == "in-sync")
        assert not left.exists()
        assert other.exists()


async def test_a_disk_that_refuses_is_said_once_and_stops_nothing(
    member: EtcdMember, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    await write(member, *NODES)
    (tmp_path / "a file").touch()
    world = World(member.endpoint, tmp_path / "a file" / "no directory")
    async with world.running():
        await eventually(lambda: "cannot be written" in caplog.text)
        for number in range(3, 6):
            await write(member, put("Node", f"n{number}", bgp={"ipv4Address": f"192.0.2.{number}/24"}))
            await asyncio.sleep(0.8)
        await eventually(lambda: len(world.peers or ()) == 4)
        await asyncio.sleep(2.5)
        assert caplog.text.count("cannot be written") == 1


async def test_a_password_is_read_when_it_is_referred_to_and_when_it_changes(
    member: EtcdMember, tmp_path: Path
) -> None:
    await write(member, *NODES, TOR_PEER)
    world = World(member.endpoint, tmp_path)
    async with world.running():
        await eventually(lambda: world.state == "in-sync")
        assert world.peers == {"192.0.2.2"}, "refused: never an empty password"
        file = world.secrets / "tor" / "password"
        file.parent.mkdir(parents=True)
        for password in ("geheim", "geheimer"):
            file.write_text(password + "\n")
            world.follower.read_secrets()  # as the timer does
            desired = world.calculation.graph.desired
            assert desired is not None
            assert desired.peers[TOR].password == password
        file.unlink()
        world.follower.read_secrets()
        assert world.peers == {"192.0.2.2"}


async def test_passwords_stay_in_use_while_a_locked_datastore_no_longer_refers_to_them(
    member: EtcdMember, tmp_path: Path
) -> None:
    """Whoever watches them elsewhere would have to find them again at the unlocking, and be late."""
    await write(member, *NODES, TOR_PEER)
    world = World(member.endpoint, tmp_path)
    tor = SecretRef("tor", "password")
    async with world.running(), Client(EtcdConfig(endpoints=(member.endpoint,))) as client:
        await eventually(lambda: world.state == "in-sync")
        assert world.files.asked == {tor}
        await write(member, put("ClusterInformation", "default", datastoreReady=False))
        await eventually(lambda: world.calculation.graph.frozen)
        # Not in one transaction with the lock: every kind has a watch of its own, so either may come first.
        await client.txn((), (Delete(resource_key("BGPPeer", "tor")),))
        await eventually(lambda: not world.calculation.graph.snapshot.bgp_peers)
        assert world.files.asked == {tor}
        await write(member, put("ClusterInformation", "default", datastoreReady=True))
        await eventually(lambda: world.calculation.graph.frozen is None)
        assert world.files.asked == frozenset(), "and nobody watches what nobody refers to"
