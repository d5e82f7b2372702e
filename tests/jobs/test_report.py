"""jobs.report on a run folder with everything in it, on a bare one, and on folders that are none."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.disk.dataset import (
    DataFile,
    DatasetManifest,
    DenseStatistics,
    FeatureStatistics,
    Rejected,
    SequenceStatistics,
    Split,
)
from features.dwell import NUM_DWELL_IDS, dwell_ids
from features.schema import (
    DenseFeature,
    FeatureSchema,
    HashEncoding,
    SequenceFeature,
    SparseFeature,
    VocabularyEncoding,
)
from jobs.pages.report_files import read_run
from jobs.pages.report_page import _sequence_table, render_report
from tests.browser import open_page
from tests.stand_ins.retrained import BROKEN, FIRST, REFUSED, Retrained, add_partition, judge_day
from training.judge.metrics import curves, evaluate
from training.judge.scores import Scores

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</script><script>alert('x')</script>"


def make_dataset(path: Path) -> DatasetManifest:
    schema = FeatureSchema(
        label="click",
        sparse=(
            SparseFeature("user_id", HashEncoding(num_buckets=1000)),
            SparseFeature("interests", VocabularyEncoding(), separator="|"),
        ),
        dense=(DenseFeature("price", clip=(0.0, 1e4), log1p=True, standardise=True),),
    )
    user = FeatureStatistics(123_456, 0.015, 0.0, 0.0234, 999, 0.4321)
    interests = FeatureStatistics(24, 0.031, 0.002, 0.11, 25)
    price = DenseStatistics(0.05, 20.5, 3.25, 1.0, 900.0)
    splits = {
        name: Split(
            (DataFile(f"v1/{name}/part-00000.parquet", 5_000_000, (rows,), "0" * 64),),
            rate,
            {"user_id": user, "interests": interests},
            {"price": price},
        )
        for name, rows, rate in (("train", 800_000, 0.187), ("valid", 100_000, 0.19), ("test", 99_997, 0.18))
    }
    manifest = DatasetManifest(
        schema=schema,
        schema_fingerprint=schema.fingerprint,
        learnt_fingerprint="f" * 64,
        learnt_path="v1/learnt",
        splits=splits,
        rejected=Rejected(3, {f"label is {HOSTILE}": 3}, "v1/rejected"),
        num_input_rows=1_000_000,
        num_duplicates=0,
        inputs={"train": ["day.csv"]},
        config={},
        warnings=(f"column {HOSTILE} says nothing", *(f"oddity {number}" for number in range(1, 13))),
    )
    path.mkdir()
    manifest.write(path)
    (path / "build.json").write_text(json.dumps({"seconds": 61.5, "rows_per_second": 16_260.0}))
    return manifest


def make_history() -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for epoch in range(2):
        for step in range(epoch * 100, epoch * 100 + 100):
            loss = 0.38 + 0.3 * float(np.exp(-step / 30))
            progress = {
                "loss": loss,
                "learning_rate": 0.002,
                "rows_per_second": 11_000.0 + step,
                "seconds": step * 0.37,
            }
            events.append({"event": "progress", "epoch": epoch, "step": step + 1, **progress})
        metrics = {"auc": 0.82 + 0.005 * epoch, "logloss": 0.37, "ne": 0.79, "calibration": 1.01, "gauc": 0.71}
        check = {"split": "valid", "train_loss": 0.4, "monitor": metrics["auc"], "best": True, "rows": 100_000}
        events += [{"event": "evaluation", "epoch": epoch, "step": epoch * 100 + 100, **metrics, **check}]
        events += [{"event": "checkpoint", "epoch": epoch, "step": epoch * 100 + 100}]
    return events


def make_run(path: Path, dataset: Path) -> dict[str, Any]:
    """A run with every part; returns its evaluations."""
    manifest = make_dataset(dataset)
    (path / "evaluation").mkdir(parents=True)
    rng = np.random.default_rng(0)
    evaluations = {}
    for split in ("valid", "test"):
        logits = rng.normal(-1.8, 1.4, 5_000)
        labels = (rng.random(5_000) < 1 / (1 + np.exp(-logits))).astype(float)
        evaluations[split] = {
            "metrics": evaluate(Scores.of(logits, labels)),
            "curves": curves(Scores.of(logits, labels)),
        }
        (path / "evaluation" / f"{split}.json").write_text(json.dumps(evaluations[split]))
    write = {
        "config.json": {"training": {"num_workers": 2, "device": "cpu", "note": HOSTILE}},
        "dataset.json": {"dataset": str(dataset), "learnt_fingerprint": manifest.learnt_fingerprint},
        "plan.json": [
            {
                "table": f"{name}_{stream}",
                "feature": name,
                "stream": stream,
                "rows": rows,
                "width": width,
                "bytes": rows * width * 4,
                "sharding": "row_wise",
                "kernel": "fused",
                "ranks": [0, 1],
            }
            for name, rows in (("user_id", 1000), ("interests", 26))
            for stream, width in (("easy", 8), ("hard", 16))
        ],
        "metrics.json": {
            "train": {"rows": 1_600_000, "epochs": 2, "steps": 200, "loss": 0.38, "rows_per_second": 11_234.5},
            "seconds": {"startup": 12.0, "train": 74.0, "evaluate": 9.0, "checkpoint": 1.5},
            "oracle": {"auc": 0.9, "logloss": 0.3571},
            "linear": {"auc": 0.7123, "logloss": 0.41},
            "rows_per_second": {"read": 412_345.0},
        },
    }
    for name, value in write.items():
        (path / name).write_text(json.dumps(value))
    (path / "history.jsonl").write_text("".join(json.dumps(e) + "\n" for e in make_history()))
    return evaluations


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, table rows, text outside scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag in ("script", "style", "td", "th"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        inside = self._inside[-1] if self._inside else ""
        if inside not in ("script", "style"):
            self.text += data
        if inside in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, *start: str) -> list[str]:
        """The one table row that begins with these cells."""
        [found] = [row for row in self.rows if row[: len(start)] == list(start)]
        return found


def figure_traces(html: str) -> list[dict[str, Any]]:
    """Traces of every figure, as they are handed to Plotly."""
    decoder, traces = json.JSONDecoder(), []
    for call in re.finditer(r'Plotly\.newPlot\(\s*"[^"]+",\s*', html):
        traces += decoder.raw_decode(html, call.end())[0]
    return traces


def test_a_complete_run(tmp_path: Path):
    run, dataset = tmp_path / "run <1>", tmp_path / "dataset"
    evaluations = make_run(run, dataset)
    html = render_report(read_run(run))
    page = Page(html)

    # Self-contained: nothing is fetched, and the library is there once.
    for tag, attributes in page.tags:
        assert tag not in ("img", "link", "iframe")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert html.count("plotly.js v") == 1

    # Nothing from the files became markup.
    assert "<script>alert" not in html
    assert page.text.count(HOSTILE) == 3
    assert "oddity 9" in page.text and "oddity 10" not in page.text and "and 3 more, in the manifest" in page.text
    assert "Run run <1>" in page.text

    assert page.row("this model, test")[2] == f"{evaluations['test']['metrics']['auc']:.6f}"
    assert page.row("oracle (the true probability), test")[2] == "0.900000"
    assert page.row("linear model, test")[2] == "0.712300"
    assert f"{0.9 - evaluations['test']['metrics']['auc']:.6f}AUC short of the oracle" in page.text
    assert page.row("train", "800,000")[2:] == ["1", "1", "5", "0.187"]
    user = page.row("user_id", "user_id")
    assert user[2:9] == ["hash", "1,000", "123,456", "1.50 %", "0.00 %", "2.34 %", "43.21 %"]
    assert page.row("price", "price", "clip 0 to 10000, log1p, standardise")[3:5] == ["5.00 %", "20.5"]
    assert page.row("user_id_hard")[1:] == ["user_id", "hard", "1,000", "16", "64,000", "row_wise", "fused", "0, 1"]
    assert page.row("read") == ["read", "412,345"]
    assert page.row("build_dataset") == ["build_dataset", "16,260"]
    assert "1,000,000 rows read, 3 rejected" in page.text


def test_metrics_by_length_of_history(tmp_path: Path):
    run = tmp_path / "run"
    evaluations = make_run(run, tmp_path / "dataset")
    group = {**evaluations["test"]["metrics"], "events": "5-9", "rows": 4_321, "auc": 0.654321}
    entry = {**evaluations["test"], "by_length": {"clicks": [group]}}
    (run / "evaluation" / "test.json").write_text(json.dumps(entry))
    page = Page(render_report(read_run(run)))
    assert page.row("clicks, test")[1:4] == ["5-9", "4,321", "0.654321"]


def test_files_of_vectors(tmp_path: Path):
    run = tmp_path / "run"
    make_run(run, tmp_path / "dataset")
    assert "Vectors of values" not in render_report(read_run(run))
    source = {"path": "data/texts.npz", "sha256": "ab" * 32, "dimension": 768}
    model = {"vectors": {"text": {**source, "feature": "item"}}, "pretrained": {"user_id": {**source, "dimension": 16}}}
    (run / "config.json").write_text(json.dumps({"training": {"model": model}}))
    page = Page(render_report(read_run(run)))
    known = ["data/texts.npz", "abababababab"]
    assert page.row("text", "item") == ["text", "item", "fixed", *known, "768", *["\N{EN DASH}"] * 3]
    assert page.row("user_id", "user_id", "first rows")[5:] == ["16", *["\N{EN DASH}"] * 3]
    metrics = json.loads((run / "metrics.json").read_text())
    counts = {"covered": 1_230, "rows": 2_000}
    (run / "metrics.json").write_text(json.dumps({**metrics, "vectors": {"text": counts}}))
    started = {"user_id": {"tables": ["user_id__easy", "user_id__hard"], "covered": 0, "rows": 998}}
    with (run / "history.jsonl").open("a") as file:
        file.write(json.dumps({"event": "pretrained", "epoch": 0, "step": 0, "features": started}) + "\n")
    page = Page(render_report(read_run(run)))
    assert page.row("text", "item")[5:] == ["768", "1,230", "2,000", "61.50 %"]
    own = page.row("user_id", "user_id", "first rows of user_id__easy, user_id__hard")
    assert own[5:] == ["16", "0", "998", "0.00 %"]


@pytest.mark.parametrize("is_weighted", [True, False])
def test_dwell_weights_are_told_of_where_there_are_any(tmp_path: Path, is_weighted: bool):
    counts = [0] * NUM_DWELL_IDS
    for seconds, events in ((np.nan, 25), (30.0, 70), (60.0, 5)):
        counts[int(dwell_ids(np.array([seconds]))[0])] += events
    clicks = SequenceFeature("clicks", ("user_id",), 3, newest="first", dwell_weights=is_weighted)
    own = SequenceStatistics(2.0, 0.0, {}, dwell_counts=tuple(counts) if is_weighted else ())
    manifest = make_dataset(tmp_path / "dataset")
    split = replace(manifest.splits["train"], sequences={"clicks": own})
    manifest = replace(manifest, schema=replace(manifest.schema, sequence=(clicks,)), splits={"train": split})
    table = _sequence_table(manifest, {})
    assert table is not None
    [row] = table.rows
    assert (table.header[-1] == "dwell weights") == is_weighted and len(row) == len(table.header)
    assert not is_weighted or re.fullmatch(r"95 % up to (59|60|61) s, 25.00 % not known", row[-1])


def make_candidate(run: Path, folder: Path) -> None:
    """Give a run what a retraining leaves in its candidate's: checks of its partitions, and the gate's verdict."""
    made, profiles, days = (
        Retrained(folder / "retrain", folder / "c.toml", folder / "logs"),
        {},
        (FIRST, BROKEN, REFUSED),
    )
    for day in days:
        profiles[day] = add_partition(made, day, {d: p for d, p in profiles.items() if d != BROKEN})
    kept = {day: json.loads((made.root / "checks" / f"{day}.json").read_text()) for day in days}
    (run / "checks.json").write_text(json.dumps(kept))
    found = judge_day(REFUSED, has_champion=True)
    gate = {"day": REFUSED, "verdict": found["gate"], "metrics": found["metrics"], "a key of tomorrow": 1}
    (run / "gate.json").write_text(json.dumps(gate))


def test_a_retrainings_candidate(tmp_path: Path):
    """Data checks and gate as pictures and tables, in a real browser; other runs have no such sections."""
    run = tmp_path / "run"
    make_run(run, tmp_path / "dataset")
    assert "Data checks" not in Page(render_report(read_run(run))).text

    make_candidate(run, tmp_path)
    files = read_run(run)
    html = render_report(files)
    page, traces = Page(html), figure_traces(html)
    assert files.gate is not None and not files.gate.verdict.passed
    for rule in files.gate.verdict.shown:
        mark = "ok" if rule.passed else "FAILED"
        assert page.row(mark, rule.name)[4:] == [rule.threshold, rule.reason]
    auc = next(rule for rule in files.gate.verdict.rules if rule.name == "auc")
    assert page.row("FAILED", "auc")[2:4] == [f"{auc.candidate:.6g}", f"{auc.champion:.6g}"]
    assert "Compared on 2014-10-27." in page.text
    assert page.row("champion", "2,000")[2] == f"{files.gate.metrics['champion']['auc']:.6g}"
    assert page.row("2014-10-25", "stop", "nulls", "app")[4] == "1"

    [heat] = [trace for trace in traces if trace["type"] == "heatmap" and "app" in trace["y"]]
    assert heat["x"] == ["2014-10-25", "2014-10-27"], "of the first day nothing was compared"
    moved = {r.feature: r.value for r in files.data_checks[REFUSED].results if r.rule == "psi"}
    bars = [trace for trace in traces if trace.get("name") in ("within its limit", "beyond: warning")]
    assert {name: x for trace in bars for name, x in zip(trace["y"], trace["x"], strict=True)} == moved
    [limits] = [trace for trace in traces if trace.get("name") == "limit"]
    assert limits["x"] == [0.25] * len(moved)
    shape = files.data_checks[REFUSED].shapes["price"]
    histograms = [trace for trace in traces if trace.get("x") == list(shape.bins)]
    assert [trace["y"] for trace in histograms] == [list(shape.reference), list(shape.current)]
    assert sum(shape.current) == pytest.approx(1, abs=1e-4)

    opened = open_page(html)
    assert opened.complaints == [] and opened.fetched == []
    assert len(opened.plots) == html.count("Plotly.newPlot(") and min(opened.plots) > 0
    assert opened.width <= 1280

    (run / "gate.json").write_text('{"verdict": {"rules": 3}}')
    with pytest.raises(ValueError, match=r"gate\.json cannot be read: .* at verdict\.rules"):
        read_run(run)


def test_figures_show_the_files_numbers(tmp_path: Path):
    evaluations = make_run(tmp_path / "run", tmp_path / "dataset")
    traces = figure_traces(render_report(read_run(tmp_path / "run")))

    def named(name: str) -> list[dict[str, Any]]:
        return [trace for trace in traces if trace.get("name") == name]

    history = make_history()
    steps = [e for e in history if e["event"] == "progress"]
    assert named("step")[0]["y"] == [e["loss"] for e in steps]
    assert named("auc")[0]["x"] == [100, 200]
    assert named("auc")[0]["y"] == [0.82, 0.825]
    assert named("best")[0]["x"] == [200]
    roc, reliability = named("test")
    assert roc["x"] == evaluations["test"]["curves"]["roc"]["fpr"]
    assert reliability["y"] == [b["label_rate"] for b in evaluations["test"]["curves"]["reliability"]]
    for bars in (*named("label 0"), *named("label 1")):
        assert sum(bars["y"]) == pytest.approx(1)
    stages = next(trace for trace in traces if trace.get("orientation") == "h")
    assert dict(zip(stages["y"], stages["x"], strict=True)) == {
        "build the dataset": 61.5,
        "startup": 12.0,
        "train": 74.0,
        "evaluate": 9.0,
        "checkpoint": 1.5,
    }


def test_a_run_that_has_just_begun(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "history.jsonl").write_text('{"event": "progress", "epoch": 0, "step": 1, "loss"')
    files = read_run(tmp_path)
    assert files.progress == [] and files.best_step is None
    text = Page(render_report(files)).text
    for note in ("has no history yet", "No split has been evaluated yet", "has no plan.json", "names no dataset"):
        assert note in text


@pytest.mark.parametrize(
    ("events", "best_step"),
    [
        ([], None),
        ([("checkpoint", 5, None), ("checkpoint", 9, None)], 9),  # no validation split, or no epoch is over yet
        ([("evaluation", 6, True), ("checkpoint", 6, None), ("evaluation", 12, False), ("checkpoint", 12, None)], 6),
        ([("evaluation", 6, True), ("evaluation", 12, True), ("checkpoint", 15, None)], 12),
    ],
)
def test_the_best_step_is_that_of_the_history(tmp_path: Path, events: list[Any], best_step: int | None):
    (tmp_path / "config.json").write_text("{}")
    lines = (json.dumps({"event": kind, "step": step, "best": best}) + "\n" for kind, step, best in events)
    (tmp_path / "history.jsonl").write_text("".join(lines))
    assert read_run(tmp_path).best_step == best_step


def test_a_dataset_built_anew_is_not_described(tmp_path: Path):
    make_run(tmp_path / "run", tmp_path / "dataset")
    (tmp_path / "run" / "dataset.json").write_text(
        json.dumps({"dataset": str(tmp_path / "dataset"), "learnt_fingerprint": "0" * 64})
    )
    text = Page(render_report(read_run(tmp_path / "run"))).text
    assert "was built anew since this run" in text
    assert "123,456" not in text
    (tmp_path / "dataset" / "manifest.json").unlink()
    assert "cannot be described any more" in Page(render_report(read_run(tmp_path / "run"))).text


def run_report(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.report", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_the_program(tmp_path: Path):
    make_run(tmp_path / "run", tmp_path / "dataset")
    done = run_report("--run", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert "curves of: valid, test" in done.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 1_000_000

    done = run_report("--run", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {tmp_path} is not a run: it has no config.json; jobs.train makes one\n"

    (tmp_path / "run" / "plan.json").write_text('[{"table"')
    done = run_report("--run", str(tmp_path / "run"))
    assert done.returncode == 1
    assert f"error: {tmp_path}/run/plan.json cannot be read" in done.stderr
