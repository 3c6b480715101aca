"""The dashboard of all nodes: who is in trouble, and with what."""

from __future__ import annotations

from deploy.grafana.panels import (
    BAD_ABOVE_0,
    GREEN,
    RATE,
    YELLOW,
    YES_NO,
    Column,
    Query,
    Row,
    dashboard,
    series,
    stat,
    steps,
    table,
    timeline,
)
from deploy.grafana.queries import (
    CONTROLLERS,
    DATASTORE,
    JOB,
    KUBERNETES,
    NO_SERIES,
    NODE_PAGE,
    UP_DOWN,
    convergence,
    datastore_state,
    done,
    kubernetes_state,
    missing,
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
