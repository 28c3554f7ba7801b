"""The frame of our reports: one HTML page without scripts, fonts or requests. Texts are escaped.

What a report says is its own module's (`lab.evaluation.page`, `lab.load.page`); its pictures are
`lab.reports.svg`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest

_CSS = """
:root {
  color-scheme: light dark; --text: #1b2530; --soft: #55606b;
  --line: #d9dfe5; --strong: #9aa5b1; --ours: #fbeeec; --page: #fff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --text: #e4e8ec; --soft: #9aa6b2; --line: #313a44; --strong: #5b6673; --ours: #43251f; --page: #15191e;
  }
}
body {
  font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page);
  max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
}
h1 { font-size: 1.5rem; }
h2 { font-size: 1.2rem; margin-top: 3rem; border-top: 2px solid var(--text); padding-top: .8rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; } a { color: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
th, td { white-space: nowrap; }
th { border-bottom: 2px solid var(--strong); }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
tr.ours { font-weight: 600; background: var(--ours); } tr.beaten { color: var(--soft); }
svg { width: 100%; min-width: 720px; height: auto; }
p.note { margin: .3rem 0; } .small { color: var(--soft); font-size: 12px; }
"""


def document(title: str, body: str) -> str:
    """The whole page; `body` is HTML, `title` is not."""
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


class Html(str):
    """Text that is HTML already, so that it is not escaped again."""

    __slots__ = ()


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *texts: str, styles: Sequence[str] = ()
) -> str:
    """A table that scrolls if it is too wide. The columns `texts` are left-aligned.

    `styles` gives the CSS class of each row, such as "ours"; without it all rows are plain.
    """
    kinds = [' class="text"' if column in texts else "" for column in columns]
    head = _cells("th", columns, kinds)
    body = "\n".join(
        f'<tr class="{style}">{_cells("td", row, kinds)}</tr>'
        for row, style in zip_longest(rows, styles, fillvalue="")
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cells(tag: str, row: Sequence[str], kinds: Sequence[str]) -> str:
    texts = (cell if isinstance(cell, Html) else escape(cell) for cell in row)
    return "".join(f"<{tag}{kind}>{text}</{tag}>" for text, kind in zip(texts, kinds, strict=True))


def picture(svg: str) -> str:
    return f'<div class="scroll">{svg}</div>'


def small(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
