"""render_report: the report page of a run, self-contained with its data and plotting library."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from features.disk.dataset import SPLITS, DatasetManifest, SequenceStatistics
from features.disk.run_folder import REPORT_NAME, RunFiles
from features.dwell import DWELL_PERCENTILE, cut_off_of, dwell_seconds
from jobs.pages import figures
from jobs.pages.check_sections import Figures, checks_section, gate_section
from jobs.pages.metric_values import with_metrics
from jobs.pages.page import render_page
from jobs.pages.table_section import command
from jobs.pages.table_section import section as table_section
from jobs.pages.values import Table, percent, shown
from jobs.retraining.raw_partitions import dashed
from training.judge.metrics import METRICS, metric_names, remarks

MAX_WARNINGS = 10
"""Warnings of a build that the page shows at most; the manifest has all of them."""


def render_report(run: RunFiles) -> str:
    """Make the whole page."""
    vectors = _vectors(run)
    sections = {
        "results": "Results",
        "training": "Training",
        "scores": "Scores",
        "attribution": "What predictions rest on",
        "tables": "Smaller tables to serve",
        # Only a retraining's candidate has the next two.
        **({"gate": "Gate"} if run.gate is not None else {}),
        **({"checks": "Data checks"} if run.data_checks else {}),
        "dataset": "Dataset",
        **({"vectors": "Vectors of values"} if vectors is not None else {}),
        "sharding": "Sharding plan",
        "speed": "Time and throughput",
        "config": "Resolved config",
    }
    gate_day = None if run.gate is None or run.gate.day is None else dashed(run.gate.day)
    return render_page(
        REPORT_NAME,
        f"Run {run.path.resolve().name}",
        _subtitle(run),
        sections,
        run=run.path,
        numbers=_numbers(run),
        results=_results(run),
        by_length=_by_length(run),
        notes=[*_remarks(run), *_other_rows(run)],
        platt=run.metrics.get("platt"),
        training_figures=_training_figures(run),
        epochs=_epochs(run),
        score_figures=_score_figures(run),
        attribution=_attribution(run),
        smaller_tables=table_section(run.tables, str(run.path), run.best_step),
        compare_command=command(str(run.path)),
        gate_day=gate_day,
        found_gate=None if run.gate is None else gate_section(run.gate.verdict, run.gate.metrics),
        found_checks=checks_section(run.data_checks) if run.data_checks else None,
        dataset=None if run.manifest is None else _dataset(run.manifest, run.plan, _encoders(run)),
        dataset_note=run.notes.get("dataset"),
        vectors=vectors,
        sharding=_sharding(run),
        has_ended="seconds" in run.metrics,
        speed_figures=_speed_figures(run),
        rates=_rates(run),
        config=json.dumps(run.config, indent=2, ensure_ascii=False),
    )


# ---------------------------------------------------------------------------------------------------------- sections


def _subtitle(run: RunFiles) -> str:
    training = run.config.get("training", {})
    model = training.get("model", {})
    streams = " and ".join(str(model.get(side, {}).get("kind", "?")) for side in ("easy", "hard"))
    return (
        f"{streams} streams, {training.get('optimizer', {}).get('kind', '?')} lane, "
        f"{_workers(training.get('num_workers', '?'))} workers on {training.get('device', '?')}, "
        f"batches of {shown(training.get('global_batch_size'))} rows; dataset {run.dataset_path or 'unknown'}"
    )


def _workers(given: Any) -> str:
    return " to ".join(map(str, given)) if isinstance(given, list) else str(given)


def _numbers(run: RunFiles) -> dict[str, Any]:
    """Collect the headline numbers."""
    found = {name: entry["metrics"] for name, entry in run.evaluations.items()}
    best = "test" if "test" in found else "valid"
    metrics, names = found.get(best, {}), ("auc", "logloss", "calibration")
    values: dict[str, Any] = {
        f"{best} {name}": value for name, value in zip(names, with_metrics(metrics, *names), strict=True)
    }
    oracle, auc = run.metrics.get("oracle", {}).get("auc"), metrics.get("auc")
    if oracle is not None and auc is not None:
        values["AUC short of the oracle"] = METRICS["auc"].text(oracle - auc)
    train = run.metrics.get("train", {})
    values |= {"rows trained on": train.get("rows"), "rows/s in training": train.get("rows_per_second")}
    return {name: value for name, value in values.items() if value}


def _results(run: RunFiles) -> Table | None:
    rows: list[tuple[str, Mapping[str, Any]]] = [
        (f"this model, {name}", entry["metrics"]) for name, entry in run.evaluations.items()
    ]
    others = {
        "valid_uncalibrated": "this model, valid, before calibration",
        "oracle": "oracle (the true probability), test",
        "linear": "linear model, test",
        "constant": "constant, test",
    }
    rows += [(title, run.metrics[name]) for name, title in others.items() if name in run.metrics]
    if not rows:
        return None
    columns = ("rows", *metric_names(entry["metrics"] for entry in run.evaluations.values()))
    return Table(("", *columns), ([title, *with_metrics(values, *columns)] for title, values in rows))


def _by_length(run: RunFiles) -> Table | None:
    """Tabulate the metrics by length of history, split by split."""
    rows = [
        (f"{sequence}, {name}", group)
        for name, entry in run.evaluations.items()
        for sequence, groups in entry.get("by_length", {}).items()
        for group in groups
    ]
    if not rows:
        return None
    columns = ("rows", *metric_names(group for _, group in rows))
    columns = tuple(name for name in columns if name != "events")
    values = ([title, group["events"], *with_metrics(group, *columns)] for title, group in rows)
    return Table(("history", "events", *columns), values)


def _encoders(run: RunFiles) -> dict[str, str]:
    """Map each sequence whose encoder the config names to its kind, with that of its short one."""
    configs = run.config.get("training", {}).get("model", {}).get("sequences", {})
    return {
        name: " and ".join([str(config.get("kind")), *([str(short["kind"])] if (short := config.get("short")) else [])])
        for name, config in configs.items()
    }


def _remarks(run: RunFiles) -> list[str]:
    """Say in words what is wrong with the model, split by split."""
    found = {name: remarks(entry["metrics"]) for name, entry in run.evaluations.items()}
    return [f"On {name}, {words}." for name, of_split in found.items() for words in of_split]


def _other_rows(run: RunFiles) -> list[str]:
    """Describe the splits that were scored on other rows than those of the dataset that the run was trained on."""
    notes = []
    for name, entry in run.evaluations.items():
        data = entry.get("data") or {}
        own = data.get("trained_on")
        if data.get("is_own") is False and (own or {}).get("fingerprint") != data["fingerprint"]:
            had = f"{own['rows']:,} rows (fingerprint {own['fingerprint'][:12]})" if own else "no such rows"
            notes.append(
                f"{name} was scored on another dataset, {data['rows']:,} rows (fingerprint "
                f"{data['fingerprint'][:12]}), where the dataset that the run was trained on had {had}."
            )
    return notes


def _training_figures(run: RunFiles) -> Figures | None:
    if not run.progress:
        return None
    found = {"Loss": figures.loss_curve(run.progress, run.checks)}
    if run.checks:
        found["Validation metrics"] = figures.metric_curves(run.checks)
    if run.windows:
        windows = figures.thinned(run.windows)
        found["Training rows before they are trained on"] = figures.metric_curves(windows)
        found["Training rows before they are trained on: NE and calibration"] = figures.ratio_curves(windows)
    return {**found, "Learning rate": figures.learning_rate_curve(run.progress)}


def _epochs(run: RunFiles) -> Table | None:
    columns = ("epoch", "step", "train_loss", *metric_names(run.checks), "monitor", "best")
    return Table(columns, (with_metrics(check, *columns) for check in run.checks)) if run.checks else None


def _score_figures(run: RunFiles) -> Figures | None:
    curves = {name: entry["curves"] for name, entry in run.evaluations.items()}
    if not curves:
        return None
    found = {"ROC": figures.roc(curves), "Reliability": figures.reliability(curves)}
    return found | {f"Scores by label, {name}": figures.score_histogram(curve) for name, curve in curves.items()}


def _attribution(run: RunFiles) -> dict[str, Any] | None:
    found = run.attribution
    if not found:
        return None
    features, branches = found["features"], found["branches"]
    shares = {part["name"]: part["variance_share"] for part in found["parts"]}
    sample = "" if found["rows"] == found["split_rows"] else f" of {found['split_rows']:,} (evenly spaced)"
    is_own = Path(found["dataset"]).resolve() == Path(run.dataset_path or "").resolve()
    dataset = "" if is_own else f" of another dataset, {found['dataset']}"
    about = (
        f"{found['rows']:,} rows{sample} of the split {found['split']}{dataset}; checkpoint of step {found['step']:,}. "
        f"Permutations over all rows, of each feature and of each branch's output: {found['repeats']}; bars show mean "
        "and deviation over them. A feature that another one can stand in for loses little."
    )
    outdated = None
    if run.best_step not in (None, found["step"]):
        outdated = (
            f"This is of an older checkpoint, run it again (jobs.attribute --run {run.path}): the best one is "
            f"of step {run.best_step:,} now."
        )
    plots = {
        "AUC lost when a feature is permuted": figures.importance(features, "auc_drop", "fall of auc"),
        "Logloss gained when a feature is permuted": figures.importance(features, "logloss_rise", "rise of logloss"),
        "AUC lost when a branch's output is permuted": figures.importance(branches, "auc_drop", "fall of auc"),
    }
    if None not in shares.values():
        plots["Parts of the fused logit"] = figures.variance_shares(shares)
    if found["p_t"]:
        plots["Where the branches are right"] = figures.branch_agreement(found["p_t"])
    gates = {}
    for gate in found["gates"]:
        gates[f"Gate: {gate['name']}"] = figures.gate_histogram(gate)
        if len(gate["series"]) > len(figures.SERIES_COLOURS):
            gates[f"Gate: {gate['name']}, by field"] = figures.gate_means(gate)
    return {
        "outdated": outdated,
        "about": about,
        "figures": plots,
        "parts": _part_table(found),
        "weights": " + ".join(f"{weight:.4f} {name}" for name, weight in (found["fusion_weights"] or {}).items()),
        "gates": gates,
    }


def _part_table(found: Mapping[str, Any]) -> Table:
    columns = {
        "own auc": "auc",
        "own logloss": "logloss",
        "mean logit of positives": "mean_logit_positives",
        "mean logit of negatives": "mean_logit_negatives",
        "mean |part|": "mean_abs_part",
    }
    rows = [[p["name"], *with_metrics(p, *columns.values()), percent(p["variance_share"])] for p in found["parts"]]
    return Table(("part", *columns, "variance share"), rows)


def _dataset(
    manifest: DatasetManifest, plan: Sequence[Mapping[str, Any]], encoders: Mapping[str, str]
) -> dict[str, Any]:
    in_order = {name: manifest.splits[name] for name in SPLITS if name in manifest.splits}
    splits = Table(
        ("split", "rows", "files", "row groups", "MB", "label rate"),
        (
            [
                name,
                split.num_rows,
                len(split.files),
                sum(len(f.row_groups) for f in split.files),
                sum(f.num_bytes for f in split.files) / 1e6,
                split.label_rate,
            ]
            for name, split in in_order.items()
        ),
    )
    reasons = "; ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.reasons.items())
    counts = (
        f"{manifest.num_input_rows:,} rows read, {manifest.rejected.num_rows:,} rejected"
        f"{f' ({reasons})' if reasons else ''}, {manifest.num_duplicates:,} duplicates. "
        f"Schema {manifest.schema_fingerprint[:12]}, learnt state {manifest.learnt_fingerprint[:12]}."
    )
    return {
        "counts": counts,
        "warnings": manifest.warnings[:MAX_WARNINGS],
        "num_more": max(0, len(manifest.warnings) - MAX_WARNINGS),
        "splits": splits,
        "sparse": _sparse_table(manifest, plan),
        "dense": _dense_table(manifest),
        "sequences": _sequence_table(manifest, encoders),
    }


def _sparse_table(manifest: DatasetManifest, plan: Sequence[Mapping[str, Any]]) -> Table:
    table_rows = {name: entry.get("rows") for entry in plan for name in str(entry.get("feature")).split(", ")}
    header = (
        "sparse feature",
        "from",
        "encoding",
        "table rows",
        "distinct",
        "missing",
        "OOV",
        "head share",
        "collisions",
    )
    others = [name for name in SPLITS if name in manifest.splits and name != "train"]
    rows = []
    for feature in manifest.schema.sparse:
        per_split = {n: s.sparse[feature.name] for n, s in manifest.splits.items() if feature.name in s.sparse}
        train = per_split.get("train")
        row = [feature.name, feature.source, feature.encoding.kind, table_rows.get(feature.name)]
        if train is not None:
            distinct = f"about {train.cardinality:,}" if train.is_estimated else train.cardinality
            row += [distinct, *map(percent, (train.null_rate, train.oov_rate, train.head_share))]
            row.append(percent(train.collision_rate))
        else:
            row += [None] * 5
        rows.append(row + [percent(per_split[n].oov_rate) if n in per_split else None for n in others])
    return Table((*header, *(f"OOV, {name}" for name in others)), rows)


def _dense_table(manifest: DatasetManifest) -> Table | None:
    if not manifest.schema.dense or "train" not in manifest.splits:
        return None
    rows = []
    for feature in manifest.schema.dense:
        s = manifest.splits["train"].dense.get(feature.name)
        values = [percent(s.null_rate), s.mean, s.standard_deviation, s.minimum, s.maximum] if s else [None] * 5
        rows.append([feature.name, feature.source, feature.steps, *values])
    return Table(("dense feature", "from", "steps", "missing", "mean", "deviation", "minimum", "maximum"), rows)


def _sequence_table(manifest: DatasetManifest, encoders: Mapping[str, str]) -> Table | None:
    """Tabulate the histories of each split."""
    rows, has_weights = [], any(sequence.dwell_weights for sequence in manifest.schema.sequence)
    for sequence in manifest.schema.sequence:
        rule = sequence.history
        source = "the log" if rule is None else f"rows of {rule.of} ({rule.where}), {rule.delay} s before"
        for name in (name for name in SPLITS if name in manifest.splits):
            s = manifest.splits[name].sequences[sequence.name]
            unknown = ", ".join(f"{column} {percent(rate)}" for column, rate in s.oov_rates.items())
            own = [s.mean_length, sequence.max_length, percent(s.empty_rate), s.num_truncated, unknown]
            own += [_dwell_text(s)] if has_weights else []
            rows.append([sequence.name, source, encoders.get(sequence.name, "mean"), name, *own])
    header = ("sequence", "from", "encoder", "split", "mean length", "most", "without", "dropped", "OOV")
    return Table((*header, *(["dwell weights"] if has_weights else [])), rows) if rows else None


def _dwell_text(statistics: SequenceStatistics) -> str:
    """Say from which dwell time on events of a split weigh the same, and how many have none."""
    counts = statistics.dwell_counts
    cut_off = cut_off_of(counts)
    if cut_off is None:
        return "no known dwell time" if counts else ""
    share = percent(counts[0] / sum(counts))
    return f"{100 * DWELL_PERCENTILE:g} % up to {dwell_seconds(cut_off):,.0f} s, {share} not known"


def _vectors(run: RunFiles) -> Table | None:
    """Tabulate the files of vectors: those that stay fixed, and those that tables start with."""
    model = run.config.get("training", {}).get("model", {})
    rows = []
    for name, source in model.get("vectors", {}).items():
        rows.append(
            [name, source.get("feature"), "fixed", *_file_of_vectors(source, run.metrics.get("vectors", {}).get(name))]
        )
    for feature, source in model.get("pretrained", {}).items():
        found = run.pretrained.get(feature, {})
        use = f"first rows of {', '.join(found['tables'])}" if found else "first rows"
        rows.append([feature, feature, use, *_file_of_vectors(source, found)])
    header = ("vectors", "feature", "use", "file", "sha256", "numbers", "ids with a vector", "ids", "share")
    return Table(header, rows) if rows else None


def _file_of_vectors(source: Mapping[str, Any], found: Mapping[str, Any] | None) -> list[Any]:
    """List a file, its digest and width, and how many ids of the vocabulary have a vector, as far as they are known."""
    covered, rows = (found.get("covered"), found.get("rows")) if found else (None, None)
    share = percent(covered / rows) if covered is not None and rows else None
    digest = source.get("sha256")
    return [source.get("path"), digest and digest[:12], source.get("dimension"), covered, rows, share]


def _sharding(run: RunFiles) -> dict[str, Any] | None:
    if not run.plan:
        return None
    columns = list(dict.fromkeys(key for entry in run.plan for key in entry))
    total = sum(entry.get("bytes") or 0 for entry in run.plan)
    rows = sum(entry.get("rows") or 0 for entry in run.plan)
    return {
        "summary": f"{len(run.plan)} tables, {rows:,} rows, {total / 1e6:,.1f} MB of weights.",
        "tables": Table(columns, ([entry.get(c) for c in columns] for entry in run.plan)),
    }


def _speed_figures(run: RunFiles) -> Figures:
    seconds = {"build the dataset": run.build["seconds"]} if "seconds" in run.build else {}
    seconds |= run.metrics.get("seconds", {})
    found = {"Seconds by stage": figures.seconds_by_stage(seconds)} if seconds else {}
    if run.progress:
        found["Training throughput"] = figures.speed_curve(run.progress)
    return found


def _rates(run: RunFiles) -> Table | None:
    rates = {
        "build_dataset": run.build.get("rows_per_second"),
        "train": run.metrics.get("train", {}).get("rows_per_second"),
    }
    rates |= run.metrics.get("rows_per_second", {})
    known = [[name, rate] for name, rate in rates.items() if rate is not None]
    return Table(("stage", "rows/s"), known) if known else None
