"""The controllers' /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.controllers.deeds import Deeds
from agent.controllers.election import Standing
from agent.web import exposition
from agent.web.exposition import Family, counter, gauge
from agent.web.health import Health
from felix_like.calc import garbage
from felix_like.model.verdict import No, Verdict, Yes

LOOK: Final = "look_at"


class Doors(Health):
    """`standing` says how the election stands."""

    def __init__(self, address: tuple[str, int], *, standing: Callable[[], Standing], deeds: Deeds) -> None:
        self._standing = standing
        self._deeds = deeds
        super().__init__(address, ready=self.verdict, status=dict)

    def verdict(self) -> Verdict:
        """A standby is as ready as a leader: what counts is that etcd answers."""
        standing = self._standing()
        if standing.leading or (standing.leader and not standing.trouble):
            return Yes()
        return No(standing.trouble or "no leader is known yet")

    def _metrics(self) -> str:
        return exposition.text(families(self._standing(), self._deeds))


def families(standing: Standing, deeds: Deeds) -> list[Family]:
    found = [
        gauge("tortie_controllers_leader", "1 while this replica leads.", float(standing.leading)),
        counter(
            "tortie_controllers_deeds_total",
            "What was done, by kind and reason; nothing counts in a dry run.",
            [({"deed": deed, "reason": word}, count) for (deed, word), count in sorted(deeds.done.items())],
        ),
        gauge(
            "tortie_controllers_trouble",
            "1 for a controller that does not do its work, or a part of it.",
            [({"controller": name}, 1) for name in sorted(deeds.troubles)],
        ),
        gauge("tortie_controllers_dry_run", "1 when nothing is written.", float(deeds.dry_run)),
    ]
    found += [
        gauge(f"tortie_controllers_{name}", meaning, deeds.gauges[key])
        for key, name, meaning in SINGLE
        if key in deeds.gauges
    ]
    standings = [
        ({"standing": str(one)}, deeds.gauges[f"allocations {one}"])
        for one in garbage.Standing
        if f"allocations {one}" in deeds.gauges
    ]
    if standings:
        found.append(
            gauge(
                "tortie_controllers_allocations", "Addresses at the last look, by what they are.", standings
            )
        )
    return found


SINGLE: Final = (
    (LOOK, "last_look_seconds", "Unix time of the last look at IPAM."),
    ("look_seconds", "look_duration_seconds", "How long it took, with what followed from it."),
    ("findings", "ipam_findings", "Empty blocks, stale affinities and wrong handles at the last look."),
    ("damaged", "ipam_damaged", "Keys that could not be read at the last look."),
    ("nodes_missing", "nodes_missing", "Calico Nodes whose Kubernetes Node is missing."),
)
"""Key in Deeds.gauges, end of the metric's name, its meaning."""
