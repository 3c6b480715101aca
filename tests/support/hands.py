"""Recording stand-ins for what the calculation hands its outcomes to, and a clock that is told the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.calculation import Calculation
from felix_like.calc.graph import CalcGraph
from felix_like.calc.snapshot import Change
from felix_like.model.address import Address, Prefix
from felix_like.model.desired import (
    KernelNextHop,
    LocalNode,
    NextHopState,
    Resolved,
    Route,
    RouteKey,
    Unresolved,
)
from felix_like.model.path import Attributes
from tests.support.stories import key_of


class Hands:
    """Kernel, speaker and next hop resolver in one; `calls` is what was handed on, in order."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls: list[tuple[str, Any]] = []
        self.asked: list[frozenset[Address]] = []
        self.watched: set[Address] = set()
        self.forgotten: list[frozenset[Address]] = []
        self.unreachable: set[Address] = set()

    def clock(self) -> float:
        return self.now

    def names(self) -> list[str]:
        """The calls' names, and forget them."""
        names = [name for name, _ in self.calls]
        self.calls.clear()
        return names

    def last(self, name: str) -> Any:
        return [what for called, what in self.calls if called == name][-1]

    # The kernel

    def want(self, changes: Mapping[RouteKey, Route | None]) -> None:
        self.calls.append(("want", {str(key.prefix): route for key, route in changes.items()}))

    def allow_sweep(
        self, authoritative: bool, awaiting: frozenset[Address], peers: frozenset[Address]
    ) -> None:
        self.calls.append(("allow_sweep", (authoritative, awaiting, peers)))

    # The speaker

    def advertise(self, changes: Mapping[Address, Mapping[Prefix, Attributes | None]]) -> None:
        told = {str(peer): sorted(map(str, table)) for peer, table in changes.items()}
        self.calls.append(("advertise", told))

    def full_sync_done(self) -> None:
        self.calls.append(("full_sync_done", None))

    def limits(self, peers: Mapping[Address, int], default: int | None = None) -> None:
        self.calls.append(("limits", (dict(peers), default)))

    # The next hops

    def ask(self, addresses: Iterable[Address]) -> Mapping[Address, NextHopState]:
        asked = frozenset(addresses)
        self.asked.append(asked)
        self.watched |= asked
        return {
            address: Unresolved("no route to it")
            if address in self.unreachable
            else Resolved((KernelNextHop(address, 2),))
            for address in asked
        }

    def forget(self, addresses: Iterable[Address]) -> None:
        self.forgotten.append(frozenset(addresses))
        self.watched -= self.forgotten[-1]


def calculation(hands: Hands, node: str = "a", *, kubernetes: bool = False, **settings: Any) -> Calculation:
    """A real graph between recording hands."""
    return Calculation(
        CalcGraph(LocalNode(name=node, **settings), kubernetes=kubernetes),
        clock=hands.clock,
        kernel=hands,
        speaker=hands,
        next_hops=hands,
    )


def changes(*values: Any, revision: int = 1) -> list[Change]:
    """Datastore changes that bring these values, lists of values taken apart."""
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, list) else [value])
    return [Change(key_of(value), value, revision) for value in flat]
