"""Pictures of reports, as SVG text for an HTML page. Import it only to make a report: matplotlib is heavy.

Texts, axes and grid take the page's text colour, and the background is the page's, so that they fit light and
dark.
"""

from __future__ import annotations

import io
from html import escape
from typing import Any

from matplotlib.figure import Figure

_INK = "#010203"
"""Stands for the page's text colour."""
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "r2",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), _INK),
}
"""Settings for `matplotlib.rc_context`."""


def svg(figure: Figure, label: str) -> str:
    """The `<svg>` element alone."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue().replace(_INK, "currentColor")
    return text[text.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
