"""A turn of programming against a small model of the kernel's IPv4 and IPv6 tables."""

from __future__ import annotations

import asyncio
import errno

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.netlink.rtnetlink import NLM_F_EXCL, RTM_NEWROUTE, KernelRoute, messages, parse_route
from agent.netlink.sockets import Failure
from agent.sinks.ownership import Ledger
from agent.sinks.programming import Outcome, Turn
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import PROTO_BGP, KernelNextHop, Route, RouteKey

Entry = tuple[int, str, KernelNextHop | None]
"""Protocol, kind and next hop: what IPv6 keeps one of each."""


class Fib:
    """Records what it is sent and answers as fib_table_insert and fib6_add_rt2node do."""

    def __init__(self) -> None:
        self.ipv4: dict[RouteKey, list[Route]] = {}
        self.ipv6: dict[RouteKey, list[Entry]] = {}
        self.refuse: set[RouteKey] = set()
        self.empty_moments = 0

    async def send(self, octets: bytes, count: int) -> list[Failure]:
        failures = []
        for position, message in enumerate(messages(octets)):
            seen = parse_route(octets, message.start, message.end)
            assert isinstance(seen, KernelRoute)
            route = seen.as_wanted()
            assert route is not None
            apply = self._ipv4 if route.key.prefix.version == 4 else self._ipv6
            before = self.present(route.key)
            number = apply(message.type == RTM_NEWROUTE, bool(message.flags & NLM_F_EXCL), route)
            self.empty_moments += before and not self.present(route.key)
            if number:
                failures.append(Failure(position, number, "refused"))
        assert position + 1 == count
        await asyncio.sleep(0)
        return failures

    def present(self, key: RouteKey) -> bool:
        return bool(self.ipv4.get(key) or self.ipv6.get(key))

    def _ipv4(self, new: bool, exclusive: bool, route: Route) -> int:
        there = self.ipv4.setdefault(route.key, [])
        if not new:
            for entry in there:  # fib_nh_match: the first one whose next hops the list begins with
                if (entry.kind, entry.protocol) == (route.kind, route.protocol) and (
                    entry.next_hops == route.next_hops[: len(entry.next_hops)]
                ):
                    there.remove(entry)
                    return 0
            return errno.ESRCH
        if route.key in self.refuse:
            return errno.ENETUNREACH
        if route in there or (exclusive and there):
            return errno.EEXIST
        there.append(route)
        return 0

    def _ipv6(self, new: bool, exclusive: bool, route: Route) -> int:
        there = self.ipv6.setdefault(route.key, [])
        entries: list[Entry] = [(route.protocol, route.kind, hop) for hop in route.next_hops or (None,)]
        if not new:
            found = [entry for entry in entries if entry in there]
            for entry in found:
                there.remove(entry)
            return 0 if found else errno.ESRCH
        if route.key in self.refuse:
            return errno.ENETUNREACH
        places = [(kind, hop) for _, kind, hop in there]
        if (exclusive and there) or any((kind, hop) in places for _, kind, hop in entries):
            return errno.EEXIST
        there += entries
        return 0

    def told(self) -> dict[RouteKey, Route]:
        """What a dump would say, if all is ours and each key has one route."""
        told = {}
        for key, routes in self.ipv4.items():
            assert len(routes) < 2, routes
            if routes:
                told[key] = routes[0]
        for key, entries in self.ipv6.items():
            if entries:
                assert len({(protocol, kind) for protocol, kind, _ in entries}) == 1, entries
                protocol, kind, _ = entries[0]
                hops = tuple(sorted(hop for _, _, hop in entries if hop is not None))
                told[key] = Route(key, "blackhole" if kind == "blackhole" else "unicast", protocol, hops)
        return told


KEYS = [RouteKey(Prefix.parse(text)) for text in ("10.1.0.0/26", "10.2.0.0/26", "fd01::/64", "fd02::/64")]


def make(key: RouteKey, kind: str, protocol: int, lasts: list[int]) -> Route:
    if kind == "blackhole":
        return Route(key, "blackhole", protocol)
    base = "10.0.0.%d" if key.prefix.version == 4 else "fd00::%d"
    hops = tuple(KernelNextHop(Address.parse(base % last), 3) for last in sorted(lasts))
    return Route(key, "unicast", protocol, hops)


def tables() -> st.SearchStrategy[dict[RouteKey, Route]]:
    hops = st.lists(st.integers(1, 4), min_size=1, max_size=3, unique=True)
    route = st.tuples(st.sampled_from(["unicast", "unicast", "blackhole"]), st.sampled_from([80, 186]), hops)
    chosen = st.dictionaries(st.sampled_from(KEYS), route)
    return chosen.map(lambda told: {key: make(key, *spec) for key, spec in told.items()})


def run(ledger: Ledger, wanted: dict[RouteKey, Route], fib: Fib) -> Outcome:
    return asyncio.run(Turn(ledger, wanted, fib.send).run(set(wanted) | set(ledger.have)))


@settings(max_examples=200, deadline=None)
@given(st.lists(tables(), min_size=1, max_size=4))
def test_the_kernel_follows_from_any_table_to_any_other(story: list[dict[RouteKey, Route]]) -> None:
    ledger, fib = Ledger(), Fib()
    for wanted in story:
        outcome = run(ledger, wanted, fib)
        assert (outcome.failed, outcome.clashes, outcome.shared) == ({}, set(), set())
        assert fib.told() == wanted == ledger.have
        assert run(ledger, wanted, fib).messages == 0


def test_a_changed_route_is_never_absent() -> None:
    ledger, fib = Ledger(), Fib()
    for lasts in ([1], [2], [2, 3], [3], [1, 4]):
        run(ledger, {key: make(key, "unicast", PROTO_BGP, lasts) for key in KEYS}, fib)
    assert fib.empty_moments == 0


def test_a_refused_change_leaves_the_old_route_in_place() -> None:
    ledger, fib = Ledger(), Fib()
    old = {key: make(key, "unicast", PROTO_BGP, [1]) for key in KEYS}
    run(ledger, old, fib)
    fib.refuse = {KEYS[0], KEYS[2]}
    new = {key: make(key, "unicast", PROTO_BGP, [2]) for key in KEYS}
    outcome = run(ledger, new, fib)
    assert outcome.failed == {KEYS[0]: "refused", KEYS[2]: "refused"}
    assert fib.told() == ledger.have == {**new, KEYS[0]: old[KEYS[0]], KEYS[2]: old[KEYS[2]]}


def test_a_foreign_route_under_our_key_is_a_clash_and_stays() -> None:
    fib, foreign = Fib(), make(KEYS[0], "unicast", 4, [9])
    fib.ipv4[KEYS[0]] = [foreign]
    outcome = run(Ledger(), {KEYS[0]: make(KEYS[0], "unicast", PROTO_BGP, [1])}, fib)
    assert outcome.clashes == {KEYS[0]}
    assert fib.ipv4[KEYS[0]] == [foreign]


def test_inherited_routes_are_not_dropped_and_extras_are() -> None:
    ledger, fib = Ledger(), Fib()
    first, second = (make(KEYS[0], "unicast", PROTO_BGP, [last]) for last in (1, 2))
    kept = make(KEYS[1], "unicast", PROTO_BGP, [1])
    fib.ipv4 = {KEYS[0]: [first, second], KEYS[1]: [kept]}
    ledger.read_back([first, second, kept], {KEYS[0]: second}, ())
    run(ledger, {KEYS[0]: second}, fib)
    assert fib.told() == {KEYS[0]: second, KEYS[1]: kept}


def test_a_key_with_two_routes_of_ours_is_looked_up_again() -> None:
    ledger, fib = Ledger(), Fib()
    one, both = make(KEYS[0], "unicast", PROTO_BGP, [1]), make(KEYS[0], "unicast", PROTO_BGP, [1, 2])
    fib.ipv4 = {KEYS[0]: [one, both]}
    ledger.have = {KEYS[0]: both}
    assert run(ledger, {KEYS[0]: one}, fib).clashes == {KEYS[0]}  # the delete of `both` may have hit `one`
    ledger.have, ledger.extras = {KEYS[0]: both}, {KEYS[0]: [one]}
    fib.ipv4 = {KEYS[0]: [one, both]}
    assert run(ledger, {KEYS[0]: both}, fib).clashes == {KEYS[0]}
    assert fib.told() == {KEYS[0]: both}


def test_a_lost_answer_ends_the_turn_with_an_error() -> None:
    async def lost(octets: bytes, count: int) -> list[Failure]:
        raise TimeoutError("no answer")

    try:
        asyncio.run(Turn(Ledger(), {KEYS[0]: make(KEYS[0], "blackhole", 80, [])}, lost).run({KEYS[0]}))
    except OSError as error:
        assert isinstance(error, TimeoutError)  # noqa: PT017
    else:
        raise AssertionError("the error was swallowed")
