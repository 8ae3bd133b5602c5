"""The Grafana dashboard, as code: `python -m monitoring.dashboard > monitoring/dashboard.json`.

Owns which questions the dashboard answers, and by which expressions.
Speaks Grafana's dashboard JSON (schema version 39, Grafana 10.4 and later) and PromQL.
Never names a data source or an instance: whoever imports it chooses both.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

COLUMNS = 24
"""Of Grafana's grid."""
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
NODE = 'instance=~"$instance"'
GREEN, YELLOW, RED = "green", "yellow", "red"


@dataclass(frozen=True)
class Panel:
    """One picture.

    Attributes:
        queries: PromQL by the name that its series have; every expression names `$instance`.
        kind: Grafana's name of it, such as `timeseries` or `stat`.
        width: in columns of 24.
        steps: from which value on which colour; the first one has no value.
        words: values that are shown as a word in a colour.
        options: Grafana's options of this kind.
        custom: how a time series is drawn.
    """

    title: str
    says: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    steps: tuple[tuple[str, float | None], ...] = ((GREEN, None),)
    words: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    custom: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """Panels that answer one question."""

    title: str
    panels: tuple[Panel, ...]


def metric(name: str, *labels: str) -> str:
    """A metric of the node that was chosen, and those of its labels that matter."""
    return f"anatomynode_{name}{{{', '.join((NODE, *labels))}}}"


def summed(expr: str, by: str = "") -> str:
    """Over all instances that were chosen."""
    return f"sum by ({by}) ({expr})" if by else f"sum({expr})"


def total(name: str, *labels: str, by: str = "") -> str:
    """A gauge, or a counter since the listener started."""
    return summed(metric(name, *labels), by)


def grown(name: str, window: str, *labels: str, by: str = "") -> str:
    """By how much a counter has grown."""
    return summed(f"increase({metric(name, *labels)}[{window}])", by)


def speed(name: str) -> str:
    """How fast a counter grows, a second."""
    return summed(f"rate({metric(name)}[$__rate_interval])")


def quantile(share: float, name: str, by: str, *labels: str) -> str:
    """A quantile of a histogram, over the chosen window."""
    rates = summed(f"rate({metric(f'{name}_bucket', *labels)}[$window])", f"{by}, le")
    return f"histogram_quantile({share}, {rates})"


def mean(name: str, by: str, *labels: str) -> str:
    """The mean of a histogram's observations, over the chosen window."""
    parts = (grown(f"{name}_{part}", "$window", *labels, by=by) for part in ("sum", "count"))
    return " / ".join(parts)


def age(name: str) -> str:
    """Seconds since a moment that a metric tells."""
    return f"time() - {metric(name)}"


def stat(title: str, says: str, expr: str, unit: str = "short", **how: Any) -> Panel:
    """One number, now."""
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "graphMode": "none"}
    return Panel(title, says, {"__auto": expr}, unit, "stat", 3, 4, options=options, **how)


def turnaround(title: str, says: str, since: str) -> Panel:
    """Median and 95th percentile to each destination."""
    return Panel(
        title,
        says,
        {
            f"{{{{destination}}}} {word}": quantile(share, "turnaround_seconds", "destination", since)
            for word, share in (("median", 0.5), ("p95", 0.95))
        },
        "s",
    )


STACKED = {"stacking": {"mode": "normal"}, "fillOpacity": 60, "lineWidth": 0}
BARS = {"drawStyle": "bars", **STACKED}
RED_FROM_1, YELLOW_FROM_1 = ((GREEN, None), (RED, 1.0)), ((GREEN, None), (YELLOW, 1.0))
GIB = float(1 << 30)
SINCE_FIRST, SINCE_LAST = 'since="first_slice"', 'since="last_slice"'
BEFORE, AFTER = 'stage!~"sending|committed"', 'stage=~"sending|committed"'
ENDS, UNDER_WAY = 'state=~"SENT|REJECTED|FAILED|HELD|IGNORED|CANCELLED"', 'state=~"QUEUED|RUNNING|READY|HELD"'
FAILED, HELD, WAITS = 'state="FAILED"', 'state="HELD"', 'state=~"PENDING|HELD|REFUSED"'

IS_IT_WELL = Row(
    "Is it well?",
    (
        stat(
            "Listener",
            "Whether the node answers the scrape.",
            f'up{{job="anatomynode", {NODE}}}',
            words={"1": ("up", GREEN), "0": ("down", RED)},
        ),
        stat(
            "Worker's last sign of life",
            "Above 60 s nothing is contoured.",
            metric("worker_heartbeat_age_seconds"),
            "s",
            steps=((GREEN, None), (RED, 60.0)),
        ),
        stat(
            "Oldest waiting job",
            "How long it has waited for the worker.",
            metric("queue_age_seconds"),
            "s",
            steps=((GREEN, None), (YELLOW, 120.0), (RED, 600.0)),
        ),
        stat(
            "FAILED in 24 h",
            "Somebody must look: anatomynode jobs.",
            grown("job_transitions_total", "24h", FAILED),
            steps=RED_FROM_1,
        ),
        stat(
            "Held for a person",
            "Jobs, and results for single destinations.",
            f"{total('jobs', HELD)} + {total('deliveries', HELD)}",
            steps=YELLOW_FROM_1,
        ),
        stat(
            "Destinations not reached",
            "When they were last tried.",
            summed(f"1 - {metric('destination_reachable')}"),
            steps=RED_FROM_1,
        ),
        stat(
            "Free above the reserve",
            "At 0 slices are refused.",
            f"{metric('storage_free_bytes')} - {metric('storage_reserve_bytes')}",
            "bytes",
            steps=((RED, None), (YELLOW, GIB), (GREEN, 8 * GIB)),
        ),
        stat(
            "Runs on a GPU",
            "What the network really runs on.",
            metric("worker_gpu_used"),
            words={"1": ("yes", GREEN), "0": ("no", YELLOW)},
        ),
    ),
)

HOW_LONG = Row(
    "How long until the contours are there?",
    (
        turnaround("From the last slice", "Without what waited for a person.", SINCE_LAST),
        turnaround("From the first slice", "The scanner's own time counts, too.", SINCE_FIRST),
        Panel(
            "Where the time goes until a result is ready",
            "Mean of each stage; on top of each other the whole way.",
            {"{{stage}}": mean("stage_seconds", "stage", BEFORE)},
            "s",
            custom=STACKED,
        ),
        Panel(
            "And after that",
            "Mean time until a destination has stored a result, and committed itself to it.",
            {"{{destination}} {{stage}}": mean("stage_seconds", "destination, stage", AFTER)},
            "s",
        ),
        Panel(
            "Parts of waiting and inference, 95th percentile",
            "Completeness waits for evidence; forward is the network.",
            {"{{step}}": quantile(0.95, "step_seconds", "step")},
            "s",
        ),
        Panel(
            "Median from the last slice, by model",
            "Where more than one has run.",
            {"{{model}}": quantile(0.5, "turnaround_seconds", "model", SINCE_LAST)},
            "s",
        ),
    ),
)

WHAT_BECAME = Row(
    "What became of the series?",
    (
        Panel(
            "Jobs that came to an end, or to a person",
            "In the hour before.",
            {"{{state}}": grown("job_transitions_total", "1h", ENDS, by="state")},
            custom=BARS,
        ),
        Panel(
            "Jobs under way",
            "At that moment.",
            {"{{state}}": total("jobs", UNDER_WAY, by="state")},
            custom=STACKED,
        ),
        Panel(
            "Reasons",
            "Of all jobs, by the word of their reason.",
            {"jobs": total("jobs_by_reason", by="state, reason")},
            kind="table",
        ),
        Panel(
            "Age of the oldest waiting job",
            "Grows while the worker does not keep up.",
            {"{{instance}}": metric("queue_age_seconds")},
            "s",
        ),
        Panel(
            "Worker busy",
            "Share of the time in which a job is contoured.",
            {"{{instance}}": f"avg_over_time({metric('worker_busy')}[$window])"},
            "percentunit",
        ),
        Panel("Series", "RECEIVING: slices may still come.", {"{{state}}": total("series", by="state")}),
    ),
)

WHAT_COMES = Row(
    "What comes in, and what is turned away?",
    (
        Panel(
            "Instances a second",
            "New ones, those that were here already, and those of classes that are thrown away.",
            {
                "new": speed("instances_received_total"),
                "again": speed("instances_received_again_total"),
                "discarded": speed("instances_discarded_total"),
            },
            "cps",
        ),
        Panel("Bytes a second", "Of new ones.", {"new": speed("instance_bytes_received_total")}, "Bps"),
        Panel(
            "Associations",
            "Open at that moment, and let in.",
            {"open": total("associations_open"), "a minute": f"60 * {speed('associations_accepted_total')}"},
        ),
        Panel(
            "Associations refused",
            "By reason, since the listener started.",
            {"{{reason}}": total("associations_refused_total", by="reason")},
        ),
        Panel(
            "Instances refused",
            "By status, since the listener started.",
            {"{{status}}": total("instances_refused_total", by="status")},
        ),
        Panel(
            "Connections ended by a limit",
            "By reason, since the listener started.",
            {"{{reason}}": total("connections_dropped_total", by="reason")},
        ),
    ),
)

DESTINATIONS = Row(
    "Do the destinations take the results?",
    (
        Panel(
            "Reached when last tried",
            "Whatever they answered.",
            {"{{destination}}": metric("destination_reachable")},
            kind="state-timeline",
            words={"1": ("yes", GREEN), "0": ("no", RED)},
        ),
        Panel(
            "Since they last answered",
            "One to which nothing goes grows old in peace.",
            {
                "{{destination}} answered": age("destination_last_reached_timestamp_seconds"),
                "{{destination}} stored": age("delivery_last_success_timestamp_seconds"),
            },
            "s",
        ),
        Panel(
            "Deliveries that wait",
            "PENDING is tried again, HELD waits for a person, REFUSED for somebody who mends it.",
            {"{{destination}} {{state}}": total("deliveries", WAITS, by="destination, state")},
        ),
        Panel(
            "Oldest delivery that is not stored",
            "A person is told after retry.alert_after_s.",
            {"{{destination}}": metric("delivery_pending_age_seconds")},
            "s",
        ),
        Panel(
            "Failures in a row",
            "Of the delivery that failed most often.",
            {"{{destination}}": metric("delivery_consecutive_failures")},
        ),
        Panel(
            "Storage commitment",
            "Stored and not yet committed; reported as not kept in the hour before.",
            {
                "{{destination}} waiting": metric("commitment_waiting"),
                "{{destination}} not kept": grown("commitment_failures_total", "1h", by="destination"),
            },
        ),
    ),
)

DRIFT = Row(
    "Do the contours drift?",
    (
        Panel(
            "Median volume, cm3",
            "Where this moves, the patients, a scanner or the network have changed.",
            {"{{structure}}": quantile(0.5, "structure_volume_cm3", "structure")},
            width=12,
        ),
        Panel(
            "Mean confidence",
            "The Dice to be expected.",
            {"{{structure}}": mean("structure_confidence", "structure")},
            width=12,
        ),
        Panel(
            "Flags",
            "Share of the patients, by structure and flag.",
            {
                "{{structure}} {{flag}}": grown("structure_flags_total", "$window", by="structure, flag")
                + " / on (structure) group_left () "
                + grown("structures_total", "$window", by="structure")
            },
            "percentunit",
            width=12,
        ),
        Panel(
            "A candidate's agreement",
            "Mean Dice with the model that runs, of all series so far; empty without a candidate.",
            {
                "{{version}} {{structure}}": total("shadow_dice_sum", by="version, structure")
                + " / "
                + total("shadow_dice_count", by="version, structure")
            },
            width=8,
        ),
        Panel(
            "Series with a candidate",
            "On which it was compared, and on which it could not be.",
            {
                "{{version}} compared": total("shadow_compared_series", by="version"),
                "{{version}} failed": total("shadow_failed_series", by="version"),
            },
            width=4,
        ),
        Panel(
            "Constancy",
            "Points that did not hold, and drifts, at the weekly check.",
            {
                "failed points": metric("constancy_failed_points"),
                "drifts": metric("constancy_drifts"),
                "days since": f"({age('constancy_last_run_timestamp_seconds')}) / 86400",
            },
            width=12,
        ),
    ),
)

MACHINE = Row(
    "The machine",
    (
        Panel(
            "Disk",
            "Below the reserve slices are refused.",
            {
                "free": metric("storage_free_bytes"),
                "reserve": metric("storage_reserve_bytes"),
                "removed in a day ({{cause}})": grown("bytes_removed_total", "1d", by="cause"),
            },
            "bytes",
        ),
        Panel(
            "Memory",
            "The worker's peak, of it the series that are arriving, and the listener.",
            {
                "worker, peak": metric("worker_peak_memory_bytes"),
                "arriving": metric("worker_open_series_bytes"),
                "listener": metric("listener_process_resident_memory_bytes"),
            },
            "bytes",
        ),
        Panel(
            "Listener's CPU",
            "Share of a core.",
            {"listener": speed("listener_process_cpu_seconds_total")},
            "percentunit",
        ),
        Panel("Certificates", "Days left.", {"{{name}}": metric("certificate_days_left")}, "d"),
        Panel(
            "Versions",
            "Program, model and device.",
            {"program": metric("build_info"), "worker": metric("worker_info")},
            kind="table",
            width=16,
        ),
    ),
)

ROWS = (IS_IT_WELL, HOW_LONG, WHAT_BECAME, WHAT_COMES, DESTINATIONS, DRIFT, MACHINE)


def expressions() -> list[str]:
    """Every expression, as Grafana has it, with its variables."""
    return [expr for row in ROWS for panel in row.panels for expr in panel.queries.values()]


def dashboard() -> dict[str, Any]:
    """The whole, as Grafana imports it."""
    return {
        "title": "AnatomyNode",
        "uid": "anatomynode",
        "description": "Contour turnaround, reception, destinations and drift of an AnatomyNode.",
        "tags": ["anatomynode", "dicom", "radiotherapy"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-24h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _variables()},
        "panels": list(_panels(ROWS)),
    }


def _variables() -> list[dict[str, Any]]:
    return [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Node",
            "type": "query",
            "datasource": DATA_SOURCE,
            "query": {"query": "label_values(anatomynode_build_info, instance)", "refId": "instance"},
            "refresh": 2,
            "includeAll": True,
            "multi": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
        {
            "name": "window",
            "label": "Averaged over",
            "type": "custom",
            "query": "1h,6h,1d,7d",
            "current": {"text": "6h", "value": "6h"},
            "options": [
                {"text": text, "value": text, "selected": text == "6h"} for text in ("1h", "6h", "1d", "7d")
            ],
        },
    ]


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Rows below each other; panels from left to right, and on where the width is used up."""
    number, y = 1, 0
    for row in rows:
        place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        number, y, x, height = number + 1, y + 1, 0, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, height = 0, y + height, 0
            yield _panel(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            number, x, height = number + 1, x + panel.width, max(height, panel.height)
        y += height


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    steps = [{"color": color, "value": value} for color, value in panel.steps]
    words = {value: {"text": word, "color": color} for value, (word, color) in panel.words.items()}
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [{"type": "value", "options": words}] if words else [],
    }
    if panel.kind == "timeseries":
        defaults["custom"] = {"showPoints": "never", "spanNulls": True, **panel.custom}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "gridPos": dict(place),
        "datasource": DATA_SOURCE,
        "targets": [
            _target(panel, letter, name, expr)
            for letter, (name, expr) in zip("ABCDEFGH", panel.queries.items(), strict=False)
        ],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": dict(panel.options),
        **({"transformations": _TABLE} if panel.kind == "table" else {}),
    }


_TABLE = [
    {"id": "merge", "options": {}},
    {"id": "organize", "options": {"excludeByName": {"Time": True, "__name__": True, "job": True}}},
]


def _target(panel: Panel, letter: str, name: str, expr: str) -> dict[str, Any]:
    target = {"refId": letter, "datasource": DATA_SOURCE, "expr": expr, "legendFormat": name}
    is_table = panel.kind == "table"
    return {**target, "format": "table", "instant": True} if is_table else {**target, "range": True}


def text() -> str:
    """The JSON, as it is committed."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    print(text(), end="")  # noqa: T201 (its output is the file)
