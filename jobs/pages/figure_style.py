"""What all figures share: colours, type and margins, and how names and dates are written in them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from jobs.retraining.raw_partitions import date_of

BLUE, ORANGE, GREEN, GREY, GOLD, RED = "#1f5fa8", "#c8591a", "#2e7d4f", "#9aa3ad", "#b8860b", "#b3261e"
INK = "#1d2733"

Events = Sequence[Mapping[str, Any]]


def blank(x: str, y: str) -> go.Figure:
    """A figure with nothing in it but its axes' titles."""
    figure = go.Figure()
    style(figure, x, y)
    return figure


def style(figure: go.Figure, x: str, y: str) -> None:
    """Make a figure look as all others do."""
    figure.update_layout(
        template="plotly_white",
        height=320,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        hovermode="closest",
    )
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)


def column(events: Events, name: str) -> list[Any]:
    """One value of every event, None where it has none."""
    return [event.get(name) for event in events]


def list_names(figure: go.Figure, num_names: int) -> None:
    """Write every name at the left, the first on top; the more names, the taller the figure."""
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, ticksuffix="  ")
    figure.update_layout(height=max(320, 80 + 20 * num_names))


def plain(name: str) -> str:
    """A name for Plotly's texts, which are HTML of a kind: tags in it are shown, not obeyed."""
    return escape(name, quote=False)


def dashed(name: str) -> str:
    """A partition's name as a person writes its date: 20141028 is 2014-10-28, 2014102805+1 is 2014-10-28 05+1."""
    date = date_of(name)
    if not date.isdigit() or len(date) not in (6, 8, 10):
        return name
    day = "-".join(part for part in (date[:4], date[4:6], date[6:8]) if part)
    return f"{day} {date[8:]}".rstrip() + name.removeprefix(date)
