"""Loc-RIB: per prefix the paths in use, decided again only where something changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from felix_like.model.address import Address, Prefix
from felix_like.model.desired import KernelNextHop, NextHopState, Resolved
from felix_like.model.path import Path
from felix_like.rib.decision import MAX_NEXT_HOPS, Candidate, Decision, decide
from felix_like.rib.import_policy import Source
from felix_like.rib.paths import Paths
from felix_like.rib.session import dotted


class LocRib:
    """The outcome of the decision process. `selected[prefix][0]` is the best path, the rest its ECMP."""

    __slots__ = ("_paths", "_source", "next_hops", "selected")

    def __init__(self, paths: Paths, source: Callable[[Address], Source]) -> None:
        self._paths = paths
        self._source = source
        self.selected: dict[Prefix, tuple[Path, ...]] = {}
        self.next_hops: dict[Address, NextHopState] = {}
        """What the kernel's side has said of each next hop."""

    def update(self, prefix: Prefix) -> tuple[Path, ...]:
        """Decide a prefix again; returns what is selected now (nothing: empty)."""
        selected = self._select(self._paths.by_prefix.get(prefix, ()))
        if selected:
            self.selected[prefix] = selected
        else:
            self.selected.pop(prefix, None)
        return selected

    def _select(self, paths: tuple[Path, ...]) -> tuple[Path, ...]:
        if len(paths) == 1:  # the common case: nothing to compare
            path = paths[0]
            resolved = self.next_hops.get(path.attributes.next_hop).__class__ is Resolved
            return paths if resolved and self._paths.accepts(path) else ()
        decision = self.decision(paths)
        return decision.multipath if decision is not None else ()

    def decision(self, paths: tuple[Path, ...]) -> Decision | None:
        """The decision process over the paths that may take part; None when none may."""
        candidates = [
            self._candidate(path, state)
            for path in paths
            if self._paths.accepts(path)
            and isinstance(state := self.next_hops.get(path.attributes.next_hop), Resolved)
        ]
        return decide(candidates) if candidates else None

    def _candidate(self, path: Path, state: Resolved) -> Candidate:
        source = self._source(path.peer)
        router_id = dotted(source.session.router_id) if source.session is not None else 0
        direct = all(hop.gateway is None or hop.gateway == path.attributes.next_hop for hop in state.via)
        return Candidate(path, source.is_ebgp, router_id, 0 if direct else 1)

    def obstacle(self, path: Path) -> str | None:
        """Why a path does not even take part in the decision; None when it does."""
        if path.rejection is not None:
            return path.rejection
        if not self._paths.accepts(path):
            return f"origin validation: {path.origin.validity}: {path.origin.reason}"
        state = self.next_hops.get(path.attributes.next_hop)
        if state is None:
            return f"its next hop {path.attributes.next_hop} is not resolved yet"
        if not isinstance(state, Resolved):
            return f"its next hop {path.attributes.next_hop} cannot be reached: {state.reason}"
        return None


def kernel_next_hops(
    selected: tuple[Path, ...], states: Mapping[Address, NextHopState]
) -> tuple[KernelNextHop, ...]:
    """The union of what the paths' next hops resolve to: sorted, at most 64 (ECMP's width)."""
    found: set[KernelNextHop] = set()
    for path in selected:
        state = states.get(path.attributes.next_hop)
        if isinstance(state, Resolved):
            found.update(state.via)
    return tuple(sorted(found, key=_order)[:MAX_NEXT_HOPS])


def _order(hop: KernelNextHop) -> tuple[bytes, int, bool]:
    return (hop.gateway or b"", hop.ifindex, hop.onlink)
