"""RFC 4271 section 9.1.2.2, one test a step: each pair differs in that step and contradicts it later."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.path import Attributes, OriginCode, Path
from felix_like.rib.decision import STEPS, TIE_BREAKERS, Candidate, decide
from felix_like.rib.session import dotted

PREFIX = Prefix.parse("203.0.113.0/24")


def seq(*asns: int) -> tuple[tuple[Any, tuple[Asn, ...]], ...]:
    return (("sequence", tuple(Asn(a) for a in asns)),)


def candidate(
    peer: str = "10.0.0.2",
    *,
    ebgp: bool = False,
    router_id: str = "1.1.1.1",
    cost: int = 0,
    **attributes: Any,
) -> Candidate:
    attributes.setdefault("as_path", seq(65001))
    path = Path(PREFIX, Address.parse(peer), Attributes(next_hop=Address.parse(peer), **attributes))
    return Candidate(path, ebgp, dotted(router_id), cost)


# Each case: the winner, the loser, the step. The loser would win every later step.
CASES = {
    "higher LOCAL_PREF": (
        candidate("10.0.0.9", local_pref=200, as_path=seq(65001, 65002)),
        candidate("10.0.0.2", local_pref=150),
    ),
    "shorter AS_PATH": (
        candidate("10.0.0.9", as_path=seq(65001), origin=OriginCode.INCOMPLETE),
        candidate("10.0.0.2", as_path=seq(65001, 65002)),
    ),
    "lower ORIGIN": (
        candidate("10.0.0.9", origin=OriginCode.IGP, med=9),
        candidate("10.0.0.2", origin=OriginCode.EGP, med=1),
    ),
    "lower MED": (candidate("10.0.0.9", med=1), candidate("10.0.0.2", med=2, ebgp=True)),
    "eBGP over iBGP": (candidate("10.0.0.9", ebgp=True, cost=1), candidate("10.0.0.2")),
    "lower interior cost": (
        candidate("10.0.0.9", cost=0, router_id="9.9.9.9"),
        candidate("10.0.0.2", cost=1, router_id="1.1.1.1"),
    ),
    "lower router ID": (
        candidate("10.0.0.9", router_id="1.1.1.1", cluster_list=("1.0.0.1", "1.0.0.2")),
        candidate("10.0.0.2", router_id="2.2.2.2"),
    ),
    "shorter CLUSTER_LIST": (
        candidate("10.0.0.9", cluster_list=("1.0.0.1",)),
        candidate("10.0.0.2", cluster_list=("1.0.0.1", "1.0.0.2")),
    ),
    "lower peer address": (candidate("10.0.0.2"), candidate("10.0.0.10")),
}


@pytest.mark.parametrize("step", CASES)
@pytest.mark.parametrize("turned", [False, True])
def test_a_step_decides_and_is_named(step: str, turned: bool) -> None:
    winner, loser = CASES[step]
    decision = decide([loser, winner] if turned else [winner, loser])
    assert decision.best is winner.path
    assert decision.lost == ((loser.path, step),)


def test_every_step_has_its_case() -> None:
    assert list(CASES) == [name for name, _ in (*STEPS, *TIE_BREAKERS)]


def test_no_candidate_is_an_error() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        decide([])


def test_a_missing_local_pref_is_100_and_one_from_ebgp_is_ignored() -> None:
    plain, low = candidate("10.0.0.2"), candidate("10.0.0.3", local_pref=99)
    assert decide([plain, low]).lost == ((low.path, "higher LOCAL_PREF"),)
    boasting = candidate("10.0.0.3", ebgp=True, local_pref=4_000_000_000, as_path=seq(65001, 65002))
    assert decide([plain, boasting]).lost == ((boasting.path, "shorter AS_PATH"),)


def test_med_is_not_compared_between_neighbouring_ases() -> None:
    a = candidate("10.0.0.2", ebgp=True, as_path=seq(65001), med=50)
    b = candidate("10.0.0.3", ebgp=True, as_path=seq(65002), med=1)
    assert decide([a, b]).multipath == (a.path, b.path)


def test_med_removes_within_its_group_whatever_the_order() -> None:
    """The textbook case where comparing pairs in order of arrival gives three different answers."""
    a = candidate("10.0.0.2", as_path=seq(65001), med=10, router_id="1.1.1.3", cost=1)
    b = candidate("10.0.0.3", as_path=seq(65001), med=5, router_id="1.1.1.2", cost=1)
    c = candidate("10.0.0.4", as_path=seq(65002), med=20, router_id="1.1.1.1", cost=1)
    for order in itertools.permutations([a, b, c]):
        decision = decide(order)
        assert decision.best is c.path
        assert {p.peer: s for p, s in decision.lost} == {
            a.path.peer: "lower MED",
            b.path.peer: "lower router ID",
        }


def test_a_missing_med_is_the_lowest() -> None:
    none, one = candidate("10.0.0.3"), candidate("10.0.0.2", med=1)
    assert decide([none, one]).best is none.path


def test_originator_id_stands_for_the_router_id_of_a_reflected_path() -> None:
    reflected = candidate("10.0.0.9", router_id="9.9.9.9", originator_id="1.1.1.1")
    direct = candidate("10.0.0.2", router_id="2.2.2.2")
    assert decide([reflected, direct]).best is reflected.path
    from_outside = candidate("10.0.0.9", ebgp=True, router_id="9.9.9.9", originator_id="1.1.1.1")
    outside = candidate("10.0.0.2", ebgp=True, router_id="2.2.2.2")
    assert decide([from_outside, outside]).best is outside.path


def test_an_as_set_counts_as_one_and_a_confederation_as_none() -> None:
    aggregated = candidate("10.0.0.9", as_path=(("sequence", (1,)), ("set", (2, 3, 4))))
    long = candidate("10.0.0.2", as_path=seq(1, 2, 3))
    confed = candidate("10.0.0.8", as_path=(("confed-sequence", (7, 8)), ("sequence", (1,))))
    decision = decide([aggregated, long, confed])
    assert decision.best is confed.path
    assert [s for _, s in decision.lost] == ["shorter AS_PATH", "shorter AS_PATH"]


def test_equal_paths_share_the_traffic_and_the_best_is_first() -> None:
    a = candidate("10.0.0.9", router_id="1.1.1.1")
    b = candidate("10.0.0.2", router_id="2.2.2.2")
    worse = candidate("10.0.0.3", as_path=seq(1, 2))
    decision = decide([b, worse, a])
    assert decision.multipath == (a.path, b.path)
    assert {p.peer: s for p, s in decision.lost}[b.path.peer] == "lower router ID"


some_attributes = st.fixed_dictionaries(
    {
        "local_pref": st.sampled_from([None, 100, 200]),
        "med": st.sampled_from([None, 1, 2]),
        "origin": st.sampled_from(list(OriginCode)),
        "as_path": st.sampled_from([seq(1), seq(2), seq(1, 2), ()]),
        "originator_id": st.sampled_from([None, "1.2.3.4"]),
        "cluster_list": st.sampled_from([(), ("1.1.1.1",)]),
    }
)
some_candidates = st.lists(
    st.tuples(some_attributes, st.booleans(), st.integers(1, 3), st.integers(0, 1)), min_size=1, max_size=6
).map(
    lambda rows: [
        candidate(f"10.0.0.{i}", ebgp=ebgp, router_id=f"0.0.0.{rid}", cost=cost, **attributes)
        for i, (attributes, ebgp, rid, cost) in enumerate(rows, 1)
    ]
)


@given(some_candidates, st.randoms())
def test_the_order_of_arrival_never_matters(candidates: list[Candidate], random: Any) -> None:
    told = decide(candidates)
    shuffled = list(candidates)
    random.shuffle(shuffled)
    again = decide(shuffled)
    assert again.multipath == told.multipath
    assert sorted(again.lost, key=str) == sorted(told.lost, key=str)
    assert {p.peer for p, _ in told.lost} | {told.best.peer} == {c.path.peer for c in candidates}


def test_staleness_does_not_make_a_path_worse() -> None:
    fresh = candidate("10.0.0.3")
    stale = candidate("10.0.0.2")
    stale = stale._replace(path=replace(stale.path, stale=True))
    assert decide([fresh, stale]).best is stale.path


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.256", "1.2.3.4.5", "a.b.c.d", "1.2.3.٤"])
def test_what_is_no_dotted_quad(text: str) -> None:
    with pytest.raises(ValueError, match="dotted quad"):
        dotted(text)
