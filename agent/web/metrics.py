"""The agent's state as Prometheus metrics: the document of agent.sock's `status`, in numbers.

What grows with the cluster grows by a constant number of series per peer. Names and labels are a promise:
dashboards and alerts are written against them.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from agent.web.exposition import Family, Labels, counter, gauge

DATASTORE_STATES: Final = ("connecting", "in-sync", "stale", "frozen")
SESSION_STATES: Final = ("Idle", "Connect", "Active", "OpenSent", "OpenConfirm", "Established", "Close")
PREFIX_COUNTS: Final = ("received", "accepted", "rejected", "stale", "advertised")
VALIDITIES: Final = ("valid", "invalid", "unknown")

Document = Mapping[str, Any]


def families(status: Document, *, ready: bool) -> Iterator[Family]:
    """Everything but histograms. `status` as `{"ask": "status"}` answers it."""
    yield gauge(
        "tortie_build_info",
        "Always 1; the version is the label.",
        [({"version": status["agent"]["version"]}, 1)],
    )
    yield gauge("tortie_ready", "1 once the first full route sync is done.", float(ready))
    yield from _datastore(status["datastore"])
    yield from _speaker(status["speaker"])
    yield from _peers(status["peers"])
    yield from _routes(status["routes"])
    yield from _rib(status["rib"])
    yield gauge(
        "tortie_refusals", "Things refused, each with a reason in the status.", len(status["refusals"])
    )
    yield from _process(status["agent"])


def _datastore(datastore: Document) -> Iterator[Family]:
    yield gauge(
        "tortie_datastore_state",
        "1 for the state that etcd is in, as this agent sees it.",
        _one_of("state", DATASTORE_STATES, datastore["state"]),
    )
    yield gauge(
        "tortie_datastore_since_seconds", "Unix time since when it is in that state.", datastore["since"]
    )
    yield gauge("tortie_datastore_revision", "etcd revision acted on.", datastore["revision"])


def _speaker(speaker: Document) -> Iterator[Family]:
    up = speaker["state"] == "connected"
    yield gauge("tortie_speaker_up", "1 while the link to tortie-speaker is up.", float(up))
    yield gauge(
        "tortie_speaker_since_seconds", "Unix time since when the link is up or down.", speaker["since"]
    )


def _peers(peers: list[Document]) -> Iterator[Family]:
    states = Counter(peer["state"] for peer in peers)
    yield gauge(
        "tortie_peers",
        "BGP sessions by state.",
        [({"state": state}, states.pop(state, 0)) for state in SESSION_STATES]
        + [({"state": state}, count) for state, count in sorted(states.items())],
    )
    yield gauge(
        "tortie_peer_up",
        "1 while the session is Established.",
        [(_peer(peer), float(peer["state"] == "Established")) for peer in peers],
    )
    yield gauge(
        "tortie_peer_since_seconds",
        "Unix time since when the session is in its state.",
        [({"peer": peer["address"]}, peer["since"]) for peer in peers],
    )
    yield gauge(
        "tortie_peer_prefixes",
        "Prefixes from and to each peer.",
        [({"peer": peer["address"], "kind": kind}, peer[kind]) for peer in peers for kind in PREFIX_COUNTS],
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
    yield gauge(
        "tortie_kernel_routes",
        "Kernel routes: wanted, installed as wanted, refused by the kernel, in conflict with a foreign "
        "route, inherited from an earlier life and not confirmed yet.",
        [({"state": state}, count) for state, count in counts.items()],
    )
    yield counter(
        "tortie_kernel_repairs_total", "Routes put back after somebody else took them.", routes["repaired"]
    )


def _rib(rib: Document) -> Iterator[Family]:
    yield gauge("tortie_rib_prefixes", "Prefixes with at least one path.", rib["prefixes"])
    yield gauge(
        "tortie_rib_paths",
        "Paths learned, by origin validation's verdict (RFC 6811).",
        [({"validity": validity}, rib[validity]) for validity in VALIDITIES],
    )


def _process(agent: Document) -> Iterator[Family]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield counter("process_cpu_seconds_total", "CPU time of the agent.", used.ru_utime + used.ru_stime)
    yield gauge("process_resident_memory_bytes", "Memory of the agent.", float(resident_octets()))
    yield gauge("process_start_time_seconds", "Unix time of its start.", agent["started"])


def resident_octets() -> int:
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (read at every scrape)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _one_of(label: str, every: tuple[str, ...], actual: str) -> list[tuple[Labels, float]]:
    return [({label: name}, float(name == actual)) for name in every]
