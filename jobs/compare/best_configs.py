"""Results of a search: the best config of each model as a TOML file, tables of trials, and a text for a terminal."""

import csv
from collections.abc import Sequence
from pathlib import Path

from features.disk.atomic import write_json
from jobs.compare.search import Search, SearchRow, Trial
from training.judge.metrics import METRICS, metric_texts


def conclude(path: str, trials: Sequence[Trial], rows: Sequence[SearchRow]) -> SearchRow:
    """Write a model's best config; return its trials, epochs and seconds, and its best result.

    Raises:
        ValueError: every trial diverged.
    """
    finished = [row for row in rows if row["error"] is None]
    if not finished:
        raise ValueError(f"every trial of {trials[0].model.name} diverged; the first: {rows[0]['error']}")
    best = max(finished, key=lambda row: row["monitor"])
    trial = trials[best["trial"] - 1]
    search, model = trial.search, trial.model
    file = Path(search.output) / f"best-{model.folder}.toml"
    words = " ".join(f"--config {config}" for config in (*search.configs, *model.configs, str(file)))
    header = (
        f"{model.name}: trial {trial.number} of {len(rows)} of {path}",
        f"(at most {search.max_epochs} epochs each, ASHA after {search.grace_epochs} with factor "
        f"{search.reduction_factor:g}, seed {search.seed}).",
        f"Validation at epoch {best['best_epoch']}: {_numbers(best)}",
        "",
        f"  python -m jobs.train {words} --run runs/{model.folder}-best",
    )
    lines = [f"# {line}".rstrip() for line in header]
    file.write_text("\n".join(lines) + "\n\n" + trial.departures, encoding="utf-8")
    return {
        "model": model.name,
        "trials": len(rows),
        "failed": len(rows) - len(finished),
        "stopped_early": sum(row["stopped_early"] for row in rows),
        "epochs": sum(row["epochs"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "best": best,
        "config": file.name,
    }


def _numbers(row: SearchRow) -> str:
    defined = [name for name in METRICS if row.get(name) is not None]
    return "  ".join([f"monitor {row['monitor']:.6f}", *metric_texts(row, *defined)])


def write_search(output: Path, search: Search, models: Sequence[SearchRow], rows: Sequence[SearchRow]) -> None:
    """Write ``tune.json`` and ``trials.csv`` into a folder."""
    names = ("seed", "num_trials", "max_epochs", "grace_epochs", "reduction_factor", "parallel")
    budget = {name: getattr(search, name) for name in names}
    write_json(output / "tune.json", {"budget": budget, "models": models, "trials": rows})
    flat = [{**{k: v for k, v in row.items() if k != "overrides"}, **row["overrides"]} for row in rows]
    with (output / "trials.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)


def describe_search(output: Path, search: Search, models: Sequence[SearchRow], rows: Sequence[SearchRow]) -> str:
    """Describe the best result and the cost of each model, the best first, and the trials that failed.

    Args:
        output: folder of the search.
        search: the search of the TOML file.
        models: a row a model, as ``conclude`` returns it.
        rows: results of all trials.
    """
    width = max(len(row["model"]) for row in models)
    lines = [
        f"each model: {search.num_trials} trials of at most {search.max_epochs} epochs, ASHA after "
        f"{search.grace_epochs} with factor {search.reduction_factor:g}; best on validation:"
    ]
    for row in sorted(models, key=lambda row: -row["best"]["monitor"]):
        lines += [
            f"{row['model']:{width}}  {_numbers(row['best'])}  (trial {row['best']['trial']}; {row['stopped_early']} "
            f"stopped early, {row['failed']} failed, {row['epochs']:g} epochs, {row['seconds']:.0f} s)",
            f"{'':{width}}  {output / row['config']}",
        ]
    lines += [f"{row['model']}, trial {row['trial']} failed: {row['error']}" for row in rows if row["error"]]
    return "\n".join(lines)
