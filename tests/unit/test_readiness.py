"""Ready: the first full route sync is done. A dead peer delays it a little and never takes it back."""

from __future__ import annotations

import asyncio

import pytest

from agent.keep import Report
from agent.readiness import PATIENCE, Readiness
from agent.timed import Timed
from felix_like.model.address import Address
from felix_like.model.verdict import No, Yes
from tests.support.hands import Hands, calculation, changes
from tests.support.rib_world import ip, session
from tests.support.stories import node, pool

A, B, C = (node(name, f"192.0.2.{i}/24") for i, name in enumerate("abc", 1))
PODS = pool("pods", "10.1.0.0/16")
B4, C4 = ip("192.0.2.2"), ip("192.0.2.3")


class World:
    def __init__(self) -> None:
        self.hands = Hands()
        self.calculation = calculation(self.hands)
        self.calculation.graph.tick(self.hands.now)
        self.up: set[object] = set()
        self.pending = 0
        self.readiness = Readiness(
            self.calculation,
            up=lambda peer: peer in self.up,
            pending=lambda: self.pending,
            clock=self.hands.clock,
        )

    async def read(self) -> None:
        self.calculation.graph.on_datastore(changes(A, B, C, PODS), True)
        await self.turn()

    async def replayed(self) -> None:
        self.calculation.speaker_replayed()
        await self.turn()

    async def session(self, *peers: Address, whole: bool = True, restarting: bool = False) -> None:
        for peer in peers:
            self.up.add(peer)
            up = session(str(peer), restarting=restarting)
            self.calculation.graph.on_peer_up(peer, up, self.hands.now)
            if whole:
                self.calculation.graph.on_end_of_rib(peer, 4, self.hands.now)
        await self.turn()

    async def later(self, seconds: float) -> None:
        self.hands.now += seconds
        self.calculation.graph.tick(self.hands.now)
        await self.turn()

    async def turn(self) -> None:
        self.calculation.told()
        await asyncio.sleep(0)

    def missing(self) -> str:
        verdict = self.readiness.verdict()
        return verdict.reason if isinstance(verdict, No) else ""


async def test_what_is_missing_is_said_step_by_step() -> None:
    world = World()
    assert world.missing() == "the datastore has not been read yet"
    await world.read()
    assert world.missing() == "tortie-speaker has not told what it learned yet"
    await world.replayed()
    assert world.missing() == "2 peers have not told all their routes yet, 192.0.2.2 among them"
    await world.session(B4)
    assert world.missing() == "1 peers have not told all their routes yet, 192.0.2.3 among them"
    await world.session(C4)
    world.pending = 3
    assert world.missing() == "3 routes are not in the kernel yet"
    world.pending = 0
    assert world.readiness.verdict() == Yes("the first full route sync is done")


async def test_a_dead_peer_is_waited_for_only_a_little() -> None:
    world = World()
    await world.read()
    await world.replayed()
    await world.session(B4)
    assert world.missing()
    await world.later(PATIENCE - 1)
    assert world.missing()
    await world.later(1)
    assert world.missing() == ""


async def test_a_live_peer_that_is_still_telling_is_waited_for_longer() -> None:
    world = World()
    await world.read()
    await world.replayed()
    assert "2 peers" in world.missing()
    await world.session(B4, whole=False)
    await world.later(PATIENCE)
    assert world.missing() == "1 peers have not told all their routes yet, 192.0.2.2 among them"
    await world.later(120)  # its restart time: whoever never says End-of-RIB makes nobody wait for ever
    assert world.missing() == ""


async def test_a_peer_that_has_just_begun_may_itself_be_waiting_for_a_dead_one() -> None:
    """A power cut, a node that does not come back, and a router that all routes are passed on to: the others
    hold their End-of-RIB back for the dead one's restart time."""
    world = World()
    await world.read()
    await world.replayed()
    assert "2 peers" in world.missing()
    await world.session(B4, whole=False, restarting=True)
    await world.later(PATIENCE - 1)
    assert "2 peers" in world.missing()
    await world.later(1)
    assert world.missing() == ""


async def test_once_ready_it_stays_ready() -> None:
    world = World()
    await world.read()
    await world.replayed()
    await world.session(B4, C4)
    assert world.missing() == ""
    world.pending = 1000
    world.up.clear()
    world.calculation.graph.on_datastore(changes(node("d", "192.0.2.4/24"), revision=2), True)
    world.calculation.graph.on_speaker_lost(world.hands.now)
    await world.turn()
    assert world.missing() == ""


async def test_a_node_without_peers_is_ready_with_the_speakers_word() -> None:
    world = World()
    world.calculation.graph.on_datastore(changes(A, PODS), True)
    await world.replayed()
    assert world.missing() == ""


# -- how long routes take -------------------------------------------------------------------------------


class Sink(Hands):
    name = "kernel routes"

    def __init__(self) -> None:
        super().__init__()
        self.wake = asyncio.Event()
        self.broken = False
        self.takes = 0.0

    async def start(self) -> None:
        self.calls.append(("start", None))

    async def apply(self) -> Report:
        self.now += self.takes
        if self.broken:
            raise OSError(5, "Input/output error")
        return Report(retry_after=7)


class Measured:
    def __init__(self) -> None:
        self.sink = Sink()
        self.news = 990.0
        self.seen: list[float] = []
        self.timed = Timed(
            self.sink, told_at=lambda: self.news, clock=self.sink.clock, observe=self.seen.append
        )


async def test_news_is_timed_until_its_routes_are_written() -> None:
    world = Measured()
    world.timed.want({})
    world.sink.takes = 2
    assert await world.timed.apply() == Report(retry_after=7)
    assert world.seen == [12.0]
    await world.timed.apply()
    assert world.seen == [12.0], "a turn without news says nothing"


async def test_the_oldest_news_counts() -> None:
    world = Measured()
    world.timed.want({})
    world.news = 999.0
    world.timed.want({})
    await world.timed.apply()
    assert world.seen == [10.0]
    world.timed.want({})
    await world.timed.apply()
    assert world.seen == [10.0, 1.0]


async def test_a_turn_that_failed_is_timed_to_the_end_of_one_that_did_not() -> None:
    world = Measured()
    world.timed.want({})
    world.sink.broken = True
    with pytest.raises(OSError, match="Input/output error"):
        await world.timed.apply()
    assert world.seen == []
    world.sink.broken, world.sink.now = False, 1020.0
    await world.timed.apply()
    assert world.seen == [30.0]


async def test_all_else_is_passed_on() -> None:
    world = Measured()
    world.timed.allow_sweep(True, frozenset({B4}), frozenset())
    await world.timed.start()
    assert world.sink.calls == [("allow_sweep", (True, frozenset({B4}), frozenset())), ("start", None)]
    assert (world.timed.name, world.timed.wake) == (world.sink.name, world.sink.wake)
