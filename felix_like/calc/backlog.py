"""What the graph has been told of the datastore and has not acted on yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from felix_like.calc.snapshot import Change, Kind, Touched
from felix_like.model.address import Prefix
from felix_like.model.bgp import ClusterInformation


@dataclass(slots=True)
class Backlog:
    """What changed in the snapshot since it was last acted on."""

    kinds: set[Kind] = field(default_factory=set)
    blocks: set[Prefix] = field(default_factory=set)
    desire: bool = True
    """`desire` may have another answer."""

    def add(self, touched: Touched, node: str) -> None:
        self.kinds |= touched.kinds
        self.blocks |= touched.blocks
        self.desire |= touched.concerns(node)


def locks(changes: Iterable[Change]) -> bool:
    """Whether the datastore becomes one that is not to be followed."""
    return any(
        isinstance(change.value, ClusterInformation) and not change.value.datastore_ready
        for change in changes
    )
