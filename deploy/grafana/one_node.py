"""The dashboard of one node: its datastore, sessions, routes and processes over time."""

from __future__ import annotations

from deploy.grafana.panels import (
    COLUMNS,
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
    DATASTORE,
    JOB,
    KUBERNETES,
    NODE,
    UP_DOWN,
    convergence,
    datastore_state,
    kubernetes_state,
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
