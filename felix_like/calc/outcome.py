"""What the calculation hands to the sinks, and what it answers to those who ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from felix_like.model.address import Address, Prefix
from felix_like.model.desired import Desired, Route, RouteKey
from felix_like.model.path import Attributes, Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What changed since it was last taken."""

    desired: Desired | None = None
    """None: as before, or nothing is known yet."""
    fib: Mapping[RouteKey, Route | None] = field(default_factory=dict)
    """Kernel routes to put, blackholes included; None: no longer wanted."""
    adverts: Mapping[Address, Mapping[Prefix, Attributes | None]] = field(default_factory=dict)
    """Adj-RIB-Out changes per peer, as they go on the wire; None: withdraw."""
    resolve: frozenset[Address] = frozenset()
    """Next hops in use of which nobody has said where they lead."""
    authoritative: bool = False
    """The datastore was in sync (and not locked) at least once, and Kubernetes was heard where podCIDRs come
    from there: what is not wanted may be dropped."""
    awaiting: frozenset[Address] = frozenset()
    """Peers that may still announce what they announced before: inherited routes wait for them."""
    restarting: frozenset[Address] = frozenset()
    """Of those, the ones that have just begun, too, and may be waiting for us."""
    holding: str = ""
    """Why it is not yet known what this node advertises, so that nothing which the speaker advertised before
    our start may be dropped; empty: it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathView:
    """One path of a prefix and what became of it."""

    path: Path
    """With its stale mark filled in."""
    best: bool
    """The one that is advertised."""
    used: bool
    """Part of the route: the best or one equal to it (ECMP)."""
    step: str
    """Why it is not the best: the decision step, or what keeps it out of the decision. Empty: it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCounts:
    """Prefixes, per peer."""

    received: int = 0
    accepted: int = 0
    rejected: int = 0
    """Refused by import policy, or invalid while validation is enforced."""
    stale: int = 0
    advertised: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RibCounts:
    prefixes: int = 0
    paths: int = 0
    valid: int = 0
    invalid: int = 0
    unknown: int = 0
