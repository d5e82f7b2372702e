"""What ``tests.benchmarks.retraining_curve`` found, as JSON, CSV, a picture and a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from features.disk.atomic import write_json

Days = Sequence[Mapping[str, Any]]
MODELS = {"warm": "#1f5fa8", "scratch": "#c8591a", "stale": "#9aa3ad"}
"""Model -> its colour."""
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 300, 60, 40


def summarise(found: Mapping[int, Days], settings: Mapping[str, Any], output: Path) -> str:
    """Write OUTPUT.json, OUTPUT.csv and OUTPUT.svg; returns the table.

    Args:
        found: seed -> what happened on each day.
    """
    window = settings["window"]
    seeds = {seed: compare(days, window) for seed, days in found.items() if len(days) > window}
    output.parent.mkdir(parents=True, exist_ok=True)
    days = {str(seed): list(of_seed) for seed, of_seed in found.items()}
    write_json(output.with_suffix(".json"), {"settings": settings, "seeds": seeds, "days": days})
    _write_csv(output.with_suffix(".csv"), found)
    output.with_suffix(".svg").write_text(draw(found), encoding="utf-8")
    lines = ["| seed | days | " + " | ".join(HEADERS) + " |", "|---" * (len(HEADERS) + 2) + "|"]
    lines += [
        f"| {seed} | {len(found[seed])} | " + " | ".join(f"{values[h]:.5g}" for h in HEADERS) + " |"
        for seed, values in seeds.items()
    ]
    return "\n".join(lines)


HEADERS = (
    "warm logloss", "scratch logloss", "stale logloss", "oracle logloss", "warm AUC", "scratch AUC",
    "warm minus scratch", "standard error", "share of rows",
)  # fmt: skip


def compare(days: Days, window: int) -> dict[str, float]:
    """Means over the days from the first full window on, and both models' rows over all days."""
    full = [day for day in days if day["day"] >= window]
    means = {
        f"{model} {title}": float(np.mean([day[model][metric] for day in full]))
        for model in (*MODELS, "oracle")
        for title, metric in (("logloss", "logloss"), ("AUC", "auc"))
    }
    differences = np.array([day["warm"]["logloss"] - day["scratch"]["logloss"] for day in full])
    return {
        **means,
        "warm minus scratch": float(differences.mean()),
        "standard error": float(differences.std(ddof=1) / np.sqrt(len(differences))) if len(full) > 1 else float("nan"),
        "share of rows": days[-1]["warm"]["total_rows"] / days[-1]["scratch"]["total_rows"],
    }


def _write_csv(path: Path, found: Mapping[int, Days]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "day", "model", "logloss", "auc", "calibration", "rows", "total_rows"])
        for seed, days in found.items():
            for day in days:
                for model in (*MODELS, "oracle"):
                    values = day.get(model, {})
                    names = ("logloss", "auc", "calibration", "rows", "total_rows")
                    writer.writerow([seed, day["day"], model, *(values.get(name, "") for name in names)])


def draw(found: Mapping[int, Days]) -> str:
    """How much each model's logloss on the next day is above the oracle's, day by day; the mean over the seeds."""
    lines = {model: _excess(found, model) for model in MODELS}
    last = max((day for line in lines.values() for day, _ in line), default=1)
    top = max((value for line in lines.values() for _, value in line if line), default=1.0)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')

    def place(day: float, value: float) -> tuple[float, float]:
        across = LEFT + (day - 1) / max(1, last - 1) * (WIDTH - LEFT - 20)
        return round(across, 1), round((HEIGHT - BOTTOM) - value / top * (HEIGHT - BOTTOM - 30), 1)

    for step in range(5):
        value = top * step / 4
        x, y = place(1, value)
        parts.append(f'<line x1="{x}" x2="{WIDTH - 20}" y1="{y}" y2="{y}" stroke="#dde1e6"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" font-size="11" text-anchor="end">{value:.3f}</text>')
    for day in sorted({1, *range(5, last + 1, 5)}):
        x, _ = place(day, 0)
        parts.append(f'<text x="{x}" y="{HEIGHT - 22}" font-size="11" text-anchor="middle">{day}</text>')
    for number, (model, colour) in enumerate(MODELS.items()):
        points = " ".join("{},{}".format(*place(*point)) for point in lines[model])
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{LEFT + 10 + 90 * number}" y="18" font-size="13" fill="{colour}">{model}</text>')
    title = "day; nats a row above the oracle, on the next day"
    parts.append(f'<text x="{WIDTH // 2}" y="{HEIGHT - 5}" font-size="12" text-anchor="middle">{title}</text></svg>')
    return "\n".join(parts) + "\n"


def _excess(found: Mapping[int, Days], model: str) -> list[tuple[int, float]]:
    by_day: dict[int, list[float]] = {}
    for days in found.values():
        for day in days:
            if model in day:
                by_day.setdefault(day["day"], []).append(day[model]["logloss"] - day["oracle"]["logloss"])
    return [(day, float(np.mean(values))) for day, values in sorted(by_day.items())]
