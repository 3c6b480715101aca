"""The snapshot: current values, no history."""

from __future__ import annotations

import itertools

from felix_like.calc.snapshot import Change, Malformed, Snapshot, Touched
from felix_like.model.address import Address, Prefix
from felix_like.model.bgp import BgpConfiguration, BgpPeer, ClusterInformation
from felix_like.model.block import AffinityState, Block, BlockAffinity
from felix_like.model.ippool import IPPool
from felix_like.model.node import Node

CIDR = Prefix.parse("10.1.0.0/26")
NODE_A = Node(name="a", ipv4=Address.parse("192.0.2.1"))
POOL = IPPool(name="p", cidr=Prefix.parse("10.1.0.0/16"), block_size=26)
AFFINITY = BlockAffinity(node="a", cidr=CIDR, state=AffinityState.CONFIRMED)
BLOCK = Block(cidr=CIDR, affinity="a", borrowed={Address.parse("10.1.0.3"): "c"})
CHANGES = (
    Change("/nodes/a", NODE_A, 1),
    Change("/pools/p", POOL, 2),
    Change("/affinity/a", AFFINITY, 3),
    Change("/block", BLOCK, 4),
    Change("/config", BgpConfiguration(name="default"), 5),
    Change("/peer", Malformed("BGPPeer tor", "no"), 6),
)


def state(snapshot: Snapshot) -> dict[str, object]:
    """Everything the snapshot answers, as one comparable value."""
    return {
        "revision": snapshot.revision,
        "nodes": dict(snapshot.nodes),
        "pools": dict(snapshot.pools),
        "blocks": dict(snapshot.blocks),
        "affinities": dict(snapshot.affinities),
        "configurations": dict(snapshot.bgp_configurations),
        "peers": dict(snapshot.bgp_peers),
        "cluster": snapshot.cluster,
        "malformed": dict(snapshot.malformed),
        "claimed": {n: set(snapshot.claimed_by(n)) for n in "abc"},
        "claimants": set(snapshot.claimants(CIDR)),
        "lent": {n: set(snapshot.lending_to(n)) for n in "abc"},
    }


def test_every_order_and_any_repetition_end_in_the_same_state():
    expected = Snapshot()
    expected.apply(CHANGES)
    assert state(expected)["claimed"] == {"a": {CIDR}, "b": set(), "c": set()}
    assert state(expected)["lent"] == {"a": set(), "b": set(), "c": {CIDR}}
    for order in itertools.permutations(CHANGES):
        snapshot = Snapshot()
        snapshot.apply(order)
        assert not snapshot.apply(order)
        assert state(snapshot) == state(expected)


def test_what_is_deleted_leaves_no_trace():
    snapshot = Snapshot()
    snapshot.apply(CHANGES)
    snapshot.apply(Change(change.key, None, 7) for change in CHANGES)
    empty = Snapshot()
    empty.apply([Change("/never", None, 7)])
    assert state(snapshot) == state(empty)
    assert not snapshot._keys
    assert not snapshot._values


def test_a_malformed_value_takes_the_good_one_away_and_a_good_one_takes_the_reason_away():
    snapshot = Snapshot()
    snapshot.apply([Change("/nodes/a", NODE_A, 1)])
    bad = Malformed("Node a", "its address does not parse")
    assert snapshot.apply([Change("/nodes/a", bad, 2)]) == Touched(frozenset({Node}), malformed=True)
    assert (dict(snapshot.nodes), dict(snapshot.malformed)) == ({}, {"/nodes/a": bad})
    assert snapshot.apply([Change("/nodes/a", NODE_A, 3)]) == Touched(frozenset({Node}), malformed=True)
    assert (dict(snapshot.nodes), dict(snapshot.malformed)) == ({"a": NODE_A}, {})


def test_two_keys_that_name_one_thing_do_not_depend_on_their_order():
    keys = [f"/nodes/{letter}" for letter in "abcdefghij"]
    changes = [Change(key, Node(name="a", labels={"from": key}), 1) for key in keys]
    for order in (changes, changes[::-1]):
        snapshot = Snapshot()
        snapshot.apply(order)
        for key in keys:
            assert dict(snapshot.nodes) == {"a": Node(name="a", labels={"from": key})}
            snapshot.apply([Change(key, None, 2)])
        assert dict(snapshot.nodes) == {}


def test_a_foreign_block_concerns_only_those_with_a_stake_in_it():
    snapshot = Snapshot()
    touched = snapshot.apply([Change("/block", BLOCK, 1), Change("/affinity/a", AFFINITY, 2)])
    assert touched.blocks == {CIDR}
    assert touched.holders == {"a", "c"}
    assert [node for node in "abcd" if touched.concerns(node)] == ["a", "c"]
    moved = snapshot.apply([Change("/block", Block(cidr=CIDR, affinity="b"), 3)])
    assert moved.holders == {"a", "b", "c"}, "a still claims it, c has lost its borrowed address"


def test_everything_but_blocks_concerns_everybody():
    for value in (NODE_A, POOL, BgpPeer(name="p"), BgpConfiguration(name="default"), ClusterInformation()):
        assert Snapshot().apply([Change("/key", value, 1)]).concerns("nobody")
    assert Snapshot().apply([Change("/key", Malformed("x", "y"), 1)]).concerns("nobody")
    assert not Touched().concerns("nobody")


def test_the_cluster_information_comes_and_goes():
    snapshot = Snapshot()
    assert snapshot.cluster is None
    snapshot.apply([Change("/cluster", ClusterInformation(datastore_ready=False), 1)])
    assert snapshot.cluster == ClusterInformation(datastore_ready=False)
    snapshot.apply([Change("/cluster", None, 2)])
    assert snapshot.cluster is None
