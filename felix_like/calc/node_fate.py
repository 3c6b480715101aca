"""Which Calico Nodes may be removed because their Kubernetes Nodes are gone, and what holds that up.

A wrong removal takes a node's addresses away while its pods run, so an API server that has lost its data must
not be believed. A Node is removed when it has been missing for a while, and never while the list is empty, or
while more than a share of all is missing, or for some time after that: kubelets come back one by one.

Time is an argument, in seconds of any clock that does not jump.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

PATIENCE = 60.0
"""Seconds that a Kubernetes Node must be missing."""
HOLD = 600.0
"""Seconds without any removal after too many were missing at once."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What one look hands to the next."""

    since: Mapping[str, float] = field(default_factory=dict)
    """Calico Node -> when its Kubernetes Node was first seen missing."""
    held_until: float = 0.0


@dataclass(frozen=True, slots=True)
class Removal:
    nodes: tuple[str, ...]
    """Calico Nodes to be removed now."""
    held: str
    """Why others, or all, are not; empty: nothing is held."""
    missing: Missing
    again_at: float | None
    """When to look again, if nothing else happens."""


def removable(
    expected: Mapping[str, str],
    listed: AbstractSet[str],
    before: Missing,
    *,
    now: float,
    most: int,
    patience: float = PATIENCE,
    hold: float = HOLD,
) -> Removal:
    """`expected`: Calico Nodes and the Kubernetes Node each stands for; `listed`: what Kubernetes has.

    `most`: percent of the expected ones that may be missing at once; one always may.
    """
    missing = {name: before.since.get(name, now) for name, node in expected.items() if node not in listed}
    if not missing:
        return Removal((), "", Missing({}, before.held_until), None)
    if not listed:
        reason = "the Kubernetes API lists no Node at all, which is not believed: no Calico Node is removed"
        return Removal((), reason, Missing(missing, now + hold), now + patience)
    if len(missing) > 1 and len(missing) * 100 > most * len(expected):
        reason = (
            f"{len(missing)} of {len(expected)} Nodes are missing in Kubernetes, more than {most} %: none is"
            " removed. If they are gone for good, delete them with `calicoctl delete node`, or raise"
            " TORTIE_NODE_REMOVAL_LIMIT"
        )
        return Removal((), reason, Missing(missing, now + hold), now + patience)
    if now < before.held_until:
        reason = (
            f"too many Nodes were missing a while ago: none is removed for {before.held_until - now:.0f} s"
        )
        return Removal((), reason, Missing(missing, before.held_until), before.held_until)
    ripe = tuple(sorted(name for name, since in missing.items() if now - since >= patience))
    waiting = [since + patience for name, since in missing.items() if name not in ripe]
    return Removal(ripe, "", Missing(missing, before.held_until), min(waiting, default=None))
