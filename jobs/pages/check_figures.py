"""Figures of data checks: drift distances of features, changes of rates, histograms before and now."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from jobs.pages.figure_style import BLUE, GREY, INK, ORANGE, RED, blank, list_names, plain
from jobs.retraining.data_checks import LEVELS, CheckResult
from jobs.retraining.raw_partitions import dashed
from jobs.retraining.shapes import Shape

LEVEL_COLOURS = {"ok": BLUE, "warn": ORANGE, "stop": RED}
RATES = {"label rate": "label rate", "nulls": "missing", "out of vocabulary": "unknown"}
"""Labels of rules on rates: rule -> first words of its line."""
MAX_LINES = 40
"""Features in a figure at most; those that moved most are kept."""
MAP_COLOURS = [[0, "#f5f7f9"], [0.5, "#7fa8d4"], [0.5, "#f2b98f"], [1, RED]]
"""Colour scale of distance over limit, from 0 to 2: blue is within the limit, orange and red are beyond."""


def draw_distances(results: Sequence[CheckResult]) -> go.Figure:
    """Draw a bar for each feature, its distance to the datasets before, and a mark for its limit.

    Args:
        results: one a feature, the largest first.
    """
    results = results[:MAX_LINES]
    figure = blank("distance to the datasets before", "")
    for level in LEVELS:
        found = [result for result in results if result.level == level]
        if found:
            figure.add_bar(
                x=[result.value for result in found],
                y=[plain(str(result.feature)) for result in found],
                orientation="h",
                name={"ok": "within its limit", "warn": "beyond: warning", "stop": "beyond: stop"}[level],
                marker={"color": LEVEL_COLOURS[level]},
            )
    names = [plain(str(result.feature)) for result in results]
    stroke = {"symbol": "line-ns", "size": 14, "line": {"color": INK, "width": 2}}
    limits = [result.limit for result in results]
    figure.add_scatter(x=limits, y=names, name="limit", mode="markers", marker=stroke)
    _list(figure, names)
    return figure


def rates(results: Sequence[CheckResult]) -> go.Figure | None:
    """Draw a line for each rate, from before to now, the largest change on top; None: no rate was checked."""
    found = [result for result in results if result.rule in RATES]
    found.sort(key=lambda result: -abs(result.value - (result.reference or 0)))
    found = found[:MAX_LINES]
    if not found:
        return None
    names = [plain(f"{RATES[result.rule]} {result.feature or ''}".strip()) for result in found]
    figure = blank("share of rows", "")
    for name, result in zip(names, found, strict=True):
        if result.reference is not None:
            line = {"color": GREY, "width": 2}
            figure.add_scatter(
                x=[result.reference, result.value], y=[name] * 2, mode="lines", line=line, showlegend=False
            )
    before, now = [result.reference for result in found], [result.value for result in found]
    figure.add_scatter(x=before, y=names, name="before", mode="markers", marker={"size": 9, "color": GREY})
    colours = [LEVEL_COLOURS[result.level] for result in found]
    figure.add_scatter(x=now, y=names, name="now", mode="markers", marker={"size": 9, "color": colours})
    _list(figure, names)
    figure.update_xaxes(tickformat=".0%" if max(now) > 0.1 else ".2%", rangemode="tozero")
    return figure


def shape(found: Shape) -> go.Figure:
    """Draw the histogram of a feature, now and before, as ``jobs.retraining.shapes`` made it."""
    figure = blank("", "share of values")
    names = [plain(name) for name in found.bins]
    for name, shares, colour in (("before", found.reference, GREY), ("now", found.current, BLUE)):
        figure.add_bar(x=names, y=shares, name=name, marker={"color": colour, "line": {"width": 0}})
    figure.update_layout(barmode="group", bargap=0.25, height=280)
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickformat=".0%")
    return figure


def drift_map(drift: Mapping[str, Sequence[CheckResult]]) -> go.Figure:
    """Draw each feature's distance by day over its limit (blue: within, orange and red: beyond), the largest on top."""
    values = {(str(r.feature), date): r for date, results in drift.items() for r in results}
    worst: dict[str, float] = {}
    for (feature, _), result in values.items():
        worst[feature] = max(worst.get(feature, 0.0), _over_limit(result))
    features = sorted(worst, key=lambda feature: -worst[feature])[:MAX_LINES]
    grid = [[values.get((feature, date)) for date in drift] for feature in features]
    figure = blank("", "")
    figure.add_heatmap(
        x=[plain(dashed(date)) for date in drift],
        y=[plain(feature) for feature in features],
        z=[[None if result is None else min(_over_limit(result), 2.0) for result in row] for row in grid],
        text=[["" if r is None else f"{r.rule} {r.value:.4g}, {r.threshold}" for r in row] for row in grid],
        hovertemplate="%{y}, %{x}<br>%{text}<extra></extra>",
        colorscale=MAP_COLOURS,
        zmin=0,
        zmax=2,
        xgap=1,
        ygap=1,
        colorbar={
            "tickvals": [0, 1, 2],
            "ticktext": ["no drift", "limit", "twice or more"],
            "thickness": 12,
            "outlinewidth": 0,
        },
    )
    figure.update_xaxes(type="category", showgrid=False)
    list_names(figure, len(features))
    figure.update_yaxes(showgrid=False)
    figure.update_layout(height=max(200, 70 + 20 * len(features)))
    return figure


def _over_limit(result: CheckResult) -> float:
    return result.value / result.limit if result.limit else 2.0 * (result.value > 0)


def _list(figure: go.Figure, names: Sequence[str]) -> None:
    list_names(figure, len(names))
    figure.update_yaxes(categoryorder="array", categoryarray=list(names))
    figure.update_layout(barmode="overlay", bargap=0.35)
