"""What `tortiectl ipam check` finds wrong, from one look."""

from __future__ import annotations

from dataclasses import replace

from felix_like.calc.ipam_report import Kind, Report, report
from felix_like.model.address import Prefix
from felix_like.model.ipam_use import Cluster, IpamState
from tests.support.ipam_world import allocated, cluster, running, state, stored_affinity, stored_handle

POOLS = [Prefix.parse("10.0.0.0/16"), Prefix.parse("fd00::/112")]
WEB = allocated("10.0.0.1", "web")
LIVES = cluster(running("web", "a", "10.0.0.1"))


def look(ipam: IpamState, known: Cluster | None = LIVES) -> Report:
    return report(ipam, POOLS, known, grace=900, claimed_before="2026-01-10T10:00:00Z")


def said(ipam: IpamState, known: Cluster | None = LIVES) -> list[tuple[Kind, str]]:
    return [(problem.kind, problem.subject) for problem in look(ipam, known).problems]


def test_nothing_is_wrong_with_what_is_right() -> None:
    assert said(state(WEB)) == []
    assert said(state(WEB), None) == [], "without Kubernetes nothing is guessed"


def test_leaks_and_candidates() -> None:
    ipam = state(WEB, allocated("10.0.0.2", "old"), allocated("10.0.0.3", "older", node="gone"))
    assert said(ipam) == [
        (Kind.LEAKED, "address 10.0.0.3 (handle k8s-pod-network.older, node gone)"),
        (Kind.CANDIDATE, "address 10.0.0.2 (handle k8s-pod-network.old, node a)"),
    ]


def test_an_endpoint_whose_address_ipam_does_not_know_comes_first() -> None:
    ipam = state(WEB, endpoints={"10.0.0.1": "a", "10.0.0.9": "a", "172.16.0.1": "a"}, handles=())
    assert said(ipam) == [
        (Kind.NOT_ALLOCATED, "address 10.0.0.9"),
        (Kind.WRONG_HANDLE, "IPAM handle k8s-pod-network.web"),
    ]
    dark = replace(ipam, unreadable_blocks=frozenset([Prefix.parse("10.0.0.0/26")]), blocks=())
    assert said(dark) == [], "a block that cannot be read may have given it out"


def test_blocks_without_affinity_or_pool_and_affinities_without_block() -> None:
    ipam = state(
        WEB,
        allocated("192.0.2.1", "elsewhere", handle="h"),
        affinities=(stored_affinity("a", "192.0.2.0/26"), stored_affinity("b", "10.0.0.0/26")),
    )
    known = cluster(running("web", "a", "10.0.0.1"), running("elsewhere", "a", "192.0.2.1"))
    assert said(ipam, known) == [
        (Kind.STALE_AFFINITY, "block affinity 10.0.0.0/26 of node b"),
        (Kind.NO_AFFINITY, "IPAM block 10.0.0.0/26"),
        (Kind.NO_POOL, "IPAM block 192.0.2.0/26"),
    ]


def test_a_gone_nodes_empty_block_is_named_once() -> None:
    ipam = state(owners={"10.0.0.0/26": "gone", "10.0.0.64/26": "gone"}, nodes=["a"])
    found = look(ipam).problems
    assert [(one.kind, one.subject) for one in found] == [
        (Kind.IDLE, "IPAM block 10.0.0.0/26 of node gone"),
        (Kind.IDLE, "IPAM block 10.0.0.64/26 of node gone"),
    ]
    assert "neither Calico nor Kubernetes has a Node gone" in found[0].reason


def test_what_could_not_be_read_is_named() -> None:
    ipam = state(WEB, damaged={"IPAM block 10.0.9.0/26": "unallocated has doubles or no numbers"})
    assert said(ipam) == [(Kind.DAMAGED, "IPAM block 10.0.9.0/26")]
    assert said(state(handles=(stored_handle("h", {}),))) == [(Kind.WRONG_HANDLE, "IPAM handle h")]
