"""Figures by day: metrics of candidate and champion, and statistics of the data."""

from collections.abc import Sequence
from typing import Literal

import plotly.graph_objects as go

from jobs.pages.figure_style import BLUE, GOLD, GREEN, GREY, INK, ORANGE, RED, blank, plain
from jobs.retraining.partition_status import PartitionStatus
from jobs.retraining.raw_partitions import dashed
from jobs.retraining.status_files import Outcome

LINE_COLOURS = (BLUE, ORANGE, GREEN, GOLD, "#6b4c9a", INK)
AIMS = {"calibration": 1.0}
"""Ideal values: metric -> value."""


def metric_by_day(outcomes: Sequence[Outcome], metric: str) -> go.Figure:
    """Draw a metric of candidate and champion on each day that neither had seen; a cross: a refused candidate."""
    figure = blank("", metric)
    days = [plain(dashed(outcome.day or "")) for outcome in outcomes]
    for side, colour, dash in (("champion", GREY, "dot"), ("candidate", BLUE, "solid")):
        values = [outcome.metrics.get(side, {}).get(metric) for outcome in outcomes]
        marks = [side == "candidate" and outcome.verdict == "refused" for outcome in outcomes]
        figure.add_scatter(
            x=days,
            y=values,
            name=side,
            mode="lines+markers",
            connectgaps=True,
            line={"color": colour, "dash": dash, "width": 2},
            marker={
                "size": [10 if mark else 7 for mark in marks],
                "symbol": ["x" if mark else "circle" for mark in marks],
                "color": [RED if mark else colour for mark in marks],
            },
            customdata=[outcome.verdict for outcome in outcomes],
            hovertemplate=f"{side}, %{{x}}: %{{y:.6g}} (%{{customdata}})<extra></extra>",
        )
    if metric in AIMS:
        figure.add_hline(y=AIMS[metric], line={"color": GREY, "width": 1})
    return _by_day(figure, days)


def rows_by_day(partitions: Sequence[PartitionStatus]) -> go.Figure:
    """Draw a bar for each partition; red: stopped by data checks."""
    figure = blank("", "rows")
    days = [plain(dashed(partition.name)) for partition in partitions]
    colours = [RED if partition.state == "stopped" else BLUE for partition in partitions]
    figure.add_bar(x=days, y=[partition.rows for partition in partitions], marker={"color": colours})
    figure.update_layout(bargap=0.35)
    return _by_day(figure, days)


def label_rate_by_day(partitions: Sequence[PartitionStatus]) -> go.Figure:
    """Draw the label rate of each partition; a red cross: stopped by data checks."""
    figure = blank("", "label rate")
    days = [plain(dashed(partition.name)) for partition in partitions]
    is_stopped = [partition.state == "stopped" for partition in partitions]
    figure.add_scatter(
        x=days,
        y=[partition.label_rate for partition in partitions],
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
        marker={
            "size": [10 if stopped else 7 for stopped in is_stopped],
            "symbol": ["x" if stopped else "circle" for stopped in is_stopped],
            "color": [RED if stopped else BLUE for stopped in is_stopped],
        },
    )
    figure.update_yaxes(rangemode="tozero")
    return _by_day(figure, days)


def rates_by_day(partitions: Sequence[PartitionStatus], what: Literal["null_rates", "oov_rates"]) -> go.Figure:
    """Draw the share of missing or of unknown values by day, for the features where it changes most."""
    rates: dict[str, list[float]] = {}
    for partition in partitions:
        for name, rate in getattr(partition, what).items():
            rates.setdefault(name, []).append(rate)
    moving = sorted((n for n in rates if any(rates[n])), key=lambda name: min(rates[name]) - max(rates[name]))
    figure = blank("", {"null_rates": "without a value", "oov_rates": "not in the vocabulary"}[what])
    days = [plain(dashed(partition.name)) for partition in partitions]
    for name, colour in zip(moving, LINE_COLOURS, strict=False):
        values = [getattr(partition, what).get(name) for partition in partitions]
        line = {"color": colour, "width": 2}
        figure.add_scatter(x=days, y=values, name=plain(name), mode="lines+markers", line=line)
    figure.update_yaxes(rangemode="tozero", tickformat=".0%")
    figure.update_layout(showlegend=True)
    return _by_day(figure, days)


def _by_day(figure: go.Figure, days: Sequence[str]) -> go.Figure:
    """Set the x axis to all days in order, at equal distances, even those without a value."""
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=list(days))
    figure.update_layout(height=260)
    return figure
