"""HTML pieces of the report: tables, plots side by side, notes, and the style they share.

Every text that comes from a file is escaped here, so that a feature called ``<script>`` is a name and nothing else.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

LONG = 36
"""Characters of a cell beyond which its text is broken into lines."""
STYLE = """
:root { --ink: #1d2733; --soft: #5c6875; --line: #dfe4ea; --back: #f5f7f9; --accent: #1f5fa8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 19px; margin: 0 0 12px; } h3 { font-size: 14px; margin: 0; }
p { margin: 0 0 10px; } .soft, .note { color: var(--soft); } .note { font-style: italic; }
nav { margin: 10px 0 20px; } nav a { color: var(--accent); text-decoration: none; margin-right: 16px; }
section { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 18px 20px;
  margin-bottom: 18px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; } dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; } dl + .note { margin-top: 12px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin-bottom: 18px; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 22px; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 18px; }
@media (max-width: 800px) { .grid { grid-template-columns: minmax(0, 1fr); } }
.grid > div { min-width: 0; } .grid.wide { grid-template-columns: minmax(0, 1fr); }
.scroll { overflow-x: auto; margin-bottom: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
td.number, th.number { text-align: right; } tbody tr:hover { background: var(--back); }
td.long { white-space: normal; min-width: 200px; overflow-wrap: anywhere; } td { vertical-align: top; }
.mark { font-weight: 600; } .good { color: #2e7d4f; } .fair { color: #c8591a; } .bad { color: #b3261e; }
pre { overflow-x: auto; background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: 12px;
  font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; margin: 0; max-height: 640px; }
"""


def document(title: str, subtitle: str, top: str, sections: Mapping[str, tuple[str, str]]) -> str:
    """A whole page.

    Args:
        title: plain text, as ``subtitle``.
        top: HTML above the sections.
        sections: anchor -> (plain title, HTML).
    """
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, (name, _) in sections.items())
    body = "".join(
        f'<section id="{key}"><h2>{escape(name)}</h2>{content}</section>' for key, (name, content) in sections.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><main><h1>{escape(title)}</h1>"
        f'<p class="soft">{escape(subtitle)}</p><nav>{links}</nav>{top}{body}</main></body></html>\n'
    )


def cards(values: Mapping[str, Any]) -> str:
    """The few numbers to see first: what each is -> its value."""
    found = (f'<div class="card"><b>{text(v)}</b><span>{escape(k)}</span></div>' for k, v in values.items())
    return f'<div class="cards">{"".join(found)}</div>'


def grid(plots: Mapping[str, go.Figure]) -> str:
    """Plots with their titles, side by side where the window allows; a single one takes the whole width."""
    cells = (f"<div><h3>{escape(title)}</h3>{_plot(figure)}</div>" for title, figure in plots.items())
    return f'<div class="grid{" wide" if len(plots) == 1 else ""}">{"".join(cells)}</div>'


def _plot(figure: go.Figure) -> str:
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    height = f"{figure.to_dict()['layout'].get('height', 320)}px"
    return figure.to_html(full_html=False, include_plotlyjs=False, config=config, default_height=height)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; columns with a number in them are aligned to the right."""
    body = [list(row) for row in rows]
    numeric = [any(_is_number(row[i]) for row in body) for i in range(len(header))]
    head = "".join(f"<th{_class(n)}>{escape(h)}</th>" for h, n in zip(header, numeric, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{_class(n, v)}>{_cell(v)}</td>" for v, n in zip(row, numeric, strict=True)) + "</tr>"
        for row in body
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _class(is_number: bool, value: Any = None) -> str:
    if is_number:
        return ' class="number"'
    return ' class="long"' if len(shown(value)) > LONG else ""


def _cell(value: Any) -> str:
    return mark(value) if isinstance(value, Mark) else text(value)


def _is_number(value: Any) -> bool:
    return (isinstance(value, int | float) and not isinstance(value, bool)) or isinstance(value, Percent)


class Percent(str):
    """A share, written as a percentage: text that is aligned like a number."""


def percent(share: float | None) -> Percent | None:
    """A share as a percentage; None stays None."""
    return None if share is None else Percent(f"{100 * share:.2f} %")


class Mark(str):
    """A word that says how something went, in the colour of its tone: good, fair or bad news, or none."""

    tone: str

    def __new__(cls, word: str, tone: str) -> "Mark":
        made = super().__new__(cls, word)
        made.tone = tone
        return made


def mark(word: Mark) -> str:
    return f'<span class="mark {word.tone}">{escape(word)}</span>'


def note(sentence: str) -> str:
    """A remark about something that is not there."""
    return f'<p class="note">{escape(sentence)}</p>'


def text(value: Any) -> str:
    """A value as escaped HTML text."""
    return escape(shown(value))


def shown(value: Any) -> str:
    """A value as a reader wants it: thousands set apart, six digits, a dash for nothing."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
