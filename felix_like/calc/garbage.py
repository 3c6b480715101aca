"""Which addresses nobody uses any more: leaks, by Calico's rules, each with the reason.

An allocation counts as in use until the opposite is known. One whose pod is gone, or has another address,
is a candidate; it is a confirmed leak when it has been one for the whole grace, or at once when its node is
gone as well. Of one handle, all addresses are leaks, or none is released.

Source: kube-controllers/pkg/controllers/node/ipam.go; design/ipam/ipam-gc.md. Time is an argument, in seconds
of any clock that does not jump.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from felix_like.model.ipam_use import WINDOWS_RESERVED, Allocation, Cluster, IpamState, PodUse

LeakId = tuple[str, str, int | None]
"""Handle, address, sequence number: the same address given out anew is another."""


class Standing(StrEnum):
    IN_USE = "in use"
    LEFT_ALONE = "left alone"
    """Not garbage collection's to judge, or not now."""
    CANDIDATE = "candidate"
    LEAKED = "leaked"
    HELD = "held"
    """A leak whose handle has an address that is none."""


class Word(StrEnum):
    """A reason in a word, for counting."""

    POD_GONE = "pod-gone"
    POD_MOVED = "pod-moved"
    POD_FINISHED = "pod-finished"
    OTHER_ADDRESS = "pod-has-other-address"
    NODE_GONE = "node-gone"


@dataclass(frozen=True, slots=True)
class Unused:
    """Nobody uses it, for this reason."""

    word: Word
    reason: str


@dataclass(frozen=True, slots=True)
class Kept:
    """It is in use, or left alone."""

    standing: Standing
    reason: str


@dataclass(frozen=True, slots=True)
class Judged:
    """An allocation, what it is, and why."""

    allocation: Allocation
    standing: Standing
    reason: str
    word: Word | None = None
    since: float | None = None
    """When it was first seen unused."""


@dataclass(frozen=True, slots=True)
class Leak:
    """All of a handle's addresses, to be released together."""

    handle: str
    members: tuple[Judged, ...]


class Fate(StrEnum):
    """Of a node that IPAM names."""

    ALIVE = "alive"
    GONE = "gone"
    FOREIGN = "foreign"
    """A Calico Node that is not Kubernetes'."""
    UNKNOWN = "unknown"


def fate(node: str, state: IpamState, cluster: Cluster | None) -> tuple[Fate, str]:
    """With a sentence. Gone is a node that neither etcd nor Kubernetes knows.

    A Calico Node whose Kubernetes Node is gone still counts as alive here: removing it is the node
    controller's decision, with its own brakes.
    """
    if node in state.nodes:
        if state.nodes[node] is None:
            return Fate.FOREIGN, f"Node {node} is not Kubernetes'"
        return Fate.ALIVE, f"Node {node} exists"
    if cluster is None:
        return Fate.UNKNOWN, "there is no Kubernetes API to ask about its node"
    if not cluster.nodes:
        return Fate.UNKNOWN, "the Kubernetes API lists no node at all, which is not believed"
    if node in cluster.nodes:
        return Fate.ALIVE, f"Kubernetes Node {node} exists"
    return Fate.GONE, f"neither Calico nor Kubernetes has a Node {node}"


def use(allocation: Allocation, state: IpamState, cluster: Cluster | None) -> Kept | Unused:
    """Whether somebody uses an address, tunnel addresses apart."""
    alone = _not_ours(allocation)
    if alone:
        return Kept(Standing.LEFT_ALONE, alone)
    end, sentence = fate(allocation.node, state, cluster)
    if end is Fate.FOREIGN:
        return Kept(Standing.LEFT_ALONE, sentence)
    if allocation.is_tunnel:
        return _tunnel_use(end, sentence)
    endpoint = state.endpoints.get(allocation.address)
    pod_name = f"pod {allocation.namespace}/{allocation.pod}"
    if cluster is None:
        if endpoint is not None:
            return Kept(Standing.IN_USE, f"{endpoint.subject} has it")
        return Kept(Standing.LEFT_ALONE, f"there is no Kubernetes API to ask about {pod_name}")
    if end is Fate.UNKNOWN:
        return Kept(Standing.LEFT_ALONE, sentence)
    if not cluster.pods:
        return Kept(Standing.LEFT_ALONE, "the Kubernetes API lists no pod at all, which is not believed")
    found = pod_use(
        allocation,
        cluster.pods.get((allocation.namespace, allocation.pod)),
        state.nodes.get(allocation.node),
    )
    if isinstance(found, Unused) and endpoint is not None:
        return Kept(
            Standing.IN_USE,
            f"{endpoint.subject} has it, though {found.reason}: delete that endpoint if it is a leftover",
        )
    return found


def _not_ours(allocation: Allocation) -> str:
    """Why it is none of garbage collection's business; empty when it is."""
    if allocation.cooling:
        return "it has been released and cools down; Calico's IPAM gives it free"
    if not allocation.handle:
        return "it has no handle: whoever took it releases it"
    if allocation.handle.lower() == WINDOWS_RESERVED:
        return "it is reserved for Windows, as long as the block is"
    if allocation.machine:
        return "it belongs to a virtual machine, which may outlive its pod"
    if not allocation.is_tunnel and not (allocation.namespace and allocation.pod):
        return "its attributes name no pod: whoever took it releases it"
    if not allocation.node:
        return "its attributes name no node"
    return ""


def _tunnel_use(end: Fate, sentence: str) -> Kept | Unused:
    if end is Fate.GONE:
        return Unused(Word.NODE_GONE, sentence)
    standing = Standing.IN_USE if end is Fate.ALIVE else Standing.LEFT_ALONE
    return Kept(standing, f"a tunnel address: {sentence}")


def pod_use(allocation: Allocation, pod: PodUse | None, kube_node: str | None) -> Kept | Unused:
    """Whether the pod that an allocation names has the address. `kube_node`: where it should run."""
    name = f"pod {allocation.namespace}/{allocation.pod}"
    if pod is None:
        return Unused(Word.POD_GONE, f"{name} does not exist")
    if pod.finished:
        return Unused(Word.POD_FINISHED, f"{name} has ended ({pod.finished})")
    if allocation.address in pod.addresses:
        # Before the node: where that is the wrong one of two, it is our idea of the Node's name that is old.
        return Kept(Standing.IN_USE, f"{name} has it")
    if pod.node and kube_node and pod.node != kube_node:
        return Unused(Word.POD_MOVED, f"{name} runs on {pod.node} now, not on {kube_node}")
    if not pod.addresses:
        return Kept(Standing.IN_USE, f"{name} has not told its address yet")
    others = ", ".join(sorted(map(str, pod.addresses))[:4])
    return Unused(Word.OTHER_ADDRESS, f"{name} has {others} instead")


def leak_id(allocation: Allocation) -> LeakId:
    return allocation.handle, str(allocation.address), allocation.sequence


def judge(
    state: IpamState,
    cluster: Cluster | None,
    *,
    since: Mapping[LeakId, float],
    now: float,
    grace: float,
) -> tuple[Judged, ...]:
    """Every allocation. `since`: when each was first seen unused, as the last judgement said.

    `grace` is in seconds; 0 turns collection off: candidates are named and never confirmed.
    """
    judged: list[Judged] = []
    tunnels: list[Allocation] = []
    busy: set[str] = set()
    for block in state.blocks:
        for allocation in block.allocations:
            verdict = use(allocation, state, cluster)
            if isinstance(verdict, Unused) and allocation.is_tunnel:
                tunnels.append(allocation)
            elif isinstance(verdict, Kept):
                busy.add(allocation.node)
                judged.append(Judged(allocation, verdict.standing, verdict.reason))
            else:
                judged.append(_timed(allocation, verdict, state, cluster, since, now, grace))
    judged += [_tunnel(allocation, busy, state, cluster, since, now, grace) for allocation in tunnels]
    return _together(judged, state)


def _timed(
    allocation: Allocation,
    unused: Unused,
    state: IpamState,
    cluster: Cluster | None,
    since: Mapping[LeakId, float],
    now: float,
    grace: float,
) -> Judged:
    first = since.get(leak_id(allocation), now)
    if grace <= 0:
        reason = f"{unused.reason}; collection is off (a leak grace of 0)"
        return Judged(allocation, Standing.CANDIDATE, reason, unused.word, first)
    end, sentence = fate(allocation.node, state, cluster)
    if end is Fate.GONE:
        reason = unused.reason if unused.word is Word.NODE_GONE else f"{unused.reason}, and {sentence}"
        return Judged(allocation, Standing.LEAKED, reason, Word.NODE_GONE, first)
    if now - first >= grace:
        reason = f"{unused.reason}, for {now - first:.0f} s"
        return Judged(allocation, Standing.LEAKED, reason, unused.word, first)
    reason = f"{unused.reason}; released when that is so for {grace:.0f} s"
    return Judged(allocation, Standing.CANDIDATE, reason, unused.word, first)


def _tunnel(
    allocation: Allocation,
    busy: set[str],
    state: IpamState,
    cluster: Cluster | None,
    since: Mapping[LeakId, float],
    now: float,
    grace: float,
) -> Judged:
    """A gone node's tunnel address goes last: another address in use on it casts doubt on its end."""
    if allocation.node in busy:
        reason = f"a tunnel address: {allocation.node} is gone, but other addresses on it are not free"
        return Judged(allocation, Standing.LEFT_ALONE, reason)
    _, sentence = fate(allocation.node, state, cluster)
    return _timed(allocation, Unused(Word.NODE_GONE, sentence), state, cluster, since, now, grace)


def _together(judged: list[Judged], state: IpamState) -> tuple[Judged, ...]:
    """Leaks of a handle that has something else, too, are held."""
    kept: dict[str, str] = {}
    for one in judged:
        if one.standing is not Standing.LEAKED and not one.allocation.cooling:
            kept.setdefault(
                one.allocation.handle, f"{one.allocation.address} of the same handle is {one.standing}"
            )
    for handle in state.handles:
        dark = [cidr for cidr in handle.counts if cidr in state.unreadable_blocks]
        if dark:
            kept.setdefault(handle.name, f"the handle counts addresses of the damaged block {dark[0]}, too")
    return tuple(
        Judged(one.allocation, Standing.HELD, f"{one.reason}; held: {kept[one.allocation.handle]}",
               one.word, one.since)
        if one.standing is Standing.LEAKED and one.allocation.handle in kept
        else one
        for one in judged
    )  # fmt: skip


def leaks(judged: Iterable[Judged]) -> tuple[Leak, ...]:
    """What is to be released, by handle."""
    members: defaultdict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        if one.standing is Standing.LEAKED:
            members[one.allocation.handle].append(one)
    return tuple(Leak(handle, tuple(found)) for handle, found in sorted(members.items()))


def remembered(judged: Iterable[Judged]) -> dict[LeakId, float]:
    """What the next judgement wants as `since`: an address that is in use in between starts anew."""
    return {leak_id(one.allocation): one.since for one in judged if one.since is not None}
