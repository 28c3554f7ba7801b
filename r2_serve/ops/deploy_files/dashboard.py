"""Grafana's JSON of the rows in `panels`, with the data source as a variable, so that it imports anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from r2_serve.ops.deploy_files.panels import ROWS, Panel, Row

SCHEMA_VERSION = 39
"""Of Grafana 11; newer ones migrate it as they load it."""
WIDTH, HEIGHT, PER_ROW = 8, 8, 3
SOURCE = {"type": "prometheus", "uid": "${source}"}


def dashboard() -> dict[str, Any]:
    """For Grafana's provisioning, its import page, or a ConfigMap that its sidecar reads."""
    return {
        "uid": "r2-router",
        "title": "R2 router",
        "tags": ["r2", "ray"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {
                    "name": "source",
                    "label": "Prometheus",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {},
                    "hide": 0,
                }
            ]
        },
        "annotations": {"list": []},
        "panels": list(_layout()),
    }


def _layout() -> Iterator[dict[str, Any]]:
    number = top = 0
    for row in ROWS:
        number += 1
        yield _heading(row, number, top)
        top += 1
        for place, panel in enumerate(row.panels):
            number += 1
            at = {
                "x": WIDTH * (place % PER_ROW),
                "y": top + HEIGHT * (place // PER_ROW),
                "w": WIDTH,
                "h": HEIGHT,
            }
            yield _panel(panel, number, at)
        top += HEIGHT * -(-len(row.panels) // PER_ROW)


def _heading(row: Row, number: int, top: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": row.title,
        "collapsed": False,
        "panels": [],
        "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
    }


def _panel(panel: Panel, number: int, at: dict[str, int]) -> dict[str, Any]:
    drawn = {
        "lineWidth": 1,
        "fillOpacity": 30 if panel.is_stacked else 0,
        "stacking": {"mode": "normal" if panel.is_stacked else "none"},
    }
    instant = panel.kind != "timeseries"
    options: dict[str, Any] = {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi"},
    }
    if instant:
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": at,
        "fieldConfig": {
            "defaults": {"unit": panel.unit, "min": 0, "custom": {} if instant else drawn},
            "overrides": [],
        },
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": expr,
                "legendFormat": legend,
                "instant": instant,
                "range": not instant,
            }
            for i, (legend, expr) in enumerate(panel.queries.items())
        ],
    }
