"""What both dashboards ask, in PromQL.

Every query wants the scrape job `tortie` with the node's name as `instance`.
"""

from __future__ import annotations

from collections.abc import Sequence

from deploy.grafana.panels import BLUE, GREEN, RATE, RED, YELLOW, Query, Row, heatmap, series, words

JOB = 'job="tortie"'
CONTROLLERS = 'job="tortie-controllers"'
NODE = f'{JOB}, instance="$node"'
NO_SERIES = "or vector(0)"
NODE_PAGE = "/d/tortie-node?var-node=${__value.raw}&${__url_time_range}"
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
