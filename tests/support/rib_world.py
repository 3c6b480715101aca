"""A world that plays stories on the whole calc graph: datastore, sessions, paths, next hops.

Facts of a scene: `told` (peer address -> {prefix: next hop or Attributes}), what each peer announces, its
session being up while it is named; `unreachable` (next hops). Expected: `fib` (prefix -> "via …" or
"blackhole"), and where named `verdicts` ("peer prefix" -> validity or why it is refused) and `adverts`
(peer -> set of prefixes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from felix_like.calc.graph import CalcGraph, OriginMode, Session
from felix_like.calc.snapshot import Change
from felix_like.model.address import Address, Asn, Prefix
from felix_like.model.desired import KernelNextHop, LocalNode, NextHopState, Resolved, Unresolved
from felix_like.model.path import Attributes
from tests.support.stories import Scene

IFINDEX = 2


def ip(text: str) -> Address:
    return Address.parse(text)


def net(text: str) -> Prefix:
    return Prefix.parse(text)


def path(next_hop: str, *asns: int, **more: Any) -> Attributes:
    as_path: Any = (("sequence", tuple(Asn(a) for a in asns)),) if asns else ()
    return Attributes(next_hop=ip(next_hop), as_path=as_path, **more)


def session(peer: str, **more: Any) -> Session:
    """A session of the peer's family with graceful restart of 90 s, F bit set."""
    version: Any = 6 if ":" in peer else 4
    more.setdefault("router_id", peer if version == 4 else "9.9.9.9")
    more.setdefault("restart_time", 90)
    more.setdefault("graceful", frozenset({version}))
    more.setdefault("forwarding", frozenset({version}))
    return Session(asn=Asn(more.pop("asn", 64512)), families=(version,), **more)


def direct(address: Address) -> Resolved:
    return Resolved((KernelNextHop(address, IFINDEX),))


class Driver:
    """A graph with a kernel that resolves every next hop as on-link, and a memory of what it was given."""

    def __init__(
        self,
        node: str = "a",
        mode: OriginMode = OriginMode.ENFORCE,
        *,
        kubernetes: bool = False,
        **settings: Any,
    ) -> None:
        local = LocalNode(name=node, **settings)
        self.graph = CalcGraph(local, origin_validation=mode, kubernetes=kubernetes)
        self.unreachable: set[str] = set()
        self.installed: dict[Any, Any] = {}
        self.told: dict[Address, dict[Prefix, Attributes]] = {}
        self.outcome = self.graph.take()

    def settle(self) -> Driver:
        """Take until nothing is left to resolve; apply every change to what was there, as sinks do."""
        for _ in range(3):
            self.outcome = self.graph.take()
            for key, route in self.outcome.fib.items():
                if route is None:
                    del self.installed[key]  # a drop of what was never put is a fault
                else:
                    assert self.installed.get(key) != route, "a change that changes nothing"
                    self.installed[key] = route
            for peer, changes in self.outcome.adverts.items():
                told = self.told.setdefault(peer, {})
                for prefix, attributes in changes.items():
                    if attributes is None:
                        del told[prefix]
                    else:
                        told[prefix] = attributes
            if not self.outcome.resolve:
                break
            self.graph.on_next_hops({a: self.resolve(a) for a in self.outcome.resolve})
        assert self.installed == self.graph.fib()
        assert {p: t for p, t in self.told.items() if t} == {
            p: t for p in self.told if (t := self.graph.adverts(p))
        }
        return self

    def resolve(self, address: Address) -> NextHopState:
        if str(address) in self.unreachable:
            return Unresolved("no route to it")
        return direct(address)

    def fib(self) -> dict[str, str]:
        return {str(key.prefix): _words(route) for key, route in self.installed.items()}

    def adverts(self) -> dict[str, set[str]]:
        return {str(peer): {str(p) for p in told} for peer, told in self.told.items() if told}

    def verdicts(self) -> dict[str, str]:
        found = {}
        for prefix in self.graph.prefixes():
            for view in self.graph.paths(prefix):
                path = view.path
                found[f"{path.peer} {prefix}"] = path.rejection or str(path.origin.validity)
        return found


def _words(route: Any) -> str:
    if route.kind == "blackhole":
        return "blackhole"
    return "via " + " ".join(str(hop.gateway) for hop in route.next_hops)


class RibWorld:
    """Plays scenes; BGP is told before the datastore, or after it (`bgp_first=False`)."""

    def __init__(self, *, bgp_first: bool = True, mode: OriginMode = OriginMode.ENFORCE) -> None:
        self.driver = Driver(mode=mode)
        self.mode = mode
        self._bgp_first = bgp_first
        self._told: dict[str, dict[str, Attributes]] = {}

    def enter(self, scene: Scene) -> None:
        if self._bgp_first:
            self._announce(scene)

    def tell(self, changes: list[Change]) -> None:
        self.driver.graph.on_datastore(changes, True)
        self.driver.settle()

    def _announce(self, scene: Scene) -> None:
        wanted = announced(scene.facts.get("told", {}))
        graph = self.driver.graph
        for peer in self._told.keys() - wanted.keys():
            graph.on_peer_down(ip(peer), 0.0, graceful=False)
        for peer, paths in wanted.items():
            before = self._told.get(peer)
            if before is None:
                graph.on_peer_up(ip(peer), session(peer), 0.0)
                before = {}
            for prefix in before.keys() - paths.keys():
                graph.on_withdrawn(ip(peer), [net(prefix)])
            for prefix, attributes in paths.items():
                if before.get(prefix) != attributes:
                    graph.on_learned(ip(peer), attributes, [net(prefix)])
        self._told = wanted
        self.driver.settle()

    def check(self, scene: Scene) -> None:
        if not self._bgp_first:
            self._announce(scene)
        self.driver.settle()
        fresh = RibWorld(bgp_first=not self._bgp_first, mode=self.mode)
        fresh.enter(scene)
        fresh.tell([Change(key, value, 1) for key, value in scene.state.items()])
        if not fresh._bgp_first:
            fresh._announce(scene)
        for ask in ("fib", "adverts", "verdicts"):
            got = getattr(self.driver, ask)()
            assert got == getattr(fresh.driver, ask)(), f"{ask} depends on history"
            if ask == "fib" or ask in scene.facts:
                assert got == scene.facts.get(ask, {})


def announced(told: Mapping[str, Mapping[str, str | Attributes]]) -> dict[str, dict[str, Attributes]]:
    return {
        peer: {prefix: path(a) if isinstance(a, str) else a for prefix, a in paths.items()}
        for peer, paths in told.items()
    }


def unrevised(driver: Driver) -> tuple[Any, ...]:
    """Everything that must not depend on how it came about."""
    desired = driver.graph.desired
    return (
        driver.fib(),
        {peer: told for peer, told in driver.told.items() if told},
        driver.verdicts(),
        replace(desired, revision=0) if desired is not None else None,
    )
