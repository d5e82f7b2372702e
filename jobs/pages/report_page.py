"""render: the report page of a run, which carries its data and its plotting library and opens without a network."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from features.disk.dataset import SPLITS, DatasetManifest
from features.schema import DenseFeature, SparseFeature
from jobs.pages import figures
from jobs.pages.check_sections import checks_section, gate_section
from jobs.pages.figure_style import dashed
from jobs.pages.markup import cards, document, grid, note, percent, shown, table, text
from jobs.pages.table_section import section as table_section
from jobs.runfiles import RunFiles
from training.judge.metrics import METRICS


def render(run: RunFiles) -> str:
    """The whole page."""
    sections = {
        "results": ("Results", _results(run)),
        "training": ("Training", _training(run)),
        "scores": ("Scores", _scores(run)),
        "attribution": ("What predictions rest on", _attribution(run)),
        "tables": ("Smaller tables to serve", table_section(run.tables, str(run.path), run.best_step)),
        **_retraining(run),
        "dataset": ("Dataset", _dataset(run)),
        "sharding": ("Sharding plan", _sharding(run)),
        "speed": ("Time and throughput", _speed(run)),
        "config": ("Resolved config", f"<pre>{escape(json.dumps(run.config, indent=2, ensure_ascii=False))}</pre>"),
    }
    return document(f"Run {run.path.resolve().name}", _subtitle(run), _cards(run), sections)


# ---------------------------------------------------------------------------------------------------------- sections


def _subtitle(run: RunFiles) -> str:
    training = run.config.get("training", {})
    model = training.get("model", {})
    streams = " and ".join(str(model.get(side, {}).get("kind", "?")) for side in ("easy", "hard"))
    return (
        f"{streams} streams, {training.get('optimizer', {}).get('kind', '?')} lane, "
        f"{training.get('num_workers', '?')} workers on {training.get('device', '?')}, "
        f"batches of {shown(training.get('global_batch_size'))} rows; dataset {run.dataset_path or 'unknown'}"
    )


def _cards(run: RunFiles) -> str:
    found = {name: entry["metrics"] for name, entry in run.evaluations.items()}
    best = "test" if "test" in found else "valid"
    values: dict[str, Any] = {f"{best} {m}": found.get(best, {}).get(m) for m in ("auc", "logloss", "calibration")}
    oracle = run.metrics.get("oracle", {}).get("auc")
    if oracle is not None and values[f"{best} auc"] is not None:
        values["AUC short of the oracle"] = oracle - values[f"{best} auc"]
    train = run.metrics.get("train", {})
    values |= {"rows trained on": train.get("rows"), "rows/s in training": train.get("rows_per_second")}
    return cards({name: value for name, value in values.items() if value})


def _results(run: RunFiles) -> str:
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
        return note("No split has been evaluated yet: jobs.evaluate does that.")
    found = table(("", "rows", *METRICS), ([title, *map(values.get, ("rows", *METRICS))] for title, values in rows))
    return found + _platt(run)


def _platt(run: RunFiles) -> str:
    if "platt" not in run.metrics:
        return ""
    scale, offset = (text(run.metrics["platt"][name]) for name in ("scale", "offset"))
    return f"<p>Calibrated: sigmoid(scale * logit + offset), scale {scale} and offset {offset} fitted on valid.</p>"


def _training(run: RunFiles) -> str:
    if not run.progress:
        return note("The run has no history yet.")
    plots = {"Loss": figures.loss_curve(run.progress, run.checks)}
    if run.checks:
        plots["Validation metrics"] = figures.metric_curves(run.checks)
    plots["Learning rate"] = figures.learning_rate_curve(run.progress)
    columns = ("epoch", "step", "train_loss", *METRICS, "monitor", "best")
    if not run.checks:
        return grid(plots) + note("The dataset has no validation split, so there are no metric curves.")
    return grid(plots) + table(columns, ([check.get(c) for c in columns] for check in run.checks))


def _scores(run: RunFiles) -> str:
    curves = {name: entry["curves"] for name, entry in run.evaluations.items()}
    if not curves:
        return note("No split has been evaluated yet, so there are no curves.")
    plots = {"ROC": figures.roc(curves), "Reliability": figures.reliability(curves)}
    plots |= {f"Scores by label, {name}": figures.score_histogram(curve) for name, curve in curves.items()}
    return grid(plots)


def _attribution(run: RunFiles) -> str:
    found = run.attribution
    if not found:
        return note(f"No attribution yet: python -m jobs.attribute --run {run.path} makes it.")
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
    outdated = ""
    if run.best_step not in (None, found["step"]):
        outdated = note(
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
    return f"{outdated}<p>{escape(about)}</p>{grid(plots)}{_part_table(found)}{grid(gates)}"


def _part_table(found: Mapping[str, Any]) -> str:
    columns = {
        "own auc": "auc",
        "own logloss": "logloss",
        "mean logit of positives": "mean_logit_positives",
        "mean logit of negatives": "mean_logit_negatives",
        "mean |part|": "mean_abs_part",
    }
    rows = [[p["name"], *map(p.get, columns.values()), percent(p["variance_share"])] for p in found["parts"]]
    meaning = (
        "A branch's part of the fused logit is what changes when that branch alone has its own output and the other "
        "its mean one; a joint part is what is left. The variance shares, cov(part, fused) / var(fused), add up to 1."
    )
    weights = " + ".join(f"{weight:.4f} {name}" for name, weight in (found["fusion_weights"] or {}).items())
    learnt = f" Learnt weights: fused = {weights}." if weights else ""
    return table(("part", *columns, "variance share"), rows) + f"<p>{escape(meaning + learnt)}</p>"


def _retraining(run: RunFiles) -> dict[str, tuple[str, str]]:
    """Sections that a retraining's candidate has and no other run."""
    sections = {}
    if run.gate is not None:
        day = "" if run.gate.day is None else f"<p>Compared on {escape(dashed(run.gate.day))}.</p>"
        sections["gate"] = ("Gate", day + gate_section(run.gate.verdict, run.gate.metrics))
    if run.data_checks:
        sections["checks"] = ("Data checks", checks_section(run.data_checks))
    return sections


def _dataset(run: RunFiles) -> str:
    if run.manifest is None:
        return note(run.notes["dataset"])
    manifest = run.manifest
    in_order = {name: manifest.splits[name] for name in SPLITS if name in manifest.splits}
    splits = table(
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
    return f"<p>{escape(counts)}</p>{splits}{_sparse_table(manifest, run.plan)}{_dense_table(manifest)}"


def _sparse_table(manifest: DatasetManifest, plan: Sequence[Mapping[str, Any]]) -> str:
    table_rows = {str(entry.get("feature")): entry.get("rows") for entry in plan}
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
        row = [feature.name, _source(feature), feature.encoding.kind, table_rows.get(feature.name)]
        if train is not None:
            distinct = f"about {train.cardinality:,}" if train.is_estimated else train.cardinality
            row += [distinct, *map(percent, (train.null_rate, train.oov_rate, train.head_share))]
            row.append(percent(train.collision_rate))
        else:
            row += [None] * 5
        rows.append(row + [percent(per_split[n].oov_rate) if n in per_split else None for n in others])
    return table((*header, *(f"OOV, {name}" for name in others)), rows)


def _source(feature: SparseFeature | DenseFeature) -> str:
    if isinstance(feature, DenseFeature):
        steps = [feature.clip and f"clip {feature.clip[0]:g} to {feature.clip[1]:g}", feature.log1p and "log1p"]
        return ", ".join(s for s in [*steps, feature.standardise and "standardise"] if s) or "as it is"
    return " x ".join(feature.columns) + (f" split at {feature.separator!r}" if feature.separator else "")


def _dense_table(manifest: DatasetManifest) -> str:
    if not manifest.schema.dense or "train" not in manifest.splits:
        return ""
    rows = []
    for feature in manifest.schema.dense:
        s = manifest.splits["train"].dense.get(feature.name)
        values = [percent(s.null_rate), s.mean, s.standard_deviation, s.minimum, s.maximum] if s else [None] * 5
        rows.append([feature.name, feature.source, _source(feature), *values])
    return table(("dense feature", "from", "steps", "missing", "mean", "deviation", "minimum", "maximum"), rows)


def _sharding(run: RunFiles) -> str:
    if not run.plan:
        return note("The run has no plan.json.")
    columns = list(dict.fromkeys(key for entry in run.plan for key in entry))
    total = sum(entry.get("bytes") or 0 for entry in run.plan)
    rows = sum(entry.get("rows") or 0 for entry in run.plan)
    summary = f"<p>{len(run.plan)} tables, {rows:,} rows, {total / 1e6:,.1f} MB of weights.</p>"
    return summary + table(columns, ([entry.get(c) for c in columns] for entry in run.plan))


def _speed(run: RunFiles) -> str:
    seconds = {"build the dataset": run.build["seconds"]} if "seconds" in run.build else {}
    seconds |= run.metrics.get("seconds", {})
    plots = {"Seconds by stage": figures.seconds_by_stage(seconds)} if seconds else {}
    if run.progress:
        plots["Training throughput"] = figures.speed_curve(run.progress)
    rates = {
        "build_dataset": run.build.get("rows_per_second"),
        "train": run.metrics.get("train", {}).get("rows_per_second"),
    }
    rates |= run.metrics.get("rows_per_second", {})
    known = [[name, rate] for name, rate in rates.items() if rate is not None]
    missing = "" if "seconds" in run.metrics else note("The run has not ended, so its times are not complete.")
    return missing + (grid(plots) if plots else "") + (table(("stage", "rows/s"), known) if known else "")
