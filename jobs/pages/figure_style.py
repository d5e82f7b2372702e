"""Style of all figures: colours, type and margins, and how names are written in them."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from jobs.retraining.raw_partitions import dashed as dashed

BLUE, ORANGE, GREEN, GREY, GOLD, RED = "#1f5fa8", "#c8591a", "#2e7d4f", "#9aa3ad", "#b8860b", "#b3261e"
INK = "#1d2733"

Events = Sequence[Mapping[str, Any]]


def blank(x: str, y: str) -> go.Figure:
    """Make a figure with nothing in it but its axes' titles."""
    figure = go.Figure()
    style(figure, x, y)
    return figure


def style(figure: go.Figure, x: str, y: str) -> None:
    """Set margins, type, legend and axis titles as in every other figure."""
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
    """Collect one value of every event, None where it has none."""
    return [event.get(name) for event in events]


def list_names(figure: go.Figure, num_names: int) -> None:
    """Write every name at the left, the first on top; the more names, the taller the figure."""
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, ticksuffix="  ")
    figure.update_layout(height=max(320, 80 + 20 * num_names))


def plain(name: str) -> str:
    """Escape a name for Plotly's texts, which are HTML of a kind: tags in it are shown, not obeyed."""
    return escape(name, quote=False)
