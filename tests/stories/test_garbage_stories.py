"""Which addresses are leaks: one look after the other, with what each hands to the next."""

from __future__ import annotations

import pytest

from felix_like.calc import garbage
from felix_like.calc.garbage import Judged, LeakId, Standing, Word
from felix_like.model.address import Prefix
from felix_like.model.ipam_use import WINDOWS_RESERVED, Cluster, IpamState, PodUse
from tests.support.ipam_world import OTHER, allocated, cluster, running, state, stored_handle

GRACE = 900.0
WEB = allocated("10.0.0.1", "web")


class Looker:
    """Looks now and then, and remembers as the controller does."""

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self.since: dict[LeakId, float] = {}

    def look(self, ipam: IpamState, known: Cluster | None, now: float) -> dict[str, Judged]:
        judged = garbage.judge(ipam, known, since=self.since, now=now, grace=self.grace)
        self.since = garbage.remembered(judged)
        self.leaks = {
            leak.handle: [str(one.allocation.address) for one in leak.members]
            for leak in garbage.leaks(judged)
        }
        return {str(one.allocation.address): one for one in judged}


def test_a_pod_that_has_its_address_keeps_it() -> None:
    judged = Looker().look(state(WEB), cluster(running("web", "a", "10.0.0.1")), 0)["10.0.0.1"]
    assert (judged.standing, judged.reason) == (Standing.IN_USE, "pod default/web has it")


def test_a_pod_that_is_gone_loses_its_address_after_the_grace_and_not_before() -> None:
    looker = Looker()
    first = looker.look(state(WEB), cluster(), 100)["10.0.0.1"]
    assert (first.standing, first.word, first.since) == (Standing.CANDIDATE, Word.POD_GONE, 100)
    assert looker.look(state(WEB), cluster(), 100 + GRACE - 1)["10.0.0.1"].standing is Standing.CANDIDATE
    assert looker.leaks == {}
    last = looker.look(state(WEB), cluster(), 100 + GRACE)["10.0.0.1"]
    assert (last.standing, last.reason) == (Standing.LEAKED, "pod default/web does not exist, for 900 s")
    assert looker.leaks == {"k8s-pod-network.web": ["10.0.0.1"]}


def test_an_address_that_is_used_in_between_gets_the_whole_grace_anew() -> None:
    looker = Looker()
    looker.look(state(WEB), cluster(), 0)
    looker.look(state(WEB), cluster(running("web", "a", "10.0.0.1")), 500)
    assert looker.since == {}
    assert looker.look(state(WEB), cluster(), 950)["10.0.0.1"].since == 950


def test_an_address_that_is_given_out_anew_gets_the_whole_grace_anew() -> None:
    """The sequence number tells: a pod of a StatefulSet has the same name, and may get the same address."""
    looker = Looker()
    looker.look(state(WEB), cluster(), 0)
    again = allocated("10.0.0.1", "web", sequence=8)
    assert looker.look(state(again), cluster(), GRACE)["10.0.0.1"].standing is Standing.CANDIDATE


def test_on_a_node_that_is_gone_there_is_no_grace() -> None:
    looker = Looker()
    judged = looker.look(state(WEB, nodes=["b"]), cluster(nodes=["b"]), 0)["10.0.0.1"]
    assert (judged.standing, judged.word) == (Standing.LEAKED, Word.NODE_GONE)
    assert "neither Calico nor Kubernetes has a Node a" in judged.reason


def test_a_pod_that_lives_on_a_node_that_is_gone_keeps_its_address() -> None:
    known = cluster(running("web", "a", "10.0.0.1"), nodes=["b"])
    assert Looker().look(state(WEB, nodes=["b"]), known, 0)["10.0.0.1"].standing is Standing.IN_USE


def test_a_calico_node_whose_kubernetes_node_is_gone_still_has_its_grace() -> None:
    """Removing it is for the node controller, with its brakes: lost Nodes empty no pool."""
    judged = Looker().look(state(WEB), cluster(nodes=["b"]), 0)["10.0.0.1"]
    assert judged.standing is Standing.CANDIDATE


@pytest.mark.parametrize(
    ("pod", "word", "said"),
    [
        (running("web", "b", "10.0.0.2"), Word.POD_MOVED, "runs on b now, not on a"),
        (running("web", "b"), Word.POD_MOVED, "runs on b now, not on a"),
        (running("web", "a", "10.0.0.2"), Word.OTHER_ADDRESS, "has 10.0.0.2 instead"),
        (running("web", "a", "10.0.0.1", finished="Failed"), Word.POD_FINISHED, "has ended (Failed)"),
    ],
)
def test_other_ways_to_lose_an_address(pod: PodUse, word: Word, said: str) -> None:
    judged = Looker().look(state(WEB), cluster(pod), 0)["10.0.0.1"]
    assert judged.word is word
    assert said in judged.reason


def test_a_pod_that_has_the_address_keeps_it_wherever_it_runs() -> None:
    """A Node renamed in Kubernetes, or one whose orchRef names another: its pods live all the same."""
    looker = Looker()
    for now in (0, 10 * GRACE):
        judged = looker.look(state(WEB), cluster(running("web", "b", "10.0.0.1")), now)["10.0.0.1"]
        assert judged.standing is Standing.IN_USE
    assert looker.leaks == {}


def test_a_pod_that_has_not_told_its_address_keeps_what_it_was_given() -> None:
    assert Looker().look(state(WEB), cluster(running("web", "a")), 0)["10.0.0.1"].standing is Standing.IN_USE


def test_a_node_of_another_name_in_kubernetes_is_no_other_node() -> None:
    known = cluster(running("web", "kube-a", "10.0.0.1"), nodes=["kube-a"])
    assert Looker().look(state(WEB, nodes={"a": "kube-a"}), known, 0)["10.0.0.1"].standing is Standing.IN_USE


def test_an_endpoint_that_has_the_address_keeps_it_though_the_pod_is_gone() -> None:
    looker = Looker()
    for now in (0, 10 * GRACE):
        judged = looker.look(state(WEB, endpoints={"10.0.0.1": "a"}), cluster(), now)["10.0.0.1"]
        assert judged.standing is Standing.IN_USE
        assert (
            "WorkloadEndpoint default/a-k8s-x-eth0 has it, though pod default/web does not exist"
            in judged.reason
        )


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (allocated("10.0.0.1", handle=""), "it has no handle"),
        (allocated("10.0.0.1", handle="openstack.1"), "its attributes name no pod"),
        (allocated("10.0.0.1", handle=WINDOWS_RESERVED.title()), "reserved for Windows"),
        (allocated("10.0.0.1", "vm", machine=True), "virtual machine"),
        (allocated("10.0.0.1", "web", cooling=True), "cools down"),
        (allocated("10.0.0.1", "web", node=""), "name no node"),
        (allocated("10.0.0.1", "web", node="c"), "Node c is not Kubernetes'"),
    ],
)
def test_what_is_not_kubernetes_is_left_alone_for_ever(one: garbage.Allocation, why: str) -> None:
    looker = Looker()
    for now in (0, 100 * GRACE):
        judged = looker.look(state(one, nodes={"a": "a", "c": None}), cluster(), now)["10.0.0.1"]
        assert judged.standing is Standing.LEFT_ALONE
        assert why in judged.reason
    assert looker.leaks == {}


TUNNEL = allocated("10.0.0.0", handle="vxlan-tunnel-addr-a", kind="vxlanTunnelAddress")


def test_a_live_nodes_tunnel_address_is_never_a_leak() -> None:
    looker = Looker()
    for now in (0, 100 * GRACE):
        assert looker.look(state(TUNNEL), cluster(), now)["10.0.0.0"].standing is Standing.IN_USE


def test_a_gone_nodes_tunnel_address_goes_when_nothing_else_on_it_is_in_use() -> None:
    looker = Looker()
    busy = state(TUNNEL, WEB, nodes=["b"])
    judged = looker.look(busy, cluster(running("web", "", "10.0.0.1"), nodes=["b"]), 0)["10.0.0.0"]
    assert judged.standing is Standing.LEFT_ALONE
    assert "other addresses on it are not free" in judged.reason
    judged = looker.look(busy, cluster(nodes=["b"]), 1)["10.0.0.0"]
    assert judged.standing is Standing.LEAKED


def test_a_handles_addresses_go_together_or_not_at_all() -> None:
    looker = Looker()
    six = allocated("fd00::1", "web")
    both = state(WEB, six)
    half = cluster(running("web", "a", "fd00::1"))
    looker.look(both, half, 0)
    judged = looker.look(both, half, GRACE)
    assert judged["10.0.0.1"].standing is Standing.HELD
    assert "fd00::1 of the same handle is in use" in judged["10.0.0.1"].reason
    assert looker.leaks == {}
    looker.look(both, cluster(), GRACE + 1)
    looker.look(both, cluster(), 2 * GRACE + 1)
    assert looker.leaks == {"k8s-pod-network.web": ["10.0.0.1", "fd00::1"]}


def test_an_address_that_cools_down_holds_up_none_of_its_handle() -> None:
    looker = Looker()
    both = state(WEB, allocated("10.0.0.2", "web", cooling=True))
    looker.look(both, cluster(), 0)
    looker.look(both, cluster(), GRACE)
    assert looker.leaks == {"k8s-pod-network.web": ["10.0.0.1"]}


def test_a_handle_that_counts_in_a_damaged_block_is_held() -> None:
    dark = Prefix.parse("10.0.7.0/26")
    handle = stored_handle("k8s-pod-network.web", {"10.0.0.0/26": 1, str(dark): 1})
    ipam = state(WEB, nodes=["b"], handles=(handle,), unreadable_blocks=frozenset([dark]))
    judged = Looker().look(ipam, cluster(nodes=["b"]), 0)["10.0.0.1"]
    assert judged.standing is Standing.HELD
    assert "damaged block 10.0.7.0/26" in judged.reason


def test_without_kubernetes_nothing_is_a_leak() -> None:
    looker = Looker()
    gone = allocated("10.0.0.2", "old", node="z")
    for now in (0, 100 * GRACE):
        judged = looker.look(state(WEB, gone, TUNNEL, endpoints={"10.0.0.1": "a"}), None, now)
        assert judged["10.0.0.1"].standing is Standing.IN_USE
        assert judged["10.0.0.2"].standing is Standing.LEFT_ALONE
        assert "no Kubernetes API to ask" in judged["10.0.0.2"].reason


@pytest.mark.parametrize(
    "empty",
    [
        Cluster(nodes=frozenset(["a", "b"]), pods={}),
        Cluster(nodes=frozenset(), pods={("default", "coredns"): OTHER}),
        Cluster(nodes=frozenset(), pods={}),
    ],
)
def test_an_api_server_that_was_restored_empty_costs_no_address(empty: Cluster) -> None:
    looker = Looker()
    for now in (0, 100 * GRACE):
        judged = looker.look(state(WEB, TUNNEL, nodes=[]), empty, now)
        assert {one.standing for one in judged.values()} <= {Standing.LEFT_ALONE, Standing.IN_USE}
        assert "not believed" in judged["10.0.0.1"].reason
    assert looker.leaks == {}


def test_a_grace_of_zero_turns_collection_off() -> None:
    looker = Looker(grace=0)
    for now in (0, 100 * GRACE):
        judged = looker.look(state(WEB, nodes=["b"]), cluster(nodes=["b"]), now)["10.0.0.1"]
        assert judged.standing is Standing.CANDIDATE
        assert "collection is off" in judged.reason
