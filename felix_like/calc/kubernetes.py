"""What Kubernetes has said, and whether it may be acted on: state, never a half of it.

Three states of knowledge. Kubernetes is not expected (there is no access): ranges are advertised, single
services are not known, nothing waits. It is expected and was heard: what it said last counts, however old. It
is expected and has not been heard since this start: nothing about services is said, and nothing that was said
before is withdrawn, for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from felix_like.calc.pod_cidrs import PodCidrs
from felix_like.calc.snapshot import Change, KubernetesResource, Malformed, Snapshot, Touched
from felix_like.model.desired import LocalNode
from felix_like.model.service import EXCLUDE_LABEL, KubernetesNode
from felix_like.rib.session import DEFAULT_RESTART_TIME

PATIENCE = DEFAULT_RESTART_TIME
"""Seconds after the datastore was first read in which service routes of before our start stay, though nobody
knows whether they should: as long as peers keep the routes of a speaker that restarts. Not after the start:
before the datastore has named a range, nobody asks Kubernetes."""


class KubernetesChange(Protocol):
    """One object's key has this value now; None: it is gone, or no longer of interest."""

    @property
    def key(self) -> str: ...
    @property
    def value(self) -> KubernetesResource | Malformed | None: ...


class Kubernetes:
    """`expected`: there is access, so it will be heard one day."""

    def __init__(self, local: LocalNode, *, expected: bool) -> None:
        self.expected = expected
        self.snapshot = Snapshot()
        self.stale: str | None = None
        """Why what it said may be old."""
        self.known = False
        """It was heard as a whole, now or before our start, and may be acted on. Stays so: what is known does
        not get less by being confirmed."""
        self.pod_cidrs = PodCidrs(local) if local.use_pod_cidr else None
        self.name = local.kubernetes_name or local.name
        """This node's, there."""
        self._heard = False

    def tell(self, changes: Iterable[KubernetesChange], in_sync: bool) -> Touched:
        self._heard = True
        touched = self.snapshot.apply(Change(change.key, change.value) for change in changes)
        if in_sync:
            self.stale = None
        self.known |= in_sync or self.stale is not None
        return touched

    def tell_stale(self, reason: str | None) -> None:
        """It does not answer: its last good copy counts, if that was told. None: it answers again."""
        self.stale = reason
        self.known |= self._heard and reason is not None

    @property
    def missing(self) -> bool:
        """It is expected, and not known yet."""
        return self.expected and not self.known

    @property
    def exclusion(self) -> str:
        """Why its own Node keeps this node from advertising services; empty: it does not."""
        node = self.snapshot.kubernetes_nodes.get(self.name)
        return EXCLUDED if node is not None and is_excluded(node.labels) else ""

    def nodes(self) -> dict[str, KubernetesNode] | None:
        """Its nodes, once they are known. None at all are not believed: who may not read them sees none."""
        return (dict(self.snapshot.kubernetes_nodes) or None) if self.known else None


EXCLUDED = f'this node has the label {EXCLUDE_LABEL}: "true", so it advertises no service'


def is_excluded(labels: Mapping[str, str]) -> bool:
    """As Calico reads it: the value decides, not the presence of the label."""
    return labels.get(EXCLUDE_LABEL) == "true"
