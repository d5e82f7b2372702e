"""Style of all figures: colours, fonts, margins, and the escaping of names."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from jobs.retraining.raw_partitions import dashed as dashed

BLUE, ORANGE, GREEN, GREY, GOLD, RED = "#1f5fa8", "#c8591a", "#2e7d4f", "#9aa3ad", "#b8860b", "#b3261e"
INK = "#1d2733"

Events = Sequence[Mapping[str, Any]]


def blank(x: str, y: str) -> go.Figure:
    """Make an empty figure with titled axes."""
    figure = go.Figure()
    style(figure, x, y)
    return figure


def style(figure: go.Figure, x: str, y: str) -> None:
    """Set the common margins, font and legend, and the axes' titles."""
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
    """Collect one value of every event; None where an event lacks it."""
    return [event.get(name) for event in events]


def list_names(figure: go.Figure, num_names: int) -> None:
    """Show every name on the y axis, the first on top, and set the height by their number."""
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, ticksuffix="  ")
    figure.update_layout(height=max(320, 80 + 20 * num_names))


def plain(name: str) -> str:
    """Escape a name for Plotly's texts, which interpret some HTML tags."""
    return escape(name, quote=False)
