"""Figures of reports, plans and leaderboards: functions from numbers to Plotly figures."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from jobs.pages.figure_style import (
    BLUE,
    GOLD,
    GREEN,
    GREY,
    INK,
    ORANGE,
    Events,
    blank,
    column,
    list_names,
    plain,
    style,
)

SPLIT_COLOURS = {"train": GREEN, "valid": BLUE, "test": ORANGE}
SERIES_COLOURS = (BLUE, ORANGE, GREEN)
MAX_POINTS = 1_500
"""Points of a curve at most; a longer one is thinned."""


def loss_curve(progress: Events, evaluations: Events) -> go.Figure:
    """Draw the training loss of single steps, and its mean over each epoch, by step."""
    steps = thinned(progress)
    figure = blank("step", "loss")
    figure.add_scatter(x=column(steps, "step"), y=column(steps, "loss"), name="step", line={"color": GREY, "width": 1})
    epochs = [e for e in evaluations if e.get("train_loss") is not None]
    figure.add_scatter(
        x=column(epochs, "step"),
        y=column(epochs, "train_loss"),
        name="epoch mean",
        mode="lines+markers",
        line={"color": BLUE, "width": 2},
    )
    return figure


def metric_curves(evaluations: Events) -> go.Figure:
    """Draw AUC (and GAUC) on the left axis and logloss on the right, by step; a star marks the best."""
    figure = make_subplots(specs=[[{"secondary_y": True}]])
    style(figure, "step", "auc")
    steps = column(evaluations, "step")
    for name, colour, dash in (("auc", BLUE, "solid"), ("gauc", GREEN, "dot")):
        if any(e.get(name) is not None for e in evaluations):
            line = {"color": colour, "dash": dash}
            figure.add_scatter(x=steps, y=column(evaluations, name), name=name, mode="lines+markers", line=line)
    losses, line = column(evaluations, "logloss"), {"color": ORANGE}
    figure.add_scatter(x=steps, y=losses, name="logloss", mode="lines+markers", line=line, secondary_y=True)
    if best := [e for e in evaluations if e.get("best")][-1:]:
        marker = {"symbol": "star", "size": 14, "color": GOLD}
        figure.add_scatter(x=column(best, "step"), y=column(best, "auc"), name="best", mode="markers", marker=marker)
    figure.update_yaxes(title_text="logloss", secondary_y=True, showgrid=False)
    return figure


def ratio_curves(windows: Events) -> go.Figure:
    """Draw NE and calibration by step."""
    figure = blank("step", "ratio")
    for name, colour in (("ne", ORANGE), ("calibration", GREEN)):
        figure.add_scatter(x=column(windows, "step"), y=column(windows, name), name=name, line={"color": colour})
    return figure


def speed_curve(progress: Events) -> go.Figure:
    """Draw rows a second by seconds of training."""
    steps = thinned(progress)
    figure = blank("seconds of training", "rows/s")
    figure.add_scatter(
        x=column(steps, "seconds"), y=column(steps, "rows_per_second"), line={"color": BLUE, "width": 1.5}
    )
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=False)
    return figure


def learning_rate_curve(progress: Events) -> go.Figure:
    """Draw the learning rate of the dense net by step."""
    steps = thinned(progress)
    figure = blank("step", "learning rate")
    line = {"color": BLUE, "shape": "hv"}
    figure.add_scatter(x=column(steps, "step"), y=column(steps, "learning_rate"), line=line)
    figure.update_yaxes(rangemode="tozero", exponentformat="power")
    figure.update_layout(showlegend=False)
    return figure


def roc(curves: Mapping[str, Any]) -> go.Figure:
    """Draw the ROC curve of each split, over the diagonal of chance."""
    figure = blank("false positive rate", "true positive rate")
    for split, curve in curves.items():
        line = {"color": SPLIT_COLOURS.get(split, GREY), "width": 2}
        figure.add_scatter(x=curve["roc"]["fpr"], y=curve["roc"]["tpr"], name=plain(split), mode="lines", line=line)
    figure.add_scatter(x=[0, 1], y=[0, 1], name="chance", mode="lines", line={"color": GREY, "dash": "dot", "width": 1})
    return figure


def reliability(curves: Mapping[str, Any]) -> go.Figure:
    """Draw label rate against mean score over bins of equal weight; calibrated scores lie on the diagonal."""
    figure = blank("mean score of the bin", "label rate of the bin")
    top = 0.0
    for split, curve in curves.items():
        scores = [b["mean_score"] for b in curve["reliability"]]
        rates = [b["label_rate"] for b in curve["reliability"]]
        top = max([top, *scores, *rates])
        line = {"color": SPLIT_COLOURS.get(split, GREY), "width": 1}
        rows = [b["rows"] for b in curve["reliability"]]
        figure.add_scatter(
            x=scores,
            y=rates,
            name=plain(split),
            mode="lines+markers",
            line=line,
            customdata=rows,
            hovertemplate="score %{x:.4f}<br>label rate %{y:.4f}<br>%{customdata:,} rows",
        )
    figure.add_scatter(
        x=[0, top], y=[0, top], name="exact", mode="lines", line={"color": GREY, "dash": "dot", "width": 1}
    )
    return figure


def score_histogram(curve: Mapping[str, Any]) -> go.Figure:
    """Draw the distribution of the scores of each label, each summing to one."""
    histogram = curve["histogram"]
    edges = histogram["edges"]
    figure = blank("score", "share of the label's rows")
    for name, key, colour in (("label 0", "negatives", GREY), ("label 1", "positives", BLUE)):
        total = sum(histogram[key]) or 1.0
        figure.add_bar(
            x=[(a + b) / 2 for a, b in pairwise(edges)],
            y=[count / total for count in histogram[key]],
            width=[b - a for a, b in pairwise(edges)],
            name=name,
            marker={"color": colour, "line": {"width": 0}},
            opacity=0.6,
        )
    figure.update_layout(barmode="overlay", bargap=0)
    return figure


def seconds_by_stage(seconds: Mapping[str, float]) -> go.Figure:
    """Draw a bar for each stage, the first on top."""
    figure = blank("seconds", "")
    values = list(seconds.values())
    figure.add_bar(
        x=values,
        y=[plain(stage) for stage in seconds],
        orientation="h",
        marker={"color": BLUE},
        text=[f"{v:,.1f} s" for v in values],
        textposition="auto",
    )
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(showlegend=False, bargap=0.35)
    return figure


def deviations(rows: Sequence[Mapping[str, Any]], metric: str) -> go.Figure:
    """Draw the mean of a metric by model, best row on top, with its standard deviation over seeds."""
    rows = [row for row in reversed(rows) if row.get(metric) is not None]
    figure = blank(metric.replace("_", " "), "")
    figure.add_scatter(
        x=column(rows, metric),
        y=[plain(row["model"]) for row in rows],
        error_x={"type": "data", "array": [row.get(f"{metric}_std") or 0 for row in rows]},
        mode="markers",
        marker={"size": 9, "color": BLUE},
        showlegend=False,
    )
    return figure


def importance(entries: Events, measure: str, title: str) -> go.Figure:
    """Draw a bar for each feature or branch, the first on top, with its standard deviation over repeats."""
    deviations = column(entries, f"{measure}_std")
    return _bars(column(entries, "name"), column(entries, measure), None if None in deviations else deviations, title)


def variance_shares(parts: Mapping[str, float]) -> go.Figure:
    """Draw a bar for each part of the fused logit: its share of the variance."""
    return _bars(list(parts), list(parts.values()), None, "share of the fused logit's variance")


def gate_means(gate: Mapping[str, Any]) -> go.Figure:
    """Draw a bar for each series of a gate, from 1 to its mean, with its deviation over rows and coordinates."""
    series = gate["series"]
    deviations = [s["deviation"] for s in series.values()]
    figure = _bars(list(series), [s["mean"] - 1 for s in series.values()], deviations, "factor")
    figure.update_traces(base=1)
    figure.update_xaxes(range=[0, gate["top"]])
    return figure


def gate_histogram(gate: Mapping[str, Any]) -> go.Figure:
    """Draw the distribution of a gate over rows, each series summing to one; many series are drawn as one."""
    series = {name: s["histogram"] for name, s in gate["series"].items()}
    if len(series) > len(SERIES_COLOURS):
        series = {
            f"all {len(series)} fields": [sum(counts) / len(series) for counts in zip(*series.values(), strict=True)]
        }
    figure = blank("gate", "share of rows")
    for (name, shares), colour in zip(series.items(), SERIES_COLOURS, strict=False):
        width = gate["top"] / len(shares)
        figure.add_bar(
            x=[(i + 0.5) * width for i in range(len(shares))],
            y=shares,
            width=width,
            name=plain(name),
            marker={"color": colour, "line": {"width": 0}},
            opacity=0.6,
        )
    figure.update_layout(barmode="overlay", bargap=0, showlegend=True)
    figure.update_xaxes(range=[0, gate["top"]])
    return figure


def branch_agreement(p_t: Sequence[Sequence[float]]) -> go.Figure:
    """Draw the share of rows by the probability that each branch gives the row's own class; colours are logarithmic."""
    figure = blank("easy branch: p of the right class", "hard branch: p of the right class")
    centres = [(i + 0.5) / len(p_t) for i in range(len(p_t))]
    ticks = range(-5, 1)
    figure.add_heatmap(
        x=centres,
        y=centres,
        z=[[math.log10(row[j]) if row[j] else None for row in p_t] for j in range(len(p_t))],
        customdata=[[100 * row[j] for row in p_t] for j in range(len(p_t))],
        hovertemplate="easy %{x:.3f}<br>hard %{y:.3f}<br>%{customdata:.3f} % of rows<extra></extra>",
        colorscale="Blues",
        zmin=ticks[0],
        zmax=0,
        colorbar={"title": "rows", "tickvals": list(ticks), "ticktext": [f"{100 * 10**t:g} %" for t in ticks]},
    )
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(range=[0, 1])
    return figure


def by_rank(parts: Mapping[str, Sequence[float]], title: str) -> go.Figure:
    """Draw a bar for each rank, its parts stacked."""
    figure = blank("rank", title)
    for (name, values), colour in zip(parts.items(), (*SERIES_COLOURS, GREY, GOLD), strict=False):
        figure.add_bar(y=values, name=name, marker={"color": colour, "line": {"width": 0}})
    figure.update_layout(barmode="stack", bargap=0.1)
    return figure


def placement(tables: Sequence[str], gibibytes: Sequence[Sequence[float]]) -> go.Figure:
    """Draw the GiB of each table (a line, first on top) on each rank; colours are logarithmic, white: none."""
    figure = blank("rank", "")
    powers = [math.floor(math.log10(size)) for line in gibibytes for size in line if size]
    ticks = range(min(powers), max(powers) + 2)
    figure.add_heatmap(
        y=[plain(name) for name in tables],
        z=[[math.log10(size) if size else None for size in line] for line in gibibytes],
        customdata=gibibytes,
        hovertemplate="%{y} on rank %{x}: %{customdata:.4g} GiB<extra></extra>",
        colorscale="Blues",
        colorbar={"title": "GiB", "tickvals": list(ticks), "ticktext": [f"{10**t:g}" for t in ticks]},
    )
    figure.update_yaxes(autorange="reversed", type="category", dtick=1, ticksuffix="  ")
    figure.update_layout(height=max(320, 80 + 16 * len(tables)))
    return figure


def _bars(names: Sequence[str], values: Sequence[float], deviations: Sequence[float] | None, title: str) -> go.Figure:
    """Draw horizontal bars, the first on top, and set the height by their number."""
    figure = blank(title, "")
    error = None if deviations is None else {"type": "data", "array": deviations, "color": INK, "thickness": 1}
    figure.add_bar(x=values, y=[plain(name) for name in names], orientation="h", marker={"color": BLUE}, error_x=error)
    list_names(figure, len(names))
    figure.update_xaxes(exponentformat="none")
    figure.update_layout(showlegend=False, bargap=0.35)
    return figure


def thinned(events: Events) -> Events:
    """Select at most ``MAX_POINTS`` events, evenly spaced."""
    every = -(-len(events) // MAX_POINTS) or 1
    return events[::every] if every > 1 else events
