"""Metrics: the text format to the letter, the status in numbers, and how it grows with the cluster."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from agent.web.exposition import Family, Histogram, counter, gauge, number, text
from agent.web.metrics import TABLE, broker, convergence, families, markdown
from tests.support.agentsocket import NOW, STATUS

COUNTS = {"received": 20, "accepted": 15, "rejected": 5, "stale": 2, "advertised": 3}


def document(**changes: Any) -> dict[str, Any]:
    whole = copy.deepcopy(STATUS)
    whole["peers"] = [peer | COUNTS for peer in whole["peers"]]
    whole["routes"] |= {"inherited": 4, "repaired": 5}
    whole["kubernetes"] = {"state": "stale", "since": 1700.5, "reason": "gone", "server": "", "access": ""}
    return whole | changes


def samples(status: dict[str, Any], *, ready: bool = True) -> dict[str, float]:
    """Series -> value."""
    lines = text(families(status, ready=ready)).splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert len(found) == sum(not line.startswith("#") for line in lines), "no series twice"
    return {series: float(value) for series, value in found.items()}


# -- the text format ------------------------------------------------------------------------------------


def test_the_text_is_prometheus_own_format() -> None:
    assert text(
        [
            gauge("up", "Is it?\nOr \\ not", 1.0),
            counter("seen_total", "Times.", [({"who": "a"}, 3), ({"who": 'b"\\\n'}, 0.25)]),
            Family("empty", "gauge", "Nothing.", ()),
        ]
    ) == (
        "# HELP up Is it?\\nOr \\\\ not\n"
        "# TYPE up gauge\n"
        "up 1\n"
        "# HELP seen_total Times.\n"
        "# TYPE seen_total counter\n"
        'seen_total{who="a"} 3\n'
        'seen_total{who="b\\"\\\\\\n"} 0.25\n'
        "# HELP empty Nothing.\n"
        "# TYPE empty gauge\n"
    )


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.25):
        histogram.observe(seconds)
    assert text([histogram.family("wait_seconds", "Waiting.")]) == (
        "# HELP wait_seconds Waiting.\n"
        "# TYPE wait_seconds histogram\n"
        'wait_seconds_bucket{le="0.1"} 2\n'
        'wait_seconds_bucket{le="1"} 3\n'
        'wait_seconds_bucket{le="+Inf"} 4\n'
        "wait_seconds_sum 7.9\n"
        "wait_seconds_count 4\n"
    )


@pytest.mark.parametrize(
    ("value", "spelled"),
    [(0, "0"), (1.0, "1"), (True, "1"), (0.1, "0.1"), (1_800_000_000.25, "1800000000.25"), (1e300, "1e+300"),
     (float("inf"), "+Inf"), (123_456_789_012, "123456789012")],
)  # fmt: skip
def test_numbers(value: float, spelled: str) -> None:
    assert number(value) == spelled


# -- the status in numbers ------------------------------------------------------------------------------


def test_every_number_of_the_status_is_there() -> None:
    found = samples(document())
    assert found.pop("process_resident_memory_bytes") > 1e6
    assert found.pop("process_cpu_seconds_total") > 0
    counts = {
        f'tortie_peer_prefixes{{peer="{peer}",kind="{kind}"}}': value
        for peer in ("10.0.0.2", "fd00::2")
        for kind, value in COUNTS.items()
    }
    assert found == counts | {
        f'tortie_build_info{{version="{STATUS["agent"]["version"]}",node="node-1"}}': 1,
        "tortie_ready": 1,
        'tortie_datastore_state{state="connecting"}': 0,
        'tortie_datastore_state{state="in-sync"}': 1,
        'tortie_datastore_state{state="stale"}': 0,
        'tortie_datastore_state{state="frozen"}': 0,
        "tortie_datastore_since_seconds": NOW - 90,
        "tortie_datastore_revision": 42,
        "tortie_speaker_up": 1,
        "tortie_speaker_since_seconds": NOW - 80,
        'tortie_peers{state="Idle"}': 0,
        'tortie_peers{state="Connect"}': 0,
        'tortie_peers{state="Active"}': 1,
        'tortie_peers{state="OpenSent"}': 0,
        'tortie_peers{state="OpenConfirm"}': 0,
        'tortie_peers{state="Established"}': 1,
        'tortie_peers{state="Close"}': 0,
        'tortie_peer_up{peer="10.0.0.2",remote_node="node-2",type="node-to-node mesh",asn="64512"}': 1,
        'tortie_peer_up{peer="fd00::2",remote_node="",type="global",asn="64600"}': 0,
        'tortie_kubernetes_state{state="idle"}': 0,
        'tortie_kubernetes_state{state="connecting"}': 0,
        'tortie_kubernetes_state{state="in-sync"}': 0,
        'tortie_kubernetes_state{state="stale"}': 1,
        "tortie_kubernetes_since_seconds": 1700.5,
        'tortie_peer_since_seconds{peer="10.0.0.2"}': NOW - 60,
        'tortie_peer_since_seconds{peer="fd00::2"}': NOW - 200_000,
        'tortie_kernel_routes{state="wanted"}': 2,
        'tortie_kernel_routes{state="installed"}': 2,
        'tortie_kernel_routes{state="failed"}': 0,
        'tortie_kernel_routes{state="conflict"}': 0,
        'tortie_kernel_routes{state="inherited"}': 4,
        "tortie_kernel_repairs_total": 5,
        "tortie_rib_prefixes": 2,
        'tortie_rib_paths{validity="valid"}': 2,
        'tortie_rib_paths{validity="invalid"}': 0,
        'tortie_rib_paths{validity="unknown"}': 0,
        "tortie_refusals": 0,
        "process_start_time_seconds": STATUS["agent"]["started"],
    }


def test_what_is_wrong_shows() -> None:
    trouble = {"prefix": "10.1.0.0/26", "reason": "no"}
    found = samples(
        document(
            datastore=STATUS["datastore"] | {"state": "stale"},
            speaker=STATUS["speaker"] | {"state": "down"},
            routes=document()["routes"] | {"failed": [trouble] * 3, "conflicts": [trouble]},
            refusals=[{"subject": "a", "reason": "b"}] * 7,
        ),
        ready=False,
    )
    assert found["tortie_ready"] == found["tortie_speaker_up"] == 0
    assert found['tortie_datastore_state{state="stale"}'] == 1
    assert found['tortie_datastore_state{state="in-sync"}'] == 0
    assert found['tortie_kernel_routes{state="failed"}'] == 3
    assert found['tortie_kernel_routes{state="conflict"}'] == 1
    assert found["tortie_refusals"] == 7


def test_a_state_nobody_thought_of_is_counted_too() -> None:
    [one, other] = document()["peers"]
    assert (
        samples(document(peers=[one, other | {"state": "Dreaming"}]))['tortie_peers{state="Dreaming"}'] == 1
    )


def test_series_grow_by_the_same_number_with_every_peer() -> None:
    [one, _] = document()["peers"]

    def size(peers: int) -> int:
        return len(samples(document(peers=[one | {"address": f"10.0.0.{n}"} for n in range(peers)])))

    assert size(2) - size(1) == size(200) - size(199) == 7


def test_names_and_help_are_as_prometheus_wants_them() -> None:
    for family in families(document(), ready=True):
        assert re.fullmatch(r"(tortie|process)_[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert family.help.endswith(".")


def test_the_table_has_every_metric_as_it_is_told() -> None:
    told = [*families(document(), ready=True), broker(True), convergence(Histogram((1.0,)))]
    as_told = {
        family.name: (family.kind, family.help, {tuple(labels) for _, labels, _ in family.samples})
        for family in told
    }
    assert as_told.keys() == {metric.name for metric in TABLE}
    for metric in TABLE:
        kind, meaning, labels = as_told[metric.name]
        assert (kind, meaning) == (metric.kind, metric.help)
        assert labels == ({("le",), ()} if metric.kind == "histogram" else {metric.labels})


def test_the_state_of_kubernetes_is_told_only_where_there_is_access() -> None:
    told = samples(document())
    states = {series: value for series, value in told.items() if "kubernetes_state" in series}
    assert states == {
        'tortie_kubernetes_state{state="idle"}': 0,
        'tortie_kubernetes_state{state="connecting"}': 0,
        'tortie_kubernetes_state{state="in-sync"}': 0,
        'tortie_kubernetes_state{state="stale"}': 1,
    }
    assert told["tortie_kubernetes_since_seconds"] == 1700.5
    assert not [series for series in samples(document(kubernetes=None)) if "kubernetes" in series]


def test_the_broker_s_state_is_told_only_where_there_is_one() -> None:
    assert "\ntortie_broker_up 1\n" in text([broker(True)])
    assert "\ntortie_broker_up 0\n" in text([broker(False)])
    assert "\ntortie_broker_up" not in text([broker(None)])


def test_the_table_of_metrics_is_the_code_s_own() -> None:
    text = (Path(__file__).parents[2] / "deploy/README.md").read_text(encoding="utf-8")
    between = text.partition("<!-- metrics -->")[2].partition("<!-- /metrics -->")[0]
    assert between.strip() == markdown().strip()


def test_nothing_of_a_hostile_name_escapes_its_quotes() -> None:
    [one, _] = document()["peers"]
    hostile = one | {"remote_node": 'x"} 1\ntortie_ready 0\n#\\'}
    body = text(families(document(peers=[hostile]), ready=True))
    assert "\ntortie_ready 0" not in body
    assert r'remote_node="x\"} 1\ntortie_ready 0\n#\\"' in body
