"""What may go, what collides, and what a read-back changes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from agent.sinks.ownership import Ledger, Rewrite, Sweep, rewrite
from agent.sinks.trouble import FIGHT_LIMIT, FIGHT_WINDOW, LONGEST_PAUSE, Troubles
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import PROTO_BGP, KernelNextHop, Route, RouteKey
from felix_like.model.verdict import Yes


def address(text: str) -> Address:
    return Address.parse(text)


def learned(prefix: str, *gateways: str, protocol: int = PROTO_BGP) -> Route:
    hops = tuple(KernelNextHop(address(gateway), 3) for gateway in gateways)
    return Route(RouteKey(Prefix.parse(prefix)), "unicast", protocol, hops)


def blackhole(prefix: str) -> Route:
    return Route(RouteKey(Prefix.parse(prefix)), "blackhole", PROTO_BGP)


ONE, TWO = address("10.0.0.1"), address("10.0.0.2")
ROUTE = learned("10.1.0.0/26", "10.0.0.1")
ECMP = learned("10.1.0.0/26", "10.0.0.1", "10.0.0.2")
DIRECT = Route(ROUTE.key, "unicast", PROTO_BGP, (KernelNextHop(None, 3),))


@pytest.mark.parametrize(
    ("route", "sweep", "goes"),
    [
        (ROUTE, Sweep(), False),
        (ROUTE, Sweep(authoritative=True), True),
        (ROUTE, Sweep(False, frozenset(), frozenset({ONE})), False),
        (ROUTE, Sweep(True, frozenset({ONE}), frozenset({ONE, TWO})), False),
        (ROUTE, Sweep(True, frozenset({TWO}), frozenset({ONE, TWO})), True),
        (ROUTE, Sweep(True, frozenset({TWO}), frozenset({TWO})), False),
        (ECMP, Sweep(True, frozenset({TWO}), frozenset({ONE, TWO})), False),
        (DIRECT, Sweep(True, frozenset({TWO}), frozenset({ONE, TWO})), False),
        (DIRECT, Sweep(True, frozenset(), frozenset({ONE})), True),
        (blackhole("10.1.0.0/26"), Sweep(), False),
        (blackhole("10.1.0.0/26"), Sweep(True, frozenset({ONE}), frozenset({ONE})), True),
    ],
)
def test_an_inherited_route_goes_only_when_nobody_may_announce_it_again(
    route: Route, sweep: Sweep, goes: bool
) -> None:
    verdict = sweep.allows(route)
    assert bool(verdict) is goes
    assert goes == isinstance(verdict, Yes)
    ledger = Ledger()
    ledger.found(route, {})
    assert ledger.release(sweep) == ({route.key} if goes else set())
    assert (route.key in ledger.inherited) is not goes


def test_ipv4_changes_append_the_new_and_delete_the_old() -> None:
    assert rewrite(ROUTE, ECMP) == Rewrite(ECMP, ROUTE)
    assert rewrite(blackhole("10.1.0.0/26"), ROUTE) == Rewrite(ROUTE, blackhole("10.1.0.0/26"))


def test_ipv6_changes_add_and_remove_single_next_hops() -> None:
    old, new = learned("fd01::/64", "fd00::1", "fd00::2"), learned("fd01::/64", "fd00::2", "fd00::3")
    assert rewrite(old, new) == Rewrite(learned("fd01::/64", "fd00::3"), learned("fd01::/64", "fd00::1"))
    assert rewrite(old, learned("fd01::/64", "fd00::2")) == Rewrite(None, learned("fd01::/64", "fd00::1"))
    hole = blackhole("fd01::/64")
    assert rewrite(old, hole) == Rewrite(hole, old)
    assert rewrite(hole, old) == Rewrite(old, hole)


def test_ipv6_routes_that_differ_in_protocol_only_collide() -> None:
    old = learned("fd01::/64", "fd00::1", protocol=4)
    assert rewrite(old, learned("fd01::/64", "fd00::1")).remove_first
    assert not rewrite(old, learned("fd01::/64", "fd00::2")).remove_first


def test_ipv6_onlink_alone_is_no_difference_worth_a_message() -> None:
    old = learned("fd01::/64", "fd00::1")
    new = Route(old.key, old.kind, old.protocol, (old.next_hops[0]._replace(onlink=True),))
    assert rewrite(old, new) == Rewrite(None, None)


def test_a_read_back_tells_inherited_wanted_and_dropping_apart() -> None:
    a, b, c = (learned(f"10.{i}.0.0/26", "10.0.0.1") for i in (1, 2, 3))
    missing, changed = learned("10.4.0.0/26", "10.0.0.1"), learned("10.2.0.0/26", "10.0.0.2")
    ledger = Ledger()
    wanted = {a.key: a, changed.key: changed, missing.key: missing}
    assert ledger.read_back([a, b, c], wanted, {c.key}) == {changed.key, missing.key, c.key}
    assert ledger.inherited == set()
    assert ledger.read_back([a, b, c], {a.key: a}, ()) == set()
    assert ledger.inherited == {b.key, c.key}


def test_a_second_route_of_ours_under_one_key_is_an_extra() -> None:
    other = learned("10.1.0.0/26", "10.0.0.2")
    for told in ([ROUTE, other], [other, ROUTE]):
        ledger = Ledger()
        assert ledger.read_back(told, {ROUTE.key: ROUTE}, ()) == {ROUTE.key}
        assert ledger.have == {ROUTE.key: ROUTE}
        assert ledger.extras == {ROUTE.key: [other]}


KEY = ROUTE.key


def test_failures_back_off_and_are_news_once() -> None:
    troubles = Troubles()
    now, pauses, news = 100.0, [], []
    for _ in range(9):
        news.append(troubles.failed(KEY, "no", now))
        pause = troubles.wait(now)
        assert pause is not None
        pauses.append(pause)
        assert troubles.take_due(now + pause / 2) == []
        now += pause
        assert troubles.take_due(now) == [KEY]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, LONGEST_PAUSE]
    assert news == [True] + [False] * 8
    assert troubles.failed(KEY, "another reason", now)
    troubles.clear(KEY)
    assert troubles.wait(now) is None


def test_a_changed_world_is_worth_a_try_at_once() -> None:
    troubles = Troubles()
    troubles.failed(KEY, "no", 0)
    troubles.retry_now(0.5)
    assert troubles.take_due(0.5) == [KEY]


def test_a_fight_is_conceded_for_the_rest_of_the_window() -> None:
    troubles = Troubles()
    assert [troubles.may_repair(KEY, float(i)) for i in range(FIGHT_LIMIT + 1)] == [True] * FIGHT_LIMIT + [
        False
    ]
    assert troubles.wait(5.0) == FIGHT_WINDOW - 5
    troubles.retry_now(6.0)
    assert troubles.take_due(6.0) == []
    assert troubles.take_due(FIGHT_WINDOW) == [KEY]
    assert troubles.may_repair(KEY, FIGHT_WINDOW + 1)
    assert "another program" in troubles.listed("fight")[0][1]


def test_the_agent_starts_without_pyroute2() -> None:
    """It takes 0.25 s and 26 MB; only whoever writes links pays for it."""
    code = (
        "import sys, agent.sinks.kernel, agent.sinks.nexthops, agent.sinks.links\n"
        "print('pyroute2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
