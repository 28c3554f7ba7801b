"""Tables for terminals show every figure, also in 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from r2_serve.lab.reports.terminal import figures_table

ROW = (
    "datashunt:gpt-6-luna,deepseek-v4-pro",
    "100.0 %",
    "64.6-100.0",
    "$0.0151",
    "3,466.3 %",
    "2,981.2 %",
    "$0.0151",
)


def test_long_names_fold_so_that_no_figure_is_cut() -> None:
    columns = ("policy", "accuracy", "95 % CI", "total", "% of ref", "workers", "API")
    out = io.StringIO()
    Console(file=out, width=80).print(figures_table(columns, [ROW], has_edge=False))
    printed = out.getvalue()
    assert "…" not in printed
    assert all(figure in printed for figure in ROW[1:])
