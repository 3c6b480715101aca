"""What the dashboards show, in PromQL: the fleet, and one node. Writes the files that Grafana provisions:

python -m deploy.grafana.pages

Every query wants the scrape job `tortie` with the node's name as `instance`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from deploy.grafana.panels import (
    BAD_ABOVE_0,
    BLUE,
    COLUMNS,
    GREEN,
    RATE,
    RED,
    YELLOW,
    YES_NO,
    Column,
    Json,
    Query,
    Row,
    dashboard,
    heatmap,
    series,
    stat,
    steps,
    table,
    timeline,
    words,
)

JOB = 'job="tortie"'
CONTROLLERS = 'job="tortie-controllers"'
NODE = f'{JOB}, instance="$node"'
NO_SERIES = "or vector(0)"
NODE_PAGE = "/d/tortie-node?var-node=${__value.raw}&${__url_time_range}"
FOLDER = Path(__file__).parent / "dashboards"
DATASTORE = words(
    _1=("connecting", BLUE), _2=("in sync", GREEN), _3=("stale: as last told", RED), _4=("locked", YELLOW)
)
KUBERNETES = words(
    _1=("connecting", BLUE), _2=("in sync", GREEN), _3=("stale: as last told", RED), _4=("not needed", BLUE)
)
UP_DOWN = words(_0=("down", RED), _1=("up", GREEN))


def state(metric: str, states: Sequence[str], which: str) -> str:
    """One of several states as a number, from 1 on, for the words above."""
    return " + ignoring (state) ".join(
        f'{number} * {metric}{{{which}, state="{name}"}}' for number, name in enumerate(states, 1)
    )


def datastore_state(which: str) -> str:
    return state("tortie_datastore_state", ("connecting", "in-sync", "stale", "frozen"), which)


def kubernetes_state(which: str) -> str:
    return state("tortie_kubernetes_state", ("connecting", "in-sync", "stale", "idle"), which)


def missing(which: str) -> str:
    """Routes that should be in the kernel and are not."""
    return (
        f'tortie_kernel_routes{{{which}, state="wanted"}}'
        f' - ignoring (state) tortie_kernel_routes{{{which}, state="installed"}}'
    )


def done() -> str:
    """What tortie-controllers did."""
    increase = f"increase(tortie_controllers_deeds_total{{{CONTROLLERS}}}[{RATE}])"
    return f"sum by (deed, reason) ({increase})"


def quantile(share: float, which: str) -> str:
    buckets = f"sum by (le) (rate(tortie_convergence_seconds_bucket{{{which}}}[{RATE}]))"
    return f"histogram_quantile({share}, {buckets})"


def convergence(which: str) -> Row:
    """How long news takes to become routes."""
    return Row(
        title="Convergence: from the first news to the kernel routes that follow",
        panels=[
            heatmap(
                "How long news took",
                f"sum by (le) (increase(tortie_convergence_seconds_bucket{{{which}}}[{RATE}]))",
                "Each column is a moment; the darker a cell, the more news took that long.",
            ),
            series(
                "Quantiles",
                *(
                    Query(expr=quantile(share, which), legend=legend)
                    for share, legend in ((0.5, "half"), (0.9, "9 of 10"), (0.99, "99 of 100"))
                ),
                about="A gap: there was no news.",
                width=12,
                unit="s",
            ),
        ],
    )


FLEET = dashboard(
    "tortie-fleet",
    "Tortie: the fleet",
    "All nodes at a glance; a node's name leads to its own page.",
    [
        Row(
            title="At a glance",
            panels=[
                stat(
                    "Agents that answer",
                    Query(expr=f"sum(up{{{JOB}}}) {NO_SERIES}", legend="answer"),
                    Query(expr=f"count(up{{{JOB}}}) {NO_SERIES}", legend="known"),
                ),
                stat(
                    "Sessions",
                    Query(
                        expr=f'sum(tortie_peers{{{JOB}, state="Established"}}) {NO_SERIES}',
                        legend="established",
                    ),
                    Query(expr=f"sum(tortie_peers{{{JOB}}}) {NO_SERIES}", legend="wanted"),
                ),
                stat(
                    "Routes that are missing",
                    Query(expr=f"sum({missing(JOB)}) {NO_SERIES}", legend="missing"),
                    about="Wanted, and not in the kernel.",
                    thresholds=BAD_ABOVE_0,
                ),
                stat(
                    "Invalid paths",
                    Query(
                        expr=f'sum(tortie_rib_paths{{{JOB}, validity="invalid"}}) {NO_SERIES}',
                        legend="invalid",
                    ),
                    about="Told by a peer that does not own the addresses.",
                    thresholds=BAD_ABOVE_0,
                ),
                stat(
                    "Refusals",
                    Query(expr=f"sum(tortie_refusals{{{JOB}}}) {NO_SERIES}", legend="refusals"),
                    about="'tortiectl node status' says each one's reason.",
                    thresholds=steps((None, GREEN), (1, YELLOW)),
                ),
                stat(
                    "Alerts",
                    Query(
                        expr=f'count(ALERTS{{alertname=~"Tortie.*", alertstate="firing"}}) {NO_SERIES}',
                        legend="firing",
                    ),
                    thresholds=BAD_ABOVE_0,
                ),
            ],
        ),
        Row(
            title="Nodes",
            panels=[
                table(
                    "Nodes",
                    "instance",
                    [
                        Column(title="answers", expr=f"max by (instance) (up{{{JOB}}})", mappings=YES_NO),
                        Column(
                            title="ready", expr=f"max by (instance) (tortie_ready{{{JOB}}})", mappings=YES_NO
                        ),
                        Column(
                            title="etcd",
                            expr=f"max by (instance) ({datastore_state(JOB)})",
                            mappings=DATASTORE,
                        ),
                        Column(
                            title="Kubernetes",
                            expr=f"max by (instance) ({kubernetes_state(JOB)})",
                            mappings=KUBERNETES,
                        ),
                        Column(
                            title="speaker",
                            expr=f"max by (instance) (tortie_speaker_up{{{JOB}}})",
                            mappings=UP_DOWN,
                        ),
                        Column(
                            title="broker",
                            expr=f"max by (instance) (tortie_broker_up{{{JOB}}})",
                            mappings=UP_DOWN,
                        ),
                        Column(title="sessions up", expr=f"sum by (instance) (tortie_peer_up{{{JOB}}})"),
                        Column(
                            title="sessions down",
                            expr=f"sum by (instance) (1 - tortie_peer_up{{{JOB}}})",
                            thresholds=BAD_ABOVE_0,
                        ),
                        Column(
                            title="routes",
                            expr=f'sum by (instance) (tortie_kernel_routes{{{JOB}, state="installed"}})',
                        ),
                        Column(
                            title="missing",
                            expr=f"sum by (instance) ({missing(JOB)})",
                            thresholds=BAD_ABOVE_0,
                        ),
                        Column(
                            title="refusals",
                            expr=f"max by (instance) (tortie_refusals{{{JOB}}})",
                            thresholds=steps((None, GREEN), (1, YELLOW)),
                        ),
                        Column(
                            title="CPU",
                            expr=f"sum by (instance) (rate(process_cpu_seconds_total{{{JOB}}}[{RATE}]))",
                            unit="percentunit",
                        ),
                        Column(
                            title="memory",
                            expr=f"max by (instance) (process_resident_memory_bytes{{{JOB}}})",
                            unit="bytes",
                        ),
                        Column(
                            title="runs for",
                            expr=f"time() - max by (instance) (process_start_time_seconds{{{JOB}}})",
                            unit="s",
                        ),
                    ],
                    hide={},
                    rename={"instance": "node"},
                    overrides=[
                        {
                            "matcher": {"id": "byName", "options": "node"},
                            "properties": [
                                {
                                    "id": "links",
                                    "value": [
                                        {
                                            "title": "its own page",
                                            "url": NODE_PAGE,
                                        }
                                    ],
                                }
                            ],
                        }
                    ],
                ),
                series(
                    "Versions",
                    Query(expr=f"count by (version) (tortie_build_info{{{JOB}}})", legend="{{version}}"),
                    about="How far an upgrade is.",
                    stacked=True,
                    width=12,
                    height=6,
                ),
                timeline(
                    "etcd, as each node sees it",
                    Query(expr=f"max by (instance) ({datastore_state(JOB)})", legend="{{instance}}"),
                    mappings=DATASTORE,
                    width=12,
                    height=6,
                ),
            ],
        ),
        Row(
            title="Sessions",
            panels=[
                series(
                    "Sessions by state",
                    Query(expr=f"sum by (state) (tortie_peers{{{JOB}}})", legend="{{state}}"),
                    stacked=True,
                    width=12,
                ),
                series(
                    "Peers that are down, by how many nodes miss them",
                    Query(
                        expr=f"count by (peer, remote_node) (tortie_peer_up{{{JOB}}} == 0)",
                        legend="{{peer}} {{remote_node}}",
                    ),
                    about="One peer, many nodes: look at the peer. Many peers, one node: look at that node.",
                    width=12,
                ),
            ],
        ),
        Row(
            title="Routes",
            panels=[
                series(
                    "Kernel routes",
                    Query(expr=f"sum by (state) (tortie_kernel_routes{{{JOB}}})", legend="{{state}}"),
                ),
                series(
                    "Refused routes",
                    Query(
                        expr=f'sum by (instance) (tortie_peer_prefixes{{{JOB}, kind="rejected"}}) > 0',
                        legend="{{instance}}",
                    ),
                    about="By import policy, or because their peer does not own them.",
                ),
                series(
                    "Routes put back after somebody took them",
                    Query(
                        expr=f"sum by (instance) (increase(tortie_kernel_repairs_total{{{JOB}}}[{RATE}]))",
                        legend="{{instance}}",
                    ),
                ),
                series(
                    "Paths by origin validation's verdict",
                    Query(expr=f"sum by (validity) (tortie_rib_paths{{{JOB}}})", legend="{{validity}}"),
                ),
                series(
                    "Routes kept over a peer's restart",
                    Query(
                        expr=f'sum by (instance) (tortie_peer_prefixes{{{JOB}, kind="stale"}})',
                        legend="{{instance}}",
                    ),
                ),
                series(
                    "Refusals",
                    Query(expr=f"tortie_refusals{{{JOB}}}", legend="{{instance}}"),
                ),
            ],
        ),
        convergence(JOB),
        Row(
            title="The agents themselves",
            panels=[
                series(
                    "CPU",
                    Query(expr=f"rate(process_cpu_seconds_total{{{JOB}}}[{RATE}])", legend="{{instance}}"),
                    unit="percentunit",
                ),
                series(
                    "Memory",
                    Query(expr=f"process_resident_memory_bytes{{{JOB}}}", legend="{{instance}}"),
                    unit="bytes",
                ),
                series(
                    "Starts",
                    Query(expr=f"changes(process_start_time_seconds{{{JOB}}}[5m])", legend="{{instance}}"),
                    about="In the last five minutes.",
                ),
            ],
        ),
        Row(
            title="tortie-controllers",
            panels=[
                series(
                    "Leader",
                    Query(expr=f"tortie_controllers_leader{{{CONTROLLERS}}}", legend="{{instance}}"),
                    Query(
                        expr=f"tortie_controllers_dry_run{{{CONTROLLERS}}}", legend="{{instance}}: dry run"
                    ),
                    about="One replica leads, the others stand by.",
                ),
                series(
                    "What was done",
                    Query(
                        expr=done(),
                        legend="{{deed}}: {{reason}}",
                    ),
                    stacked=True,
                ),
                series(
                    "Controllers in trouble",
                    Query(
                        expr=f"sum by (controller) (tortie_controllers_trouble{{{CONTROLLERS}}})",
                        legend="{{controller}}",
                    ),
                ),
            ],
        ),
    ],
)

ONE_NODE = dashboard(
    "tortie-node",
    "Tortie: one node",
    "What one agent says of itself. What the numbers cannot say, 'tortiectl node status' says on the node.",
    [
        Row(
            title="$node",
            panels=[
                stat("Ready", Query(expr=f"tortie_ready{{{NODE}}}"), mappings=YES_NO),
                stat("etcd", Query(expr=datastore_state(NODE)), mappings=DATASTORE),
                stat("Speaker", Query(expr=f"tortie_speaker_up{{{NODE}}}"), mappings=UP_DOWN),
                stat(
                    "Broker",
                    Query(expr=f"tortie_broker_up{{{NODE}}}"),
                    about="Empty where none is set.",
                    mappings=UP_DOWN,
                ),
                stat("Runs for", Query(expr=f"time() - process_start_time_seconds{{{NODE}}}"), unit="s"),
                stat(
                    "Refusals",
                    Query(expr=f"tortie_refusals{{{NODE}}}"),
                    thresholds=steps((None, GREEN), (1, YELLOW)),
                ),
                timeline(
                    "etcd",
                    Query(expr=datastore_state(NODE), legend="etcd"),
                    mappings=DATASTORE,
                    width=6,
                    height=5,
                ),
                timeline(
                    "Kubernetes API",
                    Query(expr=kubernetes_state(NODE), legend="Kubernetes"),
                    about="Empty where there is no access to one.",
                    mappings=KUBERNETES,
                    width=6,
                    height=5,
                ),
                timeline(
                    "Speaker and broker",
                    Query(expr=f"tortie_speaker_up{{{NODE}}}", legend="speaker"),
                    Query(expr=f"tortie_broker_up{{{NODE}}}", legend="broker"),
                    mappings=UP_DOWN,
                    width=6,
                    height=5,
                ),
                series(
                    "etcd revisions acted on",
                    Query(expr=f"rate(tortie_datastore_revision{{{NODE}}}[{RATE}])", legend="per second"),
                    width=6,
                    height=5,
                ),
            ],
        ),
        Row(
            title="Sessions",
            panels=[
                table(
                    "Peers",
                    "peer",
                    [
                        Column(title="session", expr=f"tortie_peer_up{{{NODE}}}", mappings=UP_DOWN),
                        Column(
                            title="in its state for",
                            expr=f"time() - max by (peer) (tortie_peer_since_seconds{{{NODE}}})",
                            unit="s",
                        ),
                        *(
                            Column(
                                title=kind,
                                expr=f'max by (peer) (tortie_peer_prefixes{{{NODE}, kind="{kind}"}})',
                            )
                            for kind in ("received", "accepted", "rejected", "stale", "advertised")
                        ),
                    ],
                    hide={"__name__": True, "instance": True, "job": True},
                    rename={"remote_node": "node", "asn": "AS"},
                ),
                timeline(
                    "Sessions",
                    Query(expr=f"tortie_peer_up{{{NODE}}}", legend="{{peer}} {{remote_node}}"),
                    mappings=UP_DOWN,
                    width=COLUMNS,
                ),
            ],
        ),
        Row(
            title="Routes",
            panels=[
                series(
                    "Kernel routes",
                    Query(expr=f"tortie_kernel_routes{{{NODE}}}", legend="{{state}}"),
                ),
                series(
                    "Paths by origin validation's verdict",
                    Query(expr=f"tortie_rib_paths{{{NODE}}}", legend="{{validity}}"),
                    Query(expr=f"tortie_rib_prefixes{{{NODE}}}", legend="prefixes"),
                ),
                series(
                    "Routes put back after somebody took them",
                    Query(expr=f"increase(tortie_kernel_repairs_total{{{NODE}}}[{RATE}])", legend="put back"),
                ),
                series(
                    "Prefixes from each peer",
                    Query(expr=f'tortie_peer_prefixes{{{NODE}, kind="accepted"}}', legend="{{peer}}"),
                ),
                series(
                    "Refused prefixes of each peer",
                    Query(expr=f'tortie_peer_prefixes{{{NODE}, kind="rejected"}} > 0', legend="{{peer}}"),
                ),
                series(
                    "Prefixes to each peer",
                    Query(expr=f'tortie_peer_prefixes{{{NODE}, kind="advertised"}}', legend="{{peer}}"),
                ),
            ],
        ),
        convergence(NODE),
        Row(
            title="The agent itself",
            panels=[
                series(
                    "CPU",
                    Query(expr=f"rate(process_cpu_seconds_total{{{NODE}}}[{RATE}])", legend="CPU"),
                    unit="percentunit",
                    width=12,
                ),
                series(
                    "Memory",
                    Query(expr=f"process_resident_memory_bytes{{{NODE}}}", legend="resident"),
                    unit="bytes",
                    width=12,
                ),
            ],
        ),
    ],
    variables=[
        {
            "name": "node",
            "label": "Node",
            "type": "query",
            "datasource": {"type": "prometheus", "uid": "${datasource}"},
            "query": {"query": f"label_values(tortie_build_info{{{JOB}}}, instance)", "refId": "nodes"},
            "definition": f"label_values(tortie_build_info{{{JOB}}}, instance)",
            "hide": 0,
            "refresh": 2,
            "regex": "",
            "sort": 1,
            "includeAll": False,
            "multi": False,
            "options": [],
        }
    ],
)

PAGES: tuple[Json, ...] = (FLEET, ONE_NODE)


def text(page: Json) -> str:
    """As the file has it."""
    return json.dumps(page, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for page in PAGES:
        (FOLDER / f"{page['uid']}.json").write_text(text(page), encoding="utf-8")
