"""What `tortiectl ipam check` says: everything about IPAM that is not as it should be, or may not be.

The judgements are garbage collection's own; what only time can tell is called a candidate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from felix_like.calc import garbage, upkeep
from felix_like.calc.garbage import Judged, Standing
from felix_like.model.address import Prefix
from felix_like.model.ipam_use import Cluster, IpamState


class Kind(StrEnum):
    """From what harms now to what only costs room."""

    DAMAGED = "damaged"
    NOT_ALLOCATED = "not allocated"
    """In use, but IPAM may give it to somebody else."""
    LEAKED = "leaked"
    CANDIDATE = "leak candidate"
    HELD = "held"
    WRONG_HANDLE = "wrong handle"
    STALE_AFFINITY = "stale affinity"
    NO_AFFINITY = "no affinity"
    NO_POOL = "no pool"
    IDLE = "empty block"


@dataclass(frozen=True, slots=True)
class Problem:
    kind: Kind
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    problems: tuple[Problem, ...]
    judged: tuple[Judged, ...]
    """Every address, with what it is."""


_OF = {Standing.LEAKED: Kind.LEAKED, Standing.CANDIDATE: Kind.CANDIDATE, Standing.HELD: Kind.HELD}


def report(
    state: IpamState, pools: Sequence[Prefix], cluster: Cluster | None, *, grace: float, claimed_before: str
) -> Report:
    """One look. `pools`: the CIDRs of all IP pools; `grace` in seconds; `claimed_before` as in `upkeep`."""
    judged = garbage.judge(state, cluster, since={}, now=0.0, grace=grace)
    found = [Problem(Kind.DAMAGED, subject, reason) for subject, reason in state.damaged.items()]
    found += _not_allocated(state, pools)
    found += [Problem(_OF[one.standing], _subject(one), one.reason) for one in judged if one.standing in _OF]
    handles, affinities = upkeep.wrong_handles(state), upkeep.stale_affinities(state)
    found += [Problem(Kind.WRONG_HANDLE, one.subject, one.reason) for one in handles]
    found += [Problem(Kind.STALE_AFFINITY, one.subject, one.reason) for one in affinities]
    found += _no_affinity(state)
    found += [
        Problem(Kind.NO_POOL, f"IPAM block {block.cidr}", "no IP pool covers it")
        for block in state.blocks
        if not any(pool.covers(block.cidr) for pool in pools)
    ]
    orphaned = upkeep.orphaned_blocks(state, cluster)
    named = {one.subject for one in orphaned}
    idle = [b for b in upkeep.idle_blocks(state, claimed_before=claimed_before) if b.subject not in named]
    found += [Problem(Kind.IDLE, one.subject, one.reason) for one in (*orphaned, *idle)]
    order = list(Kind)
    return Report(tuple(sorted(found, key=lambda one: (order.index(one.kind), one.subject))), judged)


def _subject(one: Judged) -> str:
    return f"{one.allocation.subject} (handle {one.allocation.handle}, node {one.allocation.node})"


def _not_allocated(state: IpamState, pools: Iterable[Prefix]) -> list[Problem]:
    """Endpoints' addresses from pools that no block has given out. A damaged block may have."""
    taken = {one.address for block in state.blocks for one in block.allocations if not one.cooling}
    pools = tuple(pools)
    return [
        Problem(
            Kind.NOT_ALLOCATED,
            f"address {address}",
            f"{endpoint.subject} has it, but IPAM does not know: it may be given to another",
        )
        for address, endpoint in state.endpoints.items()
        if address not in taken
        and any(pool.contains(address) for pool in pools)
        and not any(dark.contains(address) for dark in state.unreadable_blocks)
    ]


def _no_affinity(state: IpamState) -> list[Problem]:
    known = {(affinity.node, affinity.cidr) for affinity in state.affinities}
    return [
        Problem(
            Kind.NO_AFFINITY,
            f"IPAM block {block.cidr}",
            f"it is node {block.owner}'s, which has no affinity to it: its next claim puts that right",
        )
        for block in state.blocks
        if block.owner is not None and (block.owner, block.cidr) not in known
    ]
