"""What is wrong with IPAM's own bookkeeping, and may be put right: empty blocks, stale affinities, handles.

Nothing is touched that has just changed: each finding must be seen again, unchanged (by revision or sequence
number), for as long as `settle` says. What is underway at the moment of a look, a claim between its two
phases or a handle that is counted ahead of its address, looks the same as what was left behind by a crash,
except that it does not last.

Source: kube-controllers/pkg/controllers/node/{ipam,ipam_handle_gc}.go.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from felix_like.calc.garbage import Fate, fate
from felix_like.model.address import Prefix
from felix_like.model.ipam_use import (
    WINDOWS_RESERVED,
    Cluster,
    IpamState,
    StoredAffinity,
    StoredHandle,
    UsedBlock,
)


@dataclass(frozen=True, slots=True)
class EmptyBlock:
    """A node's affinity to an empty block, to be given up; the block goes with it."""

    node: str
    cidr: Prefix
    sequence: int
    word: str
    reason: str

    @property
    def subject(self) -> str:
        return f"IPAM block {self.cidr} of node {self.node}"

    @property
    def signature(self) -> str:
        return f"empty {self.sequence}"


@dataclass(frozen=True, slots=True)
class StaleAffinity:
    """An affinity that no block of the node answers to; to be deleted."""

    affinity: StoredAffinity
    word: str
    reason: str

    @property
    def subject(self) -> str:
        return f"block affinity {self.affinity.cidr} of node {self.affinity.node}"

    @property
    def signature(self) -> str:
        return f"{self.word} {self.affinity.revision}"


@dataclass(frozen=True, slots=True)
class WrongHandle:
    """A handle that does not count what the blocks hold; the blocks are right."""

    name: str
    stored: StoredHandle | None
    counts: Mapping[Prefix, int]
    """What it should say; nothing: it should not be."""
    word: str
    reason: str

    @property
    def subject(self) -> str:
        return f"IPAM handle {self.name}"

    @property
    def signature(self) -> str:
        wanted = ",".join(f"{cidr}={count}" for cidr, count in sorted(self.counts.items()))
        return f"{self.word} {self.stored.revision if self.stored else 0} {wanted}"


Finding = EmptyBlock | StaleAffinity | WrongHandle


@dataclass(frozen=True, slots=True)
class Sight:
    """Since when a finding has been seen as it is."""

    signature: str
    since: float
    times: int


def settled(
    findings: Iterable[Finding], seen: Mapping[str, Sight], *, now: float, settle: float
) -> tuple[tuple[Finding, ...], dict[str, Sight]]:
    """The findings that have lasted, and what the next look wants as `seen`."""
    ripe: list[Finding] = []
    sights: dict[str, Sight] = {}
    for finding in findings:
        before = seen.get(finding.subject)
        if before is not None and before.signature == finding.signature:
            sight = Sight(before.signature, before.since, before.times + 1)
        else:
            sight = Sight(finding.signature, now, 1)
        sights[finding.subject] = sight
        if sight.times > 1 and now - sight.since >= settle:
            ripe.append(finding)
    return tuple(ripe), sights


def idle_blocks(state: IpamState, *, claimed_before: str) -> tuple[EmptyBlock, ...]:
    """Empty blocks of nodes that have more than one of the IP version; each keeps at least one.

    `claimed_before` is RFC 3339 in UTC: what was claimed later is wanted at the moment.
    """
    by_owner: defaultdict[tuple[str, int], list[UsedBlock]] = defaultdict(list)
    for block in state.blocks:
        if block.owner is not None:
            by_owner[block.owner, block.cidr.version].append(block)
    found = []
    for (owner, _), blocks in sorted(by_owner.items()):
        empty = sorted((b for b in blocks if not b.allocations), key=lambda block: block.cidr)
        if len(empty) == len(blocks):
            empty = empty[1:]
        found += [
            EmptyBlock(
                owner, block.cidr, block.sequence, "idle", f"it is empty, and {owner} has other blocks"
            )
            for block in empty
            if not block.claimed_at or block.claimed_at[:19] < claimed_before[:19]
        ]
    return tuple(found)


def orphaned_blocks(state: IpamState, cluster: Cluster | None) -> tuple[EmptyBlock, ...]:
    """Empty blocks of nodes that are gone: the last one, too."""
    found = []
    for block in state.blocks:
        if block.owner is None or block.allocations:
            continue
        end, sentence = fate(block.owner, state, cluster)
        if end is Fate.GONE:
            found.append(EmptyBlock(block.owner, block.cidr, block.sequence, "node-gone", sentence))
    return tuple(found)


def stale_affinities(state: IpamState) -> tuple[StaleAffinity, ...]:
    """Affinities without a block, or to a block that another node has."""
    owners = {block.cidr: block.owner for block in state.blocks}
    found = []
    for affinity in state.affinities:
        if affinity.cidr in state.unreadable_blocks:
            continue
        if affinity.cidr not in owners:
            found.append(StaleAffinity(affinity, "no-block", f"there is no block {affinity.cidr}"))
        elif owners[affinity.cidr] != affinity.node:
            owner = owners[affinity.cidr]
            held = f"is node {owner}'s" if owner else "has no owner"
            found.append(StaleAffinity(affinity, "other-owner", f"the block {affinity.cidr} {held}"))
    return tuple(found)


def wrong_handles(state: IpamState) -> tuple[WrongHandle, ...]:
    """Handles that count too much or too little, or are missing. Those of damaged blocks are not judged."""
    wanted = _counted(state)
    stored = {h.name: h for h in state.handles if h.name.lower() != WINDOWS_RESERVED}
    found = []
    for name in sorted({*wanted, *stored}):
        handle, counts = stored.get(name), wanted.get(name, {})
        if handle is None:
            if not state.unreadable_blocks:
                found.append(
                    WrongHandle(name, None, counts, "missing", f"it is not there, but {_sum(counts)}")
                )
        elif any(cidr in state.unreadable_blocks for cidr in handle.counts):
            continue
        elif not counts:
            found.append(WrongHandle(name, handle, counts, "orphan", "no block has an address under it"))
        elif dict(handle.counts) != counts or handle.deleted:
            says = "is marked as deleted" if handle.deleted else f"counts {sum(handle.counts.values())}"
            found.append(WrongHandle(name, handle, counts, "miscounted", f"it {says}, but {_sum(counts)}"))
    return tuple(found)


def _counted(state: IpamState) -> Mapping[str, dict[Prefix, int]]:
    """What each handle should say. What Windows reserves is in its blocks, and in no handle."""
    wanted: defaultdict[str, dict[Prefix, int]] = defaultdict(dict)
    for block in state.blocks:
        for allocation in block.allocations:
            handle = allocation.handle
            if handle and handle.lower() != WINDOWS_RESERVED and not allocation.cooling:
                counts = wanted[handle]
                counts[block.cidr] = counts.get(block.cidr, 0) + 1
    return wanted


def _sum(counts: Mapping[Prefix, int]) -> str:
    return f"blocks have {sum(counts.values())} address(es) under it"
