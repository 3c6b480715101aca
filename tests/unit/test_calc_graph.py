"""The graph over time: restarts, resynchronisation, a stale or locked datastore, limits, next hops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from felix_like.calc.graph import CalcGraph, OriginMode, PeerCounts, RibCounts
from felix_like.calc.snapshot import Change
from felix_like.model.bgp import ClusterInformation, SecretRef
from felix_like.model.desired import KernelNextHop, LocalNode, Resolved, Unresolved
from felix_like.model.path import OriginCode
from felix_like.rib.session import STALE_PATH_TIME
from tests.support.rib_world import Driver, ip, net, path, session
from tests.support.stories import affinity, bgp_peer, block_on, configuration, key_of, node, pool

A, B, C = (node(name, f"192.0.2.{i}/24", f"fd00::{i}/64") for i, name in enumerate("abc", 1))
PODS = pool("pods", "10.1.0.0/16")
X, Y, Z = "10.1.0.0/26", "10.1.0.64/26", "10.1.0.128/26"
B4, C4, R4, TOR = "192.0.2.2", "192.0.2.3", "192.0.2.9", "192.0.2.254"
ON_B = [*block_on("b", X), *block_on("b", Y)]


def changes(*values: Any, revision: int = 1) -> list[Change]:
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, list) else [value])
    return [Change(key_of(value), value, revision) for value in flat]


def driver(*values: Any, **settings: Any) -> Driver:
    world = Driver(**settings)
    world.graph.tick(1000.0)
    world.graph.on_datastore(changes(A, B, C, PODS, *values), True)
    return world.settle()


def up(world: Driver, peer: str, *prefixes: str, now: float = 1000.0, **more: Any) -> Driver:
    world.graph.on_peer_up(ip(peer), session(peer, **more), now)
    if prefixes:
        world.graph.on_learned(ip(peer), path(peer), [net(p) for p in prefixes])
    return world.settle()


BOTH = {X: f"via {B4}", Y: f"via {B4}"}


# -- restarts -----------------------------------------------------------------------------------------


def test_a_peer_that_restarts_gracefully_loses_nothing_and_what_it_drops_goes_at_end_of_rib() -> None:
    world = up(driver(ON_B), B4, X, Y)
    graph = world.graph
    graph.on_peer_down(ip(B4), 1010.0, graceful=True)
    assert world.settle().outcome.fib == {}
    assert graph.peer_counts(ip(B4)) == PeerCounts(received=2, accepted=2, stale=2, advertised=0)
    assert all(view.path.stale for view in graph.paths(net(X)))
    assert graph.tick(1011.0) == 1100.0
    up(world, B4, X, now=1020.0)
    assert world.fib() == BOTH
    graph.tick(1121.0)  # past every restart time; only the refresh is still waited for
    assert graph.tick(1121.0) == 1020.0 + STALE_PATH_TIME
    graph.on_end_of_rib(ip(B4), 4, 1122.0)
    assert world.settle().fib() == {X: f"via {B4}"}


def test_a_peer_that_does_not_come_back_loses_its_paths_at_its_restart_time() -> None:
    world = up(driver(ON_B), B4, X, Y)
    world.graph.on_peer_down(ip(B4), 1010.0, graceful=True)
    assert world.graph.tick(1099.0) == 1100.0
    assert world.settle().fib() == BOTH
    assert world.graph.tick(1100.0) == 1100.0  # something to take
    assert world.settle().fib() == {}


def test_what_a_peer_had_not_announced_again_when_it_restarts_anew_is_gone_and_the_count_says_so() -> None:
    world = up(driver(ON_B), B4, X, Y)
    graph = world.graph
    graph.on_peer_down(ip(B4), 1010.0, graceful=True)
    assert graph.stale_paths(ip(B4)) == 2
    up(world, B4, X, now=1011.0, restarting=True)
    for now in (1012.0, 1013.0):  # the second is an attempt that failed
        graph.on_peer_down(ip(B4), now, graceful=True)
        assert graph.stale_paths(ip(B4)) == 1
        assert world.settle().fib() == {X: f"via {B4}"}
    assert graph.stale_paths(ip(C4)) == 0, "nobody has heard of it"


def test_a_goodbye_takes_the_paths_along() -> None:
    world = up(driver(ON_B), B4, X, Y)
    world.graph.on_peer_down(ip(B4), 1010.0, graceful=False)
    assert world.settle().fib() == {}


def test_a_killed_speaker_loses_nothing_while_the_peers_come_back() -> None:
    world = up(driver(ON_B, block_on("c", Z)), B4, X, Y)
    up(world, C4, Z)
    whole = world.fib()
    graph = world.graph
    graph.on_speaker_lost(1010.0)
    assert world.settle().fib() == whole
    graph.on_resync_begin(1012.0)  # a new speaker: no session is up yet
    graph.on_resync_end([], 1012.0)
    assert world.settle().fib() == whole
    up(world, B4, X, now=1015.0, forwarding=frozenset())  # a helper does not set the F bit
    assert world.fib() == whole
    graph.on_end_of_rib(ip(B4), 4, 1016.0)
    assert world.settle().fib() == {X: f"via {B4}", Z: f"via {C4}"}
    graph.tick(1100.0)  # c never came back within its restart time
    assert world.settle().fib() == {X: f"via {B4}"}


def test_a_resynchronisation_drops_what_was_withdrawn_meanwhile() -> None:
    world = up(driver(ON_B, block_on("c", Z)), B4, X, Y)
    up(world, C4, Z)
    graph = world.graph
    graph.on_speaker_lost(1010.0)
    graph.on_resync_begin(1011.0)
    graph.on_peer_up(ip(B4), session(B4, end_of_rib=frozenset({4})), 1011.0)
    world.settle()
    assert world.fib() == {**BOTH, Z: f"via {C4}"}  # nothing is dropped in the middle
    graph.on_learned(ip(B4), path(B4), [net(X)])
    graph.on_resync_end([ip(B4)], 1012.0)
    assert world.settle().fib() == {X: f"via {B4}", Z: f"via {C4}"}
    assert graph.peer_counts(ip(C4)).stale == 1


def test_a_withdraw_storm_leaves_nothing_behind() -> None:
    prefixes = [f"10.1.0.{i}/32" for i in range(64)]
    world = up(driver(ON_B), B4, *prefixes)
    assert len(world.fib()) == 64
    graph = world.graph
    for _ in range(3):
        graph.on_withdrawn(ip(B4), [net(p) for p in prefixes])
        graph.on_withdrawn(ip(B4), [net(p) for p in prefixes])  # twice is not an error
        graph.on_learned(ip(B4), path(B4), [net(p) for p in prefixes])
    assert world.settle().outcome.fib == {}  # it ended where it began
    graph.on_withdrawn(ip(B4), [net(p) for p in prefixes])
    assert world.settle().fib() == {}
    assert graph.rib_counts() == RibCounts()
    assert graph.next_hops_in_use() == frozenset()


def test_a_removed_neighbor_is_forgotten() -> None:
    world = up(driver(ON_B), B4, X)
    world.graph.on_peer_down(ip(B4), 1010.0, graceful=True)
    world.graph.on_peer_gone(ip(B4))
    assert world.settle().fib() == {}
    world.graph.on_peer_gone(ip(B4))  # nor is this an error
    assert world.graph.rib_counts() == RibCounts()


# -- who is awaited -----------------------------------------------------------------------------------


def test_a_peer_is_awaited_until_its_end_of_rib_or_its_restart_time() -> None:
    world = driver(configuration(mesh_max_restart_time=50))
    v4 = {ip(B4), ip(C4)}
    assert v4 <= world.outcome.awaiting
    up(world, B4)
    assert ip(B4) in world.outcome.awaiting
    world.graph.on_end_of_rib(ip(B4), 4, 1001.0)
    assert world.settle().outcome.awaiting & v4 == {ip(C4)}
    assert world.graph.tick(1049.0) == 1050.0
    world.graph.tick(1050.0)
    assert world.settle().outcome.awaiting == frozenset()
    assert world.graph.tick(1051.0) is None


def test_a_peer_without_graceful_restart_is_awaited_for_half_a_minute() -> None:
    world = up(driver(), B4, now=1005.0, graceful=frozenset(), forwarding=frozenset(), restart_time=0)
    world.graph.tick(1034.0)
    assert ip(B4) in world.settle().outcome.awaiting
    world.graph.tick(1035.0)
    assert ip(B4) not in world.settle().outcome.awaiting


def test_a_peer_that_will_say_end_of_rib_is_awaited_for_longer() -> None:
    """It may have more to say than goes into half a minute, and what it has not said yet must not go."""
    world = up(driver(), B4, now=1005.0)
    world.graph.tick(1036.0)
    assert ip(B4) in world.settle().outcome.awaiting
    world.graph.tick(1119.0)
    assert ip(B4) in world.settle().outcome.awaiting
    world.graph.tick(1120.0)
    assert ip(B4) not in world.settle().outcome.awaiting


def test_a_replayed_end_of_rib_does_not_count_before_the_replay_is_over() -> None:
    world = driver()
    world.graph.on_resync_begin(1001.0)
    world.graph.on_peer_up(ip(B4), session(B4, end_of_rib=frozenset({4})), 1001.0)
    assert ip(B4) in world.settle().outcome.awaiting
    world.graph.on_resync_end([ip(B4)], 1002.0)
    assert ip(B4) not in world.settle().outcome.awaiting


# -- the datastore ------------------------------------------------------------------------------------


def test_nothing_is_calculated_before_the_datastore_was_read() -> None:
    world = Driver()
    world.graph.on_datastore(changes(A, B, PODS, block_on("a")), False)
    world.settle()
    assert (world.outcome.desired, world.fib(), world.outcome.authoritative) == (None, {}, False)
    world.graph.on_datastore([], True)
    world.settle()
    assert world.fib() == {X: "blackhole"}
    assert world.outcome.authoritative


def test_an_agent_that_starts_without_etcd_works_from_its_last_good_snapshot() -> None:
    world = Driver()
    world.graph.on_datastore(changes(A, B, PODS, ON_B), False)
    world.graph.on_datastore_stale("no endpoint answers")
    up(world, B4, X, Y)
    assert world.fib() == BOTH
    assert not world.outcome.authoritative
    # etcd is back: meanwhile a block has gone.
    gone = [Change(key_of(value), None, 9) for value in block_on("b", Y)]
    world.graph.on_datastore(gone, True)
    assert world.settle().fib() == {X: f"via {B4}"}
    assert world.outcome.authoritative
    assert world.graph.stale is None


def test_who_never_heard_of_the_datastore_wants_nothing_and_unwants_nothing() -> None:
    """An agent that starts while etcd is away, without a snapshot: the speaker keeps the peers it has."""
    graph = CalcGraph(LocalNode(name="a"))
    graph.tick(1000.0)
    graph.on_datastore_stale("permission denied")
    graph.on_peer_up(ip(B4), session(B4), 1000.0)
    graph.on_learned(ip(B4), path(B4), [net(X)])
    outcome = graph.take()
    assert (graph.desired, outcome.desired, outcome.fib, outcome.authoritative) == (None, None, {}, False)
    assert graph.tick(1001.0) is None, "nothing can be taken, so there is nothing to call again for"
    graph.on_datastore(changes(A, B, C, PODS, ON_B), True)
    graph.on_next_hops({ip(B4): Resolved((KernelNextHop(ip(B4), 2),))})
    assert set(graph.take().desired.peers) == {ip(B4), ip(C4), ip("fd00::2"), ip("fd00::3")}


def test_an_etcd_that_is_empty_on_purpose_is_believed() -> None:
    graph = CalcGraph(LocalNode(name="a"))
    graph.on_datastore([], True)
    desired = graph.take().desired
    assert desired is not None
    assert desired.peers == {}


def test_while_the_datastore_is_stale_nothing_valid_becomes_worse_and_new_paths_are_judged() -> None:
    world = up(driver(ON_B), B4, X)
    world.graph.on_datastore_stale("all endpoints refuse the connection")
    assert world.settle().outcome.fib == {}
    world.graph.on_learned(ip(B4), path(B4), [net(Y), net(Z)])
    assert world.settle().fib() == BOTH
    assert [v.path.origin.validity for v in world.graph.paths(net(Z))] == ["unknown"]
    assert "stale: all endpoints refuse" in "\n".join(world.graph.explain(net(X)))


def test_a_locked_datastore_holds_everything_back_until_it_is_ready() -> None:
    world = up(driver(ON_B), B4, X, Y)
    locked = ClusterInformation(datastore_ready=False)
    world.graph.on_datastore(changes(locked), True)
    assert world.settle().outcome.desired is not None
    assert world.graph.desired is not None
    assert world.graph.desired.frozen
    # A migration empties the datastore, blocks and nodes alike.
    gone = [Change(key_of(value), None, 9) for value in (B, PODS, *ON_B)]
    world.graph.on_datastore(gone, True)
    world.settle()
    assert (world.fib(), world.outcome.desired) == (BOTH, None)
    world.graph.on_learned(ip(B4), path(B4, med=5), [net(X)])
    assert world.settle().fib() == BOTH
    # Filled again, but one block went to c meanwhile: all that counts at once when it is unlocked.
    world.graph.on_datastore(changes(B, PODS, block_on("b", X), block_on("c", Y), revision=10), True)
    assert world.settle().fib() == BOTH
    world.graph.on_datastore(changes(ClusterInformation(datastore_ready=True), revision=11), True)
    assert world.settle().fib() == {X: f"via {B4}"}
    assert world.graph.desired is not None
    assert world.graph.desired.frozen is None


def test_a_datastore_that_is_locked_at_start_gives_nothing_to_act_on() -> None:
    world = Driver()
    world.graph.on_datastore(
        changes(A, B, PODS, block_on("a"), ClusterInformation(datastore_ready=False)), True
    )
    world.settle()
    assert (world.outcome.desired, world.outcome.authoritative, world.fib()) == (None, False, {})
    assert "locked" in (world.graph.frozen or "")
    world.graph.on_datastore(changes(node("d", "192.0.2.4/24")), True)
    assert world.settle().outcome.desired is None
    world.graph.on_datastore(changes(ClusterInformation(datastore_ready=True)), True)
    assert world.settle().fib() == {X: "blackhole"}
    assert world.outcome.authoritative


def test_a_datastore_that_was_locked_while_the_agent_was_away_leaves_what_the_last_good_copy_says() -> None:
    world = Driver()
    world.graph.on_datastore(changes(A, B, PODS, block_on("a", Z), *ON_B), False)
    assert world.settle().outcome.desired is None, "etcd may answer at once"
    locked = ClusterInformation(datastore_ready=False)
    gone = [Change(key_of(value), None, 9) for value in (B, PODS, *ON_B)]
    world.graph.on_datastore([*changes(locked, revision=9), *gone], True)
    world.settle()
    assert world.graph.desired is not None
    assert "locked" in (world.graph.desired.frozen or "")
    assert world.fib() == {Z: "blackhole"}
    assert set(world.graph.desired.peers) == {ip(B4), ip("fd00::2")}
    assert not world.outcome.authoritative, "inherited routes stay until the datastore is ready"
    assert up(world, B4, X).fib() == {X: f"via {B4}", Z: "blackhole"}
    world.graph.on_datastore(changes(ClusterInformation(datastore_ready=True), revision=10), True)
    assert world.settle().fib() == {}, "the pool and the node are gone"
    assert world.outcome.authoritative


def test_what_does_not_concern_this_node_gives_no_new_desired() -> None:
    world = driver()
    assert world.outcome.desired is not None
    world.graph.on_datastore(changes(ON_B, revision=7), True)
    assert world.settle().outcome.desired is None
    world.graph.on_datastore(changes(affinity("b", X), revision=8), True)
    assert world.settle().outcome.desired is None


def test_a_password_that_is_found_later_makes_the_peer() -> None:
    ref = SecretRef("bgp", "tor")
    world = driver(bgp_peer("tor", TOR, 65000, password=ref))
    assert world.graph.desired is not None
    assert ip(TOR) not in world.graph.desired.peers
    world.graph.on_secrets({ref: "hunter2"})
    assert ip(TOR) in world.settle().graph.desired.peers  # type: ignore[union-attr]


# -- bounds -------------------------------------------------------------------------------------------


def test_a_peer_past_its_limit_is_cut_and_named_and_the_others_go_on() -> None:
    world = up(driver(ON_B, bgp_peer("tor", TOR, 65000, prefix_limit=10)), B4, X)
    flood = [f"100.64.{i}.0/24" for i in range(100)]
    world.graph.on_peer_up(ip(TOR), session(TOR, asn=65000), 1000.0)
    world.graph.on_learned(ip(TOR), path(TOR, 65000), [net(p) for p in flood])
    world.settle()
    assert len(world.fib()) == 11
    assert [r.subject for r in world.graph.refusals() if "90 were left out" in r.reason] == ["peer tor"]
    # What it may have it may still change.
    world.graph.on_learned(ip(TOR), path(TOR, 65000, med=1), [net(flood[0])])
    world.graph.on_withdrawn(ip(TOR), [net(flood[1])])
    assert len(world.settle().fib()) == 10


def test_a_restarted_peer_at_its_limit_may_announce_other_prefixes_before_the_stale_ones_go() -> None:
    old, new = ([f"100.64.{i + n}.0/24" for i in range(10)] for n in (0, 5))
    world = up(driver(bgp_peer("tor", TOR, 65000, prefix_limit=10)), TOR, asn=65000)
    world.graph.on_learned(ip(TOR), path(TOR, 65000), [net(p) for p in old])
    world.graph.on_peer_down(ip(TOR), 1010.0, graceful=True)
    up(world, TOR, now=1011.0, asn=65000)
    world.graph.on_learned(ip(TOR), path(TOR, 65000), [net(p) for p in new])
    assert set(world.settle().fib()) == {*old, *new}
    world.graph.on_end_of_rib(ip(TOR), 4, 1012.0)
    assert set(world.settle().fib()) == set(new)
    world.graph.on_learned(ip(TOR), path(TOR, 65000), [net("100.65.0.0/24")])
    assert set(world.settle().fib()) == set(new), "the limit itself stands"


def test_the_next_hops_of_refused_paths_are_not_looked_up() -> None:
    world = driver(ON_B)
    world.graph.on_peer_up(ip(C4), session(C4), 1000.0)
    for i in range(100):
        world.graph.on_learned(ip(C4), path(f"198.51.100.{i}"), [net(f"10.1.9.{i}/32")])
    assert world.graph.take().resolve == frozenset()
    assert world.graph.peer_counts(ip(C4)).received == 100


def test_refusals_are_one_sentence_a_peer() -> None:
    world = up(driver(ON_B), C4, X, Y, "172.16.0.0/24")
    refused = [str(r) for r in world.graph.refusals() if r.subject == "peer c"]
    assert refused == [
        (
            "peer c: 10.1.0.0/26 refused: b holds block 10.1.0.0/26, but c announces it "
            "(and 2 more prefixes refused)"
        )
    ]
    assert len(world.graph.rejections()) == 3
    assert len(world.graph.rejections(limit=2)) == 2


# -- next hops ----------------------------------------------------------------------------------------


def test_a_next_hop_that_becomes_unreachable_takes_only_its_routes() -> None:
    world = up(driver(ON_B, block_on("c", Z)), B4, X, Y)
    up(world, C4, Z)
    world.graph.on_next_hops({ip(B4): Unresolved("network is unreachable")})
    assert world.settle().fib() == {Z: f"via {C4}"}
    assert "network is unreachable" in world.graph.paths(net(X))[0].step
    world.graph.on_next_hops({ip(B4): Resolved((KernelNextHop(ip("192.0.2.9"), 3),))})
    assert world.settle().fib() == {X: "via 192.0.2.9", Y: "via 192.0.2.9", Z: f"via {C4}"}


def test_a_next_hop_nobody_uses_is_forgotten_and_asked_for_again() -> None:
    world = up(driver(ON_B), B4, X)
    world.graph.on_withdrawn(ip(B4), [net(X)])
    world.settle()
    world.graph.on_next_hops({ip(B4): Unresolved("late news")})  # nobody asked
    world.graph.on_learned(ip(B4), path(B4), [net(X)])
    assert world.graph.take().resolve == {ip(B4)}


def test_a_next_hop_that_fails_while_out_of_use_is_not_believed_to_work_afterwards() -> None:
    world = up(driver(ON_B), B4, X)
    world.graph.on_withdrawn(ip(B4), [net(X)])
    world.graph.on_next_hops({ip(B4): Unresolved("interface is down")})
    world.graph.on_learned(ip(B4), path(B4), [net(X)])
    assert world.settle().fib() == {}


def test_ecmp_is_the_union_of_what_the_next_hops_resolve_to_at_most_64_wide() -> None:
    tors = [f"192.0.2.{100 + i}" for i in range(40)]
    world = driver(*(bgp_peer(f"tor-{i}", ip_, 65000) for i, ip_ in enumerate(tors)))
    for tor in tors:
        world.graph.on_peer_up(ip(tor), session(tor, asn=65000), 1000.0)
        world.graph.on_learned(ip(tor), path(tor, 65000), [net("0.0.0.0/0")])
    resolve = world.graph.take().resolve
    assert len(resolve) == 40
    hops = [KernelNextHop(address, ifindex) for address in sorted(resolve) for ifindex in (1, 2)]
    world.graph.on_next_hops({a: Resolved(tuple(h for h in hops if h.gateway == a)) for a in resolve})
    (route,) = [r for r in world.graph.take().fib.values() if r is not None]
    assert route.next_hops == tuple(hops[:64])


def test_a_path_through_a_gateway_loses_against_a_connected_one() -> None:
    world = driver(bgp_peer("t1", TOR, 65000), bgp_peer("t2", "192.0.2.253", 65000))
    for tor in (TOR, "192.0.2.253"):
        world.graph.on_peer_up(ip(tor), session(tor, asn=65000), 1000.0)
    world.graph.on_learned(ip(TOR), path(TOR, 65000), [net("203.0.113.0/24")])
    world.graph.on_learned(ip("192.0.2.253"), path("198.51.100.1", 65000), [net("203.0.113.0/24")])
    world.graph.take()
    gateway = Resolved((KernelNextHop(ip("192.0.2.200"), 2),))
    world.graph.on_next_hops({ip(TOR): Resolved((KernelNextHop(ip(TOR), 2),)), ip("198.51.100.1"): gateway})
    views = world.graph.paths(net("203.0.113.0/24"))
    assert [(str(v.path.peer), v.best, v.step) for v in views] == [
        (TOR, True, ""),
        ("192.0.2.253", False, "lower interior cost"),
    ]


# -- other ways ---------------------------------------------------------------------------------------


def test_a_route_of_an_eBGP_peer_is_told_to_the_mesh_only_inside_pools() -> None:  # noqa: N802
    world = driver(bgp_peer("tor", TOR, 65000, accepts_pool_routes=True))
    world.graph.on_peer_up(ip(TOR), session(TOR, asn=65000), 1000.0)
    world.graph.on_learned(ip(TOR), path(TOR, 65000, med=9), [net(X), net("203.0.113.0/24")])
    world.settle()
    assert world.told[ip(B4)] == {net(X): path(TOR, 65000, med=9, local_pref=100)}


def test_what_the_mesh_says_is_told_to_an_eBGP_peer_as_ours() -> None:  # noqa: N802
    world = up(driver(ON_B, bgp_peer("tor", TOR, 65000)), B4, X)
    assert world.told[ip(TOR)] == {net(X): path("192.0.2.1", 64512)}
    assert ip(C4) not in world.told
    closed = replace(PODS, disable_bgp_export=True)
    world.graph.on_datastore(changes(closed, revision=5), True)
    assert world.settle().adverts() == {}
    assert world.fib() == {X: f"via {B4}"}


def test_switched_off_validation_judges_nothing() -> None:
    world = up(driver(mode=OriginMode.OFF), C4, "172.16.0.0/24")
    assert world.fib() == {"172.16.0.0/24": f"via {C4}"}
    assert world.graph.paths(net("172.16.0.0/24"))[0].path.origin.reason == "origin validation is off"


def test_a_router_id_told_by_a_session_names_the_originator() -> None:
    reflector = node("r", "192.0.2.9/24", rr="1.0.0.1", labels={"rr": ""})
    told = path(B4, originator_id="7.7.7.7", cluster_list=("1.0.0.1",))
    world = driver(
        ON_B, reflector, bgp_peer("rr", peer_selector="has(rr)"), bgp_peer("b", B4, 64512, node="a")
    )
    world.graph.on_peer_up(ip("192.0.2.9"), session("192.0.2.9"), 1000.0)
    world.graph.on_learned(ip("192.0.2.9"), told, [net(X)])
    assert world.settle().fib() == {}
    up(world, B4, router_id="7.7.7.7")
    assert world.fib() == {X: f"via {B4}"}


def test_what_reflectors_send_everybody_is_a_refusal_only_where_something_is_lacking() -> None:
    """RFC 4456 section 8. Two reflectors with one cluster ID refuse each other's routes all day."""
    ours, theirs = (
        node(name, f"192.0.2.{number}/24", rr="1.0.0.1", labels={"rr": ""})
        for name, number in (("a", 1), ("r", 9))
    )
    world = up(driver(ON_B, ours, theirs, bgp_peer("rr", peer_selector="has(rr)")), B4, X)
    assert world.adverts() == {C4: {X}, R4: {X}}
    assert world.graph.explain(net(X))[-1] == "advertised to c, r"
    world.graph.on_peer_up(ip(R4), session(R4), 1000.0)
    reflected = path(B4, originator_id=B4, cluster_list=("1.0.0.1",))
    own = path("192.0.2.1", originator_id="192.0.2.1")
    world.graph.on_learned(ip(R4), reflected, [net(X)])
    world.graph.on_learned(ip(R4), own, [net("10.1.1.0/26")])
    assert world.settle().fib() == {X: f"via {B4}"}
    assert world.graph.peer_counts(ip(R4)).rejected == 2
    assert "  not used: cluster loop: our cluster ID 1.0.0.1 is in CLUSTER_LIST" in world.graph.explain(
        net(X)
    )
    assert world.graph.refusals() == ()
    # The client's session with us ends: now it matters that the only other path is refused.
    world.graph.on_peer_down(ip(B4), 1001.0, graceful=False)
    assert world.settle().fib() == {}
    [refusal] = world.graph.refusals()
    assert str(refusal) == f"peer r: {X} refused: cluster loop: our cluster ID 1.0.0.1 is in CLUSTER_LIST"


def test_two_nodes_with_one_router_id_behind_a_reflector_are_told_of() -> None:
    reflector = node("r", "192.0.2.9/24", rr="1.0.0.1", labels={"rr": ""})
    world = driver(ON_B, reflector, bgp_peer("rr", peer_selector="has(rr)"))
    world.graph.on_peer_up(ip(R4), session(R4), 1000.0)
    world.graph.on_learned(ip(R4), path(B4, originator_id="192.0.2.1"), [net(X)])
    assert world.settle().fib() == {}
    [refusal] = world.graph.refusals()
    assert "reflected back to us: ORIGINATOR_ID 192.0.2.1 is our router ID" in str(refusal)


def test_the_explanation_goes_from_the_datastore_to_the_kernel() -> None:
    world = up(driver(ON_B), B4, X)
    up(world, C4, X)
    assert world.graph.explain(net(X)) == [
        "10.1.0.0/26: inside IPPool pods (10.1.0.0/16); block 10.1.0.0/26 belongs to b",
        "path from b (192.0.2.2): next hop 192.0.2.2, AS_PATH empty",
        "  origin validation: valid: b holds block 10.1.0.0/26",
        "  best",
        "path from c (192.0.2.3): next hop 192.0.2.3, AS_PATH empty",
        "  origin validation: invalid: b holds block 10.1.0.0/26, but c announces it",
        "  not used: origin validation: invalid: b holds block 10.1.0.0/26, but c announces it",
        "route: via 192.0.2.2 dev if2",
        "advertised to nobody",
        "not advertised to c: learned by iBGP, and neither side is a route reflector client",
    ]
    assert "route: via 192.0.2.2 dev eth0" in world.graph.explain(net(X), {2: "eth0"}.__getitem__)
    assert world.graph.explain(net("198.51.100.0/24")) == [
        "198.51.100.0/24: outside every pool and service range",
        "no peer announces it",
        "route: none",
        "advertised to nobody",
    ]
    of_node = world.graph.explain(net(f"{B4}/32"))[0]
    assert of_node == "192.0.2.2/32: the address of b; routes to nodes themselves are not Tortie's"


@pytest.mark.parametrize("better", [{"med": 1}, {"origin": OriginCode.IGP}])
def test_the_step_that_decided_is_shown(better: dict[str, Any]) -> None:
    world = driver(bgp_peer("t1", TOR, 65000), bgp_peer("t2", "192.0.2.253", 65000))
    for tor, more in ((TOR, better), ("192.0.2.253", {"med": 2, "origin": OriginCode.EGP})):
        world.graph.on_peer_up(ip(tor), session(tor, asn=65000), 1000.0)
        more = {"med": 2, "origin": OriginCode.EGP} | more
        world.graph.on_learned(ip(tor), path(tor, 65000, **more), [net("203.0.113.0/24")])
    world.settle()
    (best, lost) = world.graph.paths(net("203.0.113.0/24"))
    assert (str(best.path.peer), best.best, best.used) == (TOR, True, True)
    assert (lost.best, lost.used) == (False, False)
    assert lost.step == ("lower MED" if "med" in better else "lower ORIGIN")


def test_a_path_that_changes_its_next_hop_lets_the_old_one_go() -> None:
    world = up(driver(bgp_peer("tor", TOR, 65000)), TOR, asn=65000)
    world.graph.on_learned(ip(TOR), path(TOR, 65000), [net("203.0.113.0/24")])
    world.settle()
    world.graph.on_learned(ip(TOR), path("192.0.2.200", 65000), [net("203.0.113.0/24")])
    assert world.settle().fib() == {"203.0.113.0/24": "via 192.0.2.200"}
    assert world.graph.next_hops_in_use() == {ip("192.0.2.200")}


def test_a_peer_that_becomes_ebgp_has_its_local_pref_ignored_without_a_new_update() -> None:
    other, prefix = "192.0.2.253", "203.0.113.0/24"
    world = driver(bgp_peer("t1", TOR, 64512), bgp_peer("t2", other, 65001))
    for tor, more in ((TOR, {"local_pref": 50}), (other, {})):
        world.graph.on_peer_up(ip(tor), session(tor), 1000.0)
        world.graph.on_learned(ip(tor), path(tor, 65001, **more), [net(prefix)])
    assert world.settle().fib() == {prefix: f"via {other}"}
    world.graph.on_datastore(changes(bgp_peer("t1", TOR, 65001), revision=5), True)
    assert world.settle().fib() == {prefix: f"via {other} {TOR}"}
