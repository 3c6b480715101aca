"""What is wrong with IPAM's bookkeeping, and when it has lasted long enough to be put right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from felix_like.calc import upkeep
from felix_like.calc.upkeep import Finding, Sight
from felix_like.model.address import Prefix
from felix_like.model.ipam_use import WINDOWS_RESERVED, IpamState
from tests.support.ipam_world import allocated, cluster, running, state, stored_affinity, stored_handle

SETTLE = 900.0
NOW = "2026-01-10T10:00:00Z"
WEB = allocated("10.0.0.1", "web")


def said(findings: Iterable[Finding]) -> dict[str, str]:
    return {finding.subject: finding.word for finding in findings}


class Looker:
    def __init__(self) -> None:
        self.seen: dict[str, Sight] = {}

    def look(self, findings: Iterable[Finding], now: float) -> list[str]:
        ripe, self.seen = upkeep.settled(findings, self.seen, now=now, settle=SETTLE)
        return [finding.subject for finding in ripe]


def test_a_finding_is_acted_on_when_it_was_seen_unchanged_for_the_whole_time() -> None:
    looker = Looker()
    orphan = state(handles=(stored_handle("h", {"10.0.0.0/26": 1}, revision=5),))
    assert looker.look(upkeep.wrong_handles(orphan), 0) == []
    assert looker.look(upkeep.wrong_handles(orphan), SETTLE - 1) == []
    assert looker.look(upkeep.wrong_handles(orphan), SETTLE) == ["IPAM handle h"]


def test_one_look_is_never_enough_however_long_ago() -> None:
    looker = Looker()
    assert looker.look(upkeep.wrong_handles(state(handles=(stored_handle("h", {}),))), 1e9) == []


def test_a_finding_that_changes_or_goes_in_between_starts_anew() -> None:
    looker = Looker()
    five = upkeep.wrong_handles(state(handles=(stored_handle("h", {"10.0.0.0/26": 1}, revision=5),)))
    six = upkeep.wrong_handles(state(handles=(stored_handle("h", {"10.0.0.0/26": 1}, revision=6),)))
    looker.look(five, 0)
    assert looker.look(six, SETTLE) == []
    assert looker.look(six, 2 * SETTLE) == ["IPAM handle h"]
    looker.look((), 2 * SETTLE + 1)
    assert looker.look(six, 3 * SETTLE) == []


def test_a_block_that_was_used_in_between_and_an_affinity_that_was_claimed_anew_start_anew() -> None:
    """They look the same as before; only their numbers tell."""
    looker = Looker()
    idle = state(owners={"10.0.0.0/26": "a", "10.0.0.64/26": "a"})
    used = replace(idle, blocks=tuple(replace(block, sequence=12) for block in idle.blocks))
    looker.look(upkeep.idle_blocks(idle, claimed_before=NOW), 0)
    assert looker.look(upkeep.idle_blocks(used, claimed_before=NOW), SETTLE) == []
    assert looker.look(upkeep.idle_blocks(used, claimed_before=NOW), 2 * SETTLE) != []
    three, four = (
        upkeep.stale_affinities(state(affinities=(stored_affinity("a", "10.0.0.0/26", revision=n),)))
        for n in (3, 4)
    )
    looker.look(three, 0)
    assert looker.look(four, SETTLE) == []
    assert looker.look(four, 2 * SETTLE) == ["block affinity 10.0.0.0/26 of node a"]


def test_empty_blocks_go_and_a_node_keeps_one_of_each_ip_version() -> None:
    owners = {"10.0.0.0/26": "a", "10.0.0.64/26": "a", "10.0.0.128/26": "a", "fd00::/122": "a"}
    assert said(upkeep.idle_blocks(state(owners=owners), claimed_before=NOW)) == {
        "IPAM block 10.0.0.64/26 of node a": "idle",
        "IPAM block 10.0.0.128/26 of node a": "idle",
    }
    used = state(WEB, owners=owners)
    assert len(upkeep.idle_blocks(used, claimed_before=NOW)) == 2, "the one in use is kept"
    assert upkeep.idle_blocks(state(owners={"10.0.0.0/26": "a"}), claimed_before=NOW) == ()


def test_a_block_that_was_claimed_a_moment_ago_stays() -> None:
    old = state(owners={"10.0.0.0/26": "a", "10.0.0.64/26": "a"})
    blocks = tuple(replace(block, claimed_at="2026-01-10T09:59:30Z") for block in old.blocks)
    assert upkeep.idle_blocks(replace(old, blocks=blocks), claimed_before="2026-01-10T09:59:00Z") == ()
    assert len(upkeep.idle_blocks(replace(old, blocks=blocks), claimed_before=NOW)) == 1


def test_a_block_that_is_given_up_already_and_a_virtual_one_are_nobodys() -> None:
    ownerless = state(owners={"10.0.0.0/26": None, "10.0.0.64/26": None})
    assert upkeep.idle_blocks(ownerless, claimed_before=NOW) == ()
    assert upkeep.orphaned_blocks(ownerless, cluster()) == ()


def test_a_gone_nodes_empty_blocks_go_and_the_last_one_too() -> None:
    ipam = state(owners={"10.0.0.0/26": "gone"}, nodes=["a"])
    assert said(upkeep.orphaned_blocks(ipam, cluster())) == {
        "IPAM block 10.0.0.0/26 of node gone": "node-gone"
    }
    assert upkeep.orphaned_blocks(ipam, None) == (), "without Kubernetes that is not known"
    assert upkeep.orphaned_blocks(ipam, cluster(nodes=[])) == ()
    assert upkeep.orphaned_blocks(ipam, cluster(nodes=["gone"])) == (), "it has not registered yet"
    used = state(allocated("10.0.0.1", "web", node="b"), owners={"10.0.0.0/26": "gone"}, nodes=["a", "b"])
    assert upkeep.orphaned_blocks(used, cluster(running("web", "b", "10.0.0.1"))) == ()


def test_affinities_that_no_block_answers_to() -> None:
    ipam = state(
        WEB,
        affinities=(
            stored_affinity("a", "10.0.0.0/26"),
            stored_affinity("b", "10.0.0.0/26"),
            stored_affinity("a", "10.0.0.64/26", "pending"),
            stored_affinity("a", "10.0.0.128/26"),
        ),
        unreadable_blocks=frozenset([Prefix.parse("10.0.0.128/26")]),
    )
    assert said(upkeep.stale_affinities(ipam)) == {
        "block affinity 10.0.0.0/26 of node b": "other-owner",
        "block affinity 10.0.0.64/26 of node a": "no-block",
    }


def handles(ipam: IpamState) -> dict[str, tuple[str, dict[str, int]]]:
    return {
        found.name: (found.word, {str(cidr): count for cidr, count in found.counts.items()})
        for found in upkeep.wrong_handles(ipam)
    }


def test_handles_are_as_the_blocks_say() -> None:
    block = "10.0.0.0/26"
    assert handles(state(WEB)) == {}
    assert handles(state(WEB, handles=())) == {WEB.handle: ("missing", {block: 1})}
    assert handles(state(WEB, handles=(stored_handle(WEB.handle, {block: 2}),))) == {
        WEB.handle: ("miscounted", {block: 1})
    }
    assert handles(state(handles=(stored_handle("h", {}),))) == {"h": ("orphan", {})}
    marked = replace(stored_handle(WEB.handle, {block: 1}), deleted=True)
    assert handles(state(WEB, handles=(marked,))) == {WEB.handle: ("miscounted", {block: 1})}


def test_an_address_that_cools_down_is_not_counted() -> None:
    assert handles(state(allocated("10.0.0.1", "web", cooling=True))) == {}


def test_a_damaged_block_takes_its_handles_out_of_judgement() -> None:
    dark = "10.0.7.0/26"
    ipam = state(
        WEB,
        handles=(stored_handle("h", {dark: 1}),),
        unreadable_blocks=frozenset([Prefix.parse(dark)]),
    )
    assert handles(ipam) == {}, "nor is one missing that may be counted in there"


def test_what_windows_reserves_has_no_handle_and_needs_none() -> None:
    """Calico puts it into a new block, and counts it nowhere."""
    reserved = allocated("10.0.0.1", handle=WINDOWS_RESERVED)
    assert upkeep.wrong_handles(state(reserved, handles=())) == ()
    counted = stored_handle(WINDOWS_RESERVED, {"10.0.7.0/26": 4})
    assert upkeep.wrong_handles(state(reserved, handles=(counted,))) == (), "whoever counts it, let it"
