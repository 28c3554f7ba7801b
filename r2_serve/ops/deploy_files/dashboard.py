"""The Grafana dashboard, laid out from the rows of panels in `templates/panels.yaml`."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from r2_serve.ops.deploy_files.templates import Object, render, template

SIZE, PER_ROW = 8, 3
"""Width and height of a panel in cells of Grafana's grid (24 wide); panels in a line."""
WINDOW = "$__rate_interval"
"""Grafana's own variable: at least four scrapes."""
QUANTILES = (0.5, 0.95, 0.99)
PANEL_DEFAULTS = {"kind": "timeseries", "says": "", "stacked": False}


def dashboard() -> Object:
    """Grafana's JSON, for its provisioning, its import page, or a ConfigMap that its sidecar reads."""
    return render("dashboard.yaml", panels=list(_laid_out(yaml.safe_load(template("panels.yaml")))))


def _laid_out(rows: list[Object]) -> Iterator[Object]:
    number = y = 0
    for row in rows:
        number += 1
        yield render("row.yaml", number=number, title=row["title"], y=y)
        y += 1
        for index, panel in enumerate(row["panels"]):
            number += 1
            x, below = SIZE * (index % PER_ROW), SIZE * (index // PER_ROW)
            yield _drawn(PANEL_DEFAULTS | panel, number=number, x=x, y=y + below)
        y += SIZE * -(-len(row["panels"]) // PER_ROW)


def _drawn(panel: Object, **place: int) -> Object:
    opacity, stacking = (30, "normal") if panel["stacked"] else (0, "none")
    looks = render("looks.yaml", opacity=opacity, stacking=stacking)
    is_series = panel["kind"] == "timeseries"
    queries = [
        {"ref": chr(ord("A") + index), "legend": legend, "expr": expr}
        for index, (legend, expr) in enumerate(_queries(panel).items())
    ]
    panel |= looks[panel["kind"]] | {"queries": queries, "is_series": is_series, "is_instant": not is_series}
    return render("panel.yaml", **panel, **place)


def _queries(panel: Object) -> dict[str, str]:
    """The queries by legend; a histogram's quantiles if the panel names one."""
    if "quantiles_of" not in panel:
        return {**panel["queries"]}
    buckets = f"sum by (le) (rate({panel['quantiles_of']}[{WINDOW}]))"
    return {f"p{round(q * 100)}": f"histogram_quantile({q}, {buckets})" for q in QUANTILES}
