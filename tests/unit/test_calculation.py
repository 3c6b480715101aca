"""The calc graph in the event loop: who is handed what, in which order, how often and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.calculation import Calculation
from felix_like.calc.snapshot import Change
from felix_like.model.desired import Unresolved
from tests.support.etcd import eventually
from tests.support.hands import Hands, calculation, changes
from tests.support.rib_world import ip, net, path, session
from tests.support.stories import bgp_peer, block_on, key_of, node, pool

A, B, C = (node(name, f"192.0.2.{i}/24") for i, name in enumerate("abc", 1))
PODS = pool("pods", "10.1.0.0/16")
X, Y, Z = "10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26"
B4, C4, TOR = "192.0.2.2", "192.0.2.3", "192.0.2.254"
WORLD = (A, B, C, PODS, block_on("a", Z), block_on("b", X), block_on("b", Y))


async def turn() -> None:
    """Until what was told in this turn of the loop has been handed on."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def synced(hands: Hands, *values: Any, **settings: Any) -> Calculation:
    """A calculation that has read the datastore."""
    made = calculation(hands, **settings)
    made.graph.on_datastore(changes(*WORLD, *values), True)
    made.told()
    await turn()
    return made


def learn(made: Calculation, peer: str, *prefixes: str, next_hop: str | None = None) -> None:
    asns = (64600,) if peer == TOR else ()
    made.graph.on_peer_up(ip(peer), session(peer), 1000.0)
    made.graph.on_learned(ip(peer), path(next_hop or peer, *asns), [net(p) for p in prefixes])
    made.told()


async def test_routes_come_first_then_adverts_then_peers_and_the_permission_to_sweep_last() -> None:
    """A route is there before anyone is told to send packets, and nothing goes before all was said."""
    hands = Hands()
    made = await synced(hands)
    assert hands.calls == [
        ("want", {Z: made.graph.fib()[next(iter(made.graph.fib()))]}),
        ("advertise", {B4: [Z], C4: [Z]}),
        ("limits", ({}, 50_000)),
        ("allow_sweep", (True, frozenset({ip(B4), ip(C4)}), frozenset({ip(B4), ip(C4)}))),
    ]
    assert made.desired.peek() is made.graph.desired


async def test_many_tellings_in_one_turn_lead_to_one_outcome() -> None:
    hands = Hands()
    made = await synced(hands)
    hands.calls.clear()
    learn(made, B4, X)
    made.graph.on_learned(ip(B4), path(B4), [net(Y)])
    made.told()
    made.graph.on_withdrawn(ip(B4), [net(Y)])
    made.told()
    await turn()
    assert [(name, sorted(what)) for name, what in hands.calls] == [("want", [X])]


async def test_nothing_new_is_nothing_handed_on() -> None:
    hands = Hands()
    made = await synced(hands)
    hands.calls.clear()
    made.told()
    made.graph.on_datastore(changes(*WORLD, revision=2), True)
    made.told()
    await turn()
    assert hands.calls == []


async def test_before_the_datastore_is_read_only_silence_and_no_busy_timer() -> None:
    hands = Hands()
    made = calculation(hands)
    learn(made, B4, X)
    await turn()
    assert hands.names() == ["allow_sweep"]
    assert made._timer is None
    assert made.desired.peek() is None


async def test_a_new_next_hop_is_resolved_in_the_same_turn() -> None:
    hands = Hands()
    made = await synced(hands)
    hands.calls.clear()
    learn(made, B4, X)
    await turn()
    assert hands.asked == [frozenset({ip(B4)})]
    assert hands.last("want")[X].next_hops[0].gateway == ip(B4)


async def test_a_next_hop_that_nobody_uses_is_no_longer_watched() -> None:
    hands = Hands()
    made = await synced(hands)
    learn(made, B4, X)
    learn(made, C4, Y, next_hop=B4)
    await turn()
    assert hands.watched == {ip(B4)}
    made.graph.on_withdrawn(ip(B4), [net(X)])
    made.told()
    await turn()
    assert hands.watched == {ip(B4)}, "one path still uses it"
    made.graph.on_withdrawn(ip(C4), [net(Y)])
    made.told()
    await turn()
    assert hands.watched == set()


async def test_a_next_hop_that_is_replaced_by_a_new_one_is_forgotten_in_that_turn() -> None:
    hands = Hands()
    made = await synced(hands, bgp_peer("tor", TOR, 64600))
    outside = "203.0.113.0/24"
    learn(made, TOR, outside, next_hop="192.0.2.77")
    await turn()
    made.graph.on_learned(ip(TOR), path("192.0.2.78", 64600), [net(outside)])
    made.told()
    await turn()
    assert hands.watched == {ip("192.0.2.78")}


W = "10.1.1.0/26"


async def test_a_next_hop_is_forgotten_though_the_turn_s_last_outcome_changes_no_route() -> None:
    hands = Hands()
    made = await synced(hands, block_on("c", W))
    learn(made, B4, X)
    await turn()
    hands.unreachable.add(ip(C4))
    made.graph.on_withdrawn(ip(B4), [net(X)])
    learn(made, C4, W)
    await turn()
    assert hands.watched == {ip(C4)}
    assert hands.forgotten == [frozenset({ip(B4)})]


async def test_what_was_forgotten_is_not_forgotten_again() -> None:
    hands = Hands()
    made = await synced(hands, block_on("c", W))
    learn(made, B4, X)
    await turn()
    made.graph.on_withdrawn(ip(B4), [net(X)])
    made.told()
    await turn()
    hands.calls.clear()
    learn(made, C4, W)
    await turn()
    assert hands.names() == ["want"]
    assert hands.forgotten == [frozenset({ip(B4)})]


async def test_an_outcome_knows_when_its_first_news_came() -> None:
    hands = Hands()
    made = await synced(hands)
    hands.now = 2000.0
    made.told()
    hands.now = 2001.0
    made.told()
    await turn()
    assert made.told_at == 2000.0
    made.told()
    assert made.told_at == 2001.0


async def test_a_way_that_changes_changes_the_route() -> None:
    hands = Hands()
    made = await synced(hands)
    learn(made, B4, X)
    await turn()
    hands.calls.clear()
    made.next_hops_changed({ip(B4): Unresolved("its link is down")})
    await turn()
    assert hands.calls == [("want", {X: None})]


async def test_the_file_is_rendered_anew_only_for_changed_peers() -> None:
    hands = Hands()
    made = await synced(hands)
    first = made.desired.peek()
    made.desired.wake.clear()
    hands.calls.clear()
    made.graph.on_datastore(changes(block_on("a", "10.1.0.192/26"), revision=2), True)
    made.told()
    await turn()
    assert hands.names() == ["want", "advertise"]
    assert made.desired.peek() is first
    assert not made.desired.wake.is_set()
    made.graph.on_datastore(changes(node("d", "192.0.2.4/24"), revision=3), True)
    made.told()
    await turn()
    assert made.desired.wake.is_set()
    assert ip("192.0.2.4") in made.desired.peek().peers  # type: ignore[union-attr]


async def test_peers_that_left_need_no_waiting_for() -> None:
    hands = Hands()
    made = await synced(hands)
    made.graph.on_datastore([Change(key_of(C), None, 2)], True)
    made.told()
    await turn()
    assert hands.last("allow_sweep") == (True, frozenset({ip(B4)}), frozenset({ip(B4)}))


async def test_limits_name_only_peers_with_one_of_their_own() -> None:
    hands = Hands()
    await synced(hands, bgp_peer("tor", TOR, 64600, prefix_limit=7), prefix_limit=100)
    assert hands.last("limits") == ({ip(TOR): 7}, 100)


# -- full sync: the End-of-RIB of RFC 4724 section 4.1 ---------------------------------------------------


async def test_in_a_mesh_all_is_said_once_datastore_and_speaker_have_spoken() -> None:
    hands = Hands()
    made = await synced(hands)
    assert not made.synced
    made.speaker_replayed()
    await turn()
    assert hands.names()[-1] == "full_sync_done"
    assert made.synced
    made.speaker_replayed()
    made.graph.on_datastore(changes(node("d", "192.0.2.4/24"), revision=2), True)
    made.told()
    await turn()
    assert "full_sync_done" not in hands.names(), "once"


async def test_a_speaker_alone_says_nothing_of_a_datastore_that_was_not_read() -> None:
    hands = Hands()
    made = calculation(hands)
    made.speaker_replayed()
    await turn()
    assert "full_sync_done" not in hands.names()
    made.graph.on_datastore(changes(*WORLD), True)
    made.told()
    await turn()
    names = hands.names()
    assert names.index("advertise") < names.index("full_sync_done")


async def test_who_passes_routes_on_waits_until_all_peers_have_said_theirs() -> None:
    hands = Hands()
    made = await synced(hands, bgp_peer("tor", TOR, 64600))
    made.speaker_replayed()
    await turn()
    assert not made.synced
    for peer in (B4, C4, TOR):
        made.graph.on_peer_up(ip(peer), session(peer), hands.now)
        made.graph.on_end_of_rib(ip(peer), 4, hands.now)
    made.told()
    await turn()
    assert made.synced


async def test_nodes_that_begin_together_do_not_wait_for_each_other() -> None:
    """A cluster after a power cut: each would hold its End-of-RIB back until it has the others'."""
    hands = Hands()
    made = await synced(hands, bgp_peer("tor", TOR, 64600))
    made.speaker_replayed()
    for peer, restarting in ((B4, True), (TOR, False)):
        made.graph.on_peer_up(ip(peer), session(peer, restarting=restarting), hands.now)
    made.graph.on_end_of_rib(ip(TOR), 4, hands.now)
    made.told()
    await turn()
    assert not made.synced, "C is not up: it may not be one of them"
    made.graph.on_peer_up(ip(C4), session(C4), hands.now)
    made.told()
    await turn()
    assert not made.synced, "C has been there all the time, and has not said all"
    made.graph.on_end_of_rib(ip(C4), 4, hands.now)
    made.told()
    await turn()
    assert made.synced
    assert made.awaited == {ip(B4)}, "inherited routes wait for B all the same"


async def test_what_the_last_peer_said_is_passed_on_before_all_is_said() -> None:
    """Its next hop is new: the first outcome of the turn does not have the route yet."""
    hands = Hands()
    made = await synced(hands, bgp_peer("tor", TOR, 64600, accepts_pool_routes=True))
    made.speaker_replayed()
    for peer in (B4, C4):
        made.graph.on_peer_up(ip(peer), session(peer), hands.now)
        made.graph.on_end_of_rib(ip(peer), 4, hands.now)
    made.told()
    await turn()
    hands.calls.clear()
    learn(made, TOR, "10.1.9.0/24")
    made.graph.on_end_of_rib(ip(TOR), 4, hands.now)
    made.told()
    await turn()
    names = [name for name, _ in hands.calls]
    assert names.index("advertise") < names.index("full_sync_done")
    assert hands.last("advertise") == {B4: ["10.1.9.0/24"], C4: ["10.1.9.0/24"]}


# -- time -----------------------------------------------------------------------------------------------


async def test_what_expires_is_taken_without_anybody_telling() -> None:
    hands = Hands()
    made = await synced(hands)
    learn(made, B4, X)
    made.graph.on_end_of_rib(ip(B4), 4, hands.now)
    made.told()
    await turn()
    made.graph.on_peer_down(ip(B4), hands.now, graceful=True)
    made.told()
    await turn()
    assert hands.last("want")[X] is not None
    timer = made._timer
    assert timer is not None
    wait = timer.when() - asyncio.get_running_loop().time()
    assert 80 < wait <= 90, "its restart time, on the loop's clock"
    hands.now += 90.0
    made._expire()  # what the timer calls
    await turn()
    assert hands.last("want") == {X: None}


async def test_the_timer_itself_rings() -> None:
    hands = Hands()
    made = await synced(hands)
    made.graph.on_peer_up(ip(B4), session(B4, restart_time=1), hands.now)
    made.graph.on_learned(ip(B4), path(B4), [net(X)])
    made.graph.on_peer_down(ip(B4), hands.now, graceful=True)
    hands.now += 0.95
    made.told()
    await turn()
    assert hands.last("want")[X] is not None
    hands.now += 1.0
    await eventually(lambda: hands.last("want") == {X: None})


@pytest.mark.parametrize("tellings", [1, 5])
async def test_there_is_one_timer_however_often_it_is_set(tellings: int) -> None:
    hands = Hands()
    made = await synced(hands)
    for _ in range(tellings):
        before = made._timer
        assert before is not None
        made.told()
        await turn()
        assert before.cancelled()
    assert made._timer is not None
    assert not made._timer.cancelled()
