"""What Grafana's dashboards are made of: queries, panels, rows, and the JSON that Grafana reads.

`fleet.py` and `one_node.py` say what is on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 41
"""Of Grafana 12.0; later ones migrate."""
COLUMNS = 24
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RATE = "$__rate_interval"
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One PromQL expression. `legend`: Grafana's template for the names; `now`: only the last value."""

    expr: str
    legend: str = ""
    now: bool = False
    format: str = "time_series"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; the page finds its place. `unit` as Grafana names them."""

    title: str
    kind: str
    queries: Sequence[Query]
    about: str = ""
    width: int = 8
    height: int = 8
    unit: str = "short"
    defaults: Json = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    overrides: Sequence[Json] = ()
    transformations: Sequence[Json] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Panels under a heading; they fill lines from the left."""

    title: str
    panels: Sequence[Panel]


# --- what panels are made of ------------------------------------------------------------------------


def steps(*colours: tuple[float | None, str]) -> Json:
    """Colours from a value upwards; the first has None."""
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in colours]}


def words(**meanings: tuple[str, str]) -> list[Json]:
    """Values that are shown as words: `_1=("up", GREEN)`."""
    options = {
        name.removeprefix("_"): {"text": text, "color": colour, "index": index}
        for index, (name, (text, colour)) in enumerate(meanings.items())
    }
    return [{"type": "value", "options": options}]


YES_NO = words(_0=("no", RED), _1=("yes", GREEN))
BAD_ABOVE_0 = steps((None, GREEN), (1, RED))


def stat(title: str, *queries: Query, about: str = "", thresholds: Json | None = None, **more: Any) -> Panel:
    """One number, or a few, large."""
    return Panel(
        title=title,
        kind="stat",
        queries=queries,
        about=about,
        width=more.pop("width", 4),
        height=4,
        unit=more.pop("unit", "short"),
        defaults={"thresholds": thresholds or steps((None, BLUE)), **more},
        options={
            "colorMode": "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        },
    )


def series(title: str, *queries: Query, about: str = "", stacked: bool = False, **more: Any) -> Panel:
    """Lines over time."""
    return Panel(
        title=title,
        kind="timeseries",
        queries=queries,
        about=about,
        defaults={
            "min": 0,
            "custom": {
                "fillOpacity": 30 if stacked else 5,
                "lineWidth": 1,
                "showPoints": "never",
                "stacking": {"mode": "normal" if stacked else "none"},
            },
        },
        options={
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        **more,
    )


def timeline(title: str, *queries: Query, about: str = "", mappings: list[Json], **more: Any) -> Panel:
    """One bar for each series, in its states' colours."""
    return Panel(
        title=title,
        kind="state-timeline",
        queries=queries,
        about=about,
        defaults={"mappings": mappings, "custom": {"fillOpacity": 80, "lineWidth": 0}},
        options={
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "never",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "single", "sort": "none"},
        },
        **more,
    )


def heatmap(title: str, expr: str, about: str) -> Panel:
    """A histogram over time. `expr`: its buckets, by `le`."""
    return Panel(
        title=title,
        kind="heatmap",
        queries=[Query(expr=expr, legend="{{le}}", format="heatmap")],
        about=about,
        width=12,
        unit="s",
        options={
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Spectral", "steps": 64, "reverse": True},
            "filterValues": {"le": 1e-9},
            "tooltip": {"mode": "single", "yHistogram": True},
            "yAxis": {"unit": "s"},
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """Of a table; `expr` gives one value for each row's label."""

    title: str
    expr: str
    unit: str = "short"
    mappings: Sequence[Json] = ()
    thresholds: Json | None = None


def table(title: str, by: str, columns: Sequence[Column], *, hide: Mapping[str, bool], **more: Any) -> Panel:
    """One row for each value of the label `by`, one column for each expression."""
    letters = [chr(ord("A") + index) for index in range(len(columns))]
    names = {f"Value #{letter}": column.title for letter, column in zip(letters, columns, strict=True)}
    overrides = [
        {
            "matcher": {"id": "byName", "options": column.title},
            "properties": [
                {"id": "unit", "value": column.unit},
                *([{"id": "mappings", "value": list(column.mappings)}] if column.mappings else []),
                *([{"id": "thresholds", "value": column.thresholds}] if column.thresholds else []),
                *(
                    [{"id": "custom.cellOptions", "value": {"type": "color-text"}}]
                    if column.mappings or column.thresholds
                    else []
                ),
            ],
        }
        for column in columns
    ]
    return Panel(
        title=title,
        kind="table",
        queries=[Query(expr=column.expr, now=True, format="table") for column in columns],
        width=COLUMNS,
        height=more.pop("height", 9),
        overrides=[*overrides, *more.pop("overrides", ())],
        transformations=[
            {"id": "joinByField", "options": {"byField": by, "mode": "outer"}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True, **hide},
                    "renameByName": names | more.pop("rename", {}),
                },
            },
        ],
        **more,
    )


# --- the page ---------------------------------------------------------------------------------------


def dashboard(uid: str, title: str, about: str, rows: Sequence[Row], variables: Sequence[Json] = ()) -> Json:
    """The JSON that Grafana reads."""
    source = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "includeAll": False,
        "multi": False,
        "options": [],
    }
    return {
        "uid": uid,
        "title": title,
        "description": about,
        "tags": ["tortie"],
        "schemaVersion": SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [source, *variables]},
        "annotations": {"list": []},
        "links": [
            {
                "title": "Tortie",
                "type": "dashboards",
                "tags": ["tortie"],
                "asDropdown": False,
                "includeVars": False,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
            }
        ],
        "panels": placed(rows),
    }


def placed(rows: Sequence[Row]) -> list[Json]:
    """Panels with identity and place: from left to right, from top to bottom."""
    made: list[Json] = []
    top = 0
    for row in rows:
        made.append(
            {
                "id": len(made) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            }
        )
        top, left, line = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, line = top + line, 0, 0
            made.append(drawn(panel, len(made) + 1, left, top))
            left, line = left + panel.width, max(line, panel.height)
        top += line
    return made


def drawn(panel: Panel, number: int, left: int, top: int) -> Json:
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"x": left, "y": top, "w": panel.width, "h": panel.height},
        "fieldConfig": {
            "defaults": {"unit": panel.unit, **panel.defaults},
            "overrides": list(panel.overrides),
        },
        "options": panel.options,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend or "__auto",
                "format": query.format,
                "instant": query.now,
                "range": not query.now,
                "editorMode": "code",
            }
            for index, query in enumerate(panel.queries)
        ],
        "transformations": list(panel.transformations),
    }
