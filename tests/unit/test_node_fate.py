"""When Nodes that Kubernetes has no more are removed, and what holds that up; and whose labels a Node has."""

from __future__ import annotations

import json

import pytest

from felix_like.calc.node_fate import HOLD, PATIENCE, Missing, Removal, removable
from felix_like.calc.node_labels import Labels, synced
from felix_like.model.verdict import No

TEN = {f"n{n}": f"k{n}" for n in range(10)}


def look(
    missing: int, before: Missing, now: float, most: int = 50, expected: dict[str, str] = TEN
) -> Removal:
    """So many of the expected, from the first on, are missing."""
    listed = set(list(expected.values())[missing:])
    return removable(expected, listed, before, now=now, most=most)


def test_a_node_is_removed_when_it_has_been_missing_for_a_while() -> None:
    first = look(1, Missing(), 100)
    assert (first.nodes, first.held, first.again_at) == ((), "", 100 + PATIENCE)
    again = look(1, first.missing, 100 + PATIENCE - 1)
    assert again.nodes == ()
    assert look(1, again.missing, 100 + PATIENCE).nodes == ("n0",)


def test_a_node_that_comes_back_gets_the_whole_patience_anew() -> None:
    first = look(1, Missing(), 0)
    back = look(0, first.missing, 30)
    assert back.missing.since == {}
    assert look(1, back.missing, 61).nodes == ()


def test_half_may_be_missing_and_more_may_not() -> None:
    assert look(5, look(5, Missing(), 0).missing, PATIENCE).nodes == ("n0", "n1", "n2", "n3", "n4")
    held = look(6, look(6, Missing(), 0).missing, PATIENCE)
    assert held.nodes == ()
    assert held.held.startswith("6 of 10 Nodes are missing in Kubernetes, more than 50 %: none is removed")


def test_kubelets_that_come_back_one_by_one_lose_nothing() -> None:
    """An API server restored without its Nodes: all are missing, then most, then few, then none."""
    missing = Missing()
    for count, now in ((10, 0.0), (10, 60.0), (8, 120.0), (5, 130.0), (3, 200.0), (1, 400.0)):
        found = look(count, missing, now)
        assert found.nodes == (), (count, now)
        assert found.held, (count, now)
        missing = found.missing
    assert look(0, missing, 500).held == ""


def test_after_the_hold_those_that_are_still_missing_go() -> None:
    missing = look(8, Missing(), 0).missing
    assert look(2, missing, HOLD - 1).nodes == ()
    found = look(2, look(2, missing, HOLD - 1).missing, HOLD + 1)
    assert found.nodes == ("n0", "n1")


def test_the_hold_lasts_over_a_moment_in_which_nothing_is_missing() -> None:
    """As when an API server that was restored twice has them all in between."""
    held = look(8, Missing(), 0).missing
    whole = look(0, held, 10)
    missing = look(2, whole.missing, 20).missing
    assert look(2, missing, HOLD - 1).nodes == ()


def test_an_empty_list_is_followed_by_the_hold() -> None:
    """Of two nodes the first is back: the other one alone would be no reason to hold."""
    two = {"a": "a", "b": "b"}
    empty = look(2, Missing(), 0, 100, two)
    found = look(1, empty.missing, PATIENCE, 100, two)
    assert found.nodes == ()
    assert "too many Nodes were missing a while ago" in found.held
    assert look(1, found.missing, HOLD + 1, 100, two).nodes == ("a",)


@pytest.mark.parametrize("most", [50, 100])
def test_an_empty_list_is_never_believed(most: int) -> None:
    missing = Missing()
    for now in (0.0, 1e6):
        found = look(10, missing, now, most)
        assert found.nodes == ()
        assert "lists no Node at all" in found.held
        missing = found.missing


def test_one_of_two_and_the_only_other_may_go_and_the_last_may_not() -> None:
    two = {"a": "a", "b": "b"}
    first = look(1, Missing(), 0, 10, two)
    assert look(1, first.missing, PATIENCE, 10, two).nodes == ("a",), "one always may be missing"
    only = {"a": "a"}
    assert look(1, look(1, Missing(), 0, 100, only).missing, PATIENCE, 100, only).nodes == ()


def test_with_a_limit_of_a_hundred_all_but_the_last_may_go() -> None:
    assert len(look(9, look(9, Missing(), 0, 100).missing, PATIENCE, 100).nodes) == 9


# -- labels ------------------------------------------------------------------------------------------------


def test_kubernetes_labels_are_copied_and_noted() -> None:
    found = synced({"mine": "1"}, None, {"zone": "b", "arch": "x"})
    assert isinstance(found, Labels)
    assert found.labels == {"mine": "1", "zone": "b", "arch": "x"}
    assert found.annotation == '{"arch":"x","zone":"b"}', "as Go writes a map: sorted, compact"


def test_what_kubernetes_has_no_more_goes_and_what_is_somebody_elses_stays() -> None:
    noted = json.dumps({"zone": "b", "old": "1"})
    found = synced({"zone": "b", "old": "1", "mine": "1"}, noted, {"zone": "c"})
    assert isinstance(found, Labels)
    assert found.labels == {"zone": "c", "mine": "1"}


def test_kubernetes_wins_over_the_same_label_set_by_hand() -> None:
    found = synced({"zone": "by-hand"}, None, {"zone": "b"})
    assert isinstance(found, Labels)
    assert found.labels == {"zone": "b"}


@pytest.mark.parametrize("noted", ["{", "[]", "1", "[" * 100_000])
def test_an_annotation_that_does_not_parse_stops_the_sync_of_this_node(noted: str) -> None:
    found = synced({"a": "1"}, noted, {"zone": "b"})
    assert isinstance(found, No)
    assert "projectcalico.org/kube-labels" in found.reason
