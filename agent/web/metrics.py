"""The agent's state as Prometheus metrics: the document of agent.sock's `status`, in numbers.

What grows with the cluster grows by a constant number of series per peer. Names and labels are a promise:
dashboards and alerts are written against them. `TABLE` is the whole list; deploy/README.md's is made of it.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from agent.web.exposition import Family, Histogram, Labels, counter, gauge

DATASTORE_STATES: Final = ("connecting", "in-sync", "stale", "frozen")
KUBERNETES_STATES: Final = ("idle", "connecting", "in-sync", "stale")
SESSION_STATES: Final = ("Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Close")
PREFIX_COUNTS: Final = ("received", "accepted", "rejected", "stale", "advertised")
VALIDITIES: Final = ("valid", "invalid", "unknown")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the metrics' table. `of` makes the family of it, with samples that have its labels."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()

    def of(self, samples: Iterable[tuple[Labels, float]] | float) -> Family:
        return (counter if self.kind == "counter" else gauge)(self.name, self.help, samples)


BUILD_INFO = Metric(
    "tortie_build_info", "gauge", "Always 1; version and node are the labels.", ("version", "node")
)
READY = Metric("tortie_ready", "gauge", "1 once the first full route sync is done.")
DATASTORE_STATE = Metric(
    "tortie_datastore_state", "gauge", "1 for the state that etcd is in, as this agent sees it.", ("state",)
)
DATASTORE_SINCE = Metric(
    "tortie_datastore_since_seconds", "gauge", "Unix time since when it is in that state."
)
DATASTORE_REVISION = Metric("tortie_datastore_revision", "gauge", "etcd revision acted on.")
KUBERNETES_STATE = Metric(
    "tortie_kubernetes_state",
    "gauge",
    "1 for the state that the Kubernetes API is in, as this agent sees it (idle: nothing needs it); absent "
    "where there is no access to one.",
    ("state",),
)
KUBERNETES_SINCE = Metric(
    "tortie_kubernetes_since_seconds", "gauge", "Unix time since when it is in that state."
)
SPEAKER_UP = Metric("tortie_speaker_up", "gauge", "1 while the link to tortie-speaker is up.")
SPEAKER_SINCE = Metric(
    "tortie_speaker_since_seconds", "gauge", "Unix time since when the link is up or down."
)
BROKER_UP = Metric(
    "tortie_broker_up", "gauge", "1 while the MQTT broker is told the status; absent where none is set."
)
PEERS = Metric("tortie_peers", "gauge", "BGP sessions by state.", ("state",))
PEER_UP = Metric(
    "tortie_peer_up",
    "gauge",
    "1 while the session is Established; as last heard while the speaker is away.",
    ("peer", "remote_node", "type", "asn"),
)
PEER_SINCE = Metric(
    "tortie_peer_since_seconds", "gauge", "Unix time since when the session is in its state.", ("peer",)
)
PEER_PREFIXES = Metric("tortie_peer_prefixes", "gauge", "Prefixes from and to each peer.", ("peer", "kind"))
KERNEL_ROUTES = Metric(
    "tortie_kernel_routes",
    "gauge",
    "Kernel routes: wanted, installed as wanted, refused by the kernel, in conflict with a foreign "
    "route, inherited from an earlier life and not confirmed yet.",
    ("state",),
)
KERNEL_REPAIRS = Metric(
    "tortie_kernel_repairs_total", "counter", "Routes put back after somebody else took them."
)
RIB_PREFIXES = Metric("tortie_rib_prefixes", "gauge", "Prefixes with at least one path.")
RIB_PATHS = Metric(
    "tortie_rib_paths",
    "gauge",
    "Paths learned, by origin validation's verdict (RFC 6811).",
    ("validity",),
)
REFUSALS = Metric("tortie_refusals", "gauge", "Things refused, each with a reason in the status.")
CONVERGENCE = Metric(
    "tortie_convergence_seconds",
    "histogram",
    "From the first news (from etcd, a peer, the kernel) to the kernel routes that follow.",
    ("le",),
)
CPU = Metric("process_cpu_seconds_total", "counter", "CPU time of the agent.")
MEMORY = Metric("process_resident_memory_bytes", "gauge", "Memory of the agent.")
START = Metric("process_start_time_seconds", "gauge", "Unix time of its start.")

TABLE: Final = (
    BUILD_INFO, READY, DATASTORE_STATE, DATASTORE_SINCE, DATASTORE_REVISION, KUBERNETES_STATE,
    KUBERNETES_SINCE, SPEAKER_UP, SPEAKER_SINCE, BROKER_UP, PEERS, PEER_UP, PEER_SINCE, PEER_PREFIXES,
    KERNEL_ROUTES, KERNEL_REPAIRS, RIB_PREFIXES, RIB_PATHS, REFUSALS, CONVERGENCE, CPU, MEMORY, START,
)  # fmt: skip


def families(status: Document, *, ready: bool) -> Iterator[Family]:
    """All that the status has. `status` as `{"ask": "status"}` answers it."""
    yield BUILD_INFO.of([({"version": status["agent"]["version"], "node": status["node"]}, 1)])
    yield READY.of(float(ready))
    yield from _datastore(status["datastore"])
    yield from _kubernetes(status.get("kubernetes"))
    yield SPEAKER_UP.of(float(status["speaker"]["state"] == "connected"))
    yield SPEAKER_SINCE.of(status["speaker"]["since"])
    yield from _peers(status["peers"])
    yield from _routes(status["routes"])
    yield from _rib(status["rib"])
    yield REFUSALS.of(len(status["refusals"]))
    yield from _process(status["agent"])


def broker(connected: bool | None) -> Family:
    """`connected`: None where the settings name no broker."""
    return BROKER_UP.of([] if connected is None else [({}, float(connected))])


def convergence(histogram: Histogram) -> Family:
    return histogram.family(CONVERGENCE.name, CONVERGENCE.help)


def markdown() -> str:
    """The table as deploy/README.md has it."""
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels)} | {m.help} |"
        for m in TABLE
    ]
    return "\n".join(["| Metric | Kind | Labels | Meaning |", "| --- | --- | --- | --- |", *rows, ""])


def _datastore(datastore: Document) -> Iterator[Family]:
    yield DATASTORE_STATE.of(
        [({"state": name}, float(name == datastore["state"])) for name in DATASTORE_STATES]
    )
    yield DATASTORE_SINCE.of(datastore["since"])
    yield DATASTORE_REVISION.of(datastore["revision"])


def _kubernetes(kubernetes: Document | None) -> Iterator[Family]:
    states = KUBERNETES_STATES if kubernetes is not None else ()
    state, since = (kubernetes["state"], kubernetes["since"]) if kubernetes is not None else ("", 0.0)
    yield KUBERNETES_STATE.of([({"state": name}, float(name == state)) for name in states])
    yield KUBERNETES_SINCE.of([] if kubernetes is None else [({}, since)])


def _peers(peers: list[Document]) -> Iterator[Family]:
    states = Counter(peer["state"] for peer in peers)
    yield PEERS.of(
        [({"state": state}, states.pop(state, 0)) for state in SESSION_STATES]
        + [({"state": state}, count) for state, count in sorted(states.items())]
    )
    yield PEER_UP.of([(_peer(peer), float(peer["state"] == "Established")) for peer in peers])
    yield PEER_SINCE.of([({"peer": peer["address"]}, peer["since"]) for peer in peers])
    yield PEER_PREFIXES.of(
        [({"peer": peer["address"], "kind": kind}, peer[kind]) for peer in peers for kind in PREFIX_COUNTS]
    )


def _peer(peer: Document) -> Labels:
    """Once per peer with its names; the other series join on `peer`."""
    return {
        "peer": peer["address"],
        "remote_node": peer["remote_node"] or "",
        "type": peer["type"],
        "asn": str(peer["asn"]),
    }


def _routes(routes: Document) -> Iterator[Family]:
    counts = {
        "wanted": routes["wanted"],
        "installed": routes["installed"],
        "failed": len(routes["failed"]),
        "conflict": len(routes["conflicts"]),
        "inherited": routes["inherited"],
    }
    yield KERNEL_ROUTES.of([({"state": state}, count) for state, count in counts.items()])
    yield KERNEL_REPAIRS.of(routes["repaired"])


def _rib(rib: Document) -> Iterator[Family]:
    yield RIB_PREFIXES.of(rib["prefixes"])
    yield RIB_PATHS.of([({"validity": validity}, rib[validity]) for validity in VALIDITIES])


def _process(agent: Document) -> Iterator[Family]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield CPU.of(used.ru_utime + used.ru_stime)
    yield MEMORY.of(float(resident_octets()))
    yield START.of(agent["started"])


def resident_octets() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (read at every scrape)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
