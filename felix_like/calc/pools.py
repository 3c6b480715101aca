"""The IP pools that count, and in which of them a prefix lies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from felix_like.calc.cluster import quoted, usable_name
from felix_like.model.address import IpVersion, Prefix
from felix_like.model.ippool import IPPool
from felix_like.model.verdict import No, Refusal, Yes

BLOCK_SIZES: dict[IpVersion, range] = {4: range(20, 33), 6: range(116, 129)}
"""Prefix lengths Calico allows for blocks (api/pkg/apis/projectcalico/v3/ippool.go)."""


NO_TUNNELS = (
    "its ipipMode or vxlanMode has no effect: packets are routed without a tunnel, which needs a network "
    "between the nodes that lets pods' addresses pass. Set both to Never to say that it does"
)


@dataclass(frozen=True, slots=True)
class Pools:
    """Pools that do not overlap, and why the others were left out. Make it with `pools`."""

    accepted: tuple[IPPool, ...]
    """Sorted by family and CIDR."""
    overlapping: tuple[IPPool, ...]
    """Left out because they overlap an accepted one."""
    refusals: tuple[Refusal, ...]

    def covering(self, prefix: Prefix) -> IPPool | None:
        """The pool that a prefix lies in."""
        for pool in self.accepted:
            if pool.cidr.covers(prefix):
                return pool
        return None

    def unexported(self, prefix: Prefix) -> IPPool | None:
        """The pool that keeps a prefix in the cluster with disableBGPExport.

        A pool left out for its overlap still counts here: to leave a pool out must not publish it.
        """
        for pool in (*self.accepted, *self.overlapping):
            if pool.disable_bgp_export and pool.cidr.covers(prefix):
                return pool
        return None


def usable_pool(pool: IPPool) -> Yes | No:
    """Does the pool make sense on its own?"""
    name = usable_name(pool.name)
    if isinstance(name, No):
        return name
    sizes = BLOCK_SIZES[pool.cidr.version]
    if pool.block_size not in sizes:
        return No(f"blockSize {pool.block_size} is not from {sizes[0]} to {sizes[-1]}; it is left out")
    if pool.block_size < pool.cidr.length:
        return No(f"its blocks of /{pool.block_size} are wider than its CIDR {pool.cidr}; it is left out")
    return Yes()


def pools(every: Iterable[IPPool]) -> Pools:
    """Choose the pools that count.

    Where pools overlap the wider one stays, so that no block falls outside every pool; of two with one CIDR
    the one whose name sorts first. Calico refuses overlapping pools at creation, so there is no rule of its
    own to follow; this one does not depend on the order in which they were written.
    """
    accepted: list[IPPool] = []
    overlapping: list[IPPool] = []
    refusals: list[Refusal] = []
    for pool in sorted(every, key=lambda pool: (pool.cidr.length, pool.name)):
        subject = f"IPPool {quoted(pool.name)}"
        usable = usable_pool(pool)
        if isinstance(usable, No):
            refusals.append(Refusal(subject, usable.reason))
            continue
        winner = next((other for other in accepted if other.cidr.overlaps(pool.cidr)), None)
        if winner is None:
            accepted.append(pool)
            if (pool.ipip_mode, pool.vxlan_mode) != ("Never", "Never"):
                refusals.append(Refusal(subject, NO_TUNNELS))
            continue
        overlapping.append(pool)
        refusals.append(
            Refusal(
                subject,
                f"its CIDR {pool.cidr} overlaps IPPool {winner.name} ({winner.cidr}), which counts instead. "
                "Delete one of them",
            )
        )
    accepted.sort(key=lambda pool: (pool.cidr.version, pool.cidr))
    return Pools(tuple(accepted), tuple(overlapping), tuple(refusals))
