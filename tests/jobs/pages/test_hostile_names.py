"""Every page with names, reasons and paths that are HTML: they stay text, in the document and in Plotly's figures.

``tests/jobs/test_status.py`` does the same to the page on retraining.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.disk.dataset import DatasetManifest, Rejected
from features.schema import FeatureSchema, HashEncoding, SparseFeature
from jobs.pages import leaderboard_page, plan_page, report_page, score_api_page
from jobs.pages.report_files import read_run
from tests.browser import open_page
from tests.jobs.test_report import Page, figure_traces, make_candidate, make_run

HOSTILE = """</script><script>alert('1')</script><img src=x onerror="alert(2)"> & 'b' "c" {{ 7 * 7 }}"""
SEEN_BY_PLOTLY = HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def check(html: str, num_shown: int) -> Page:
    """Check that a page shows the hostile name as text so many times at least, and obeys it nowhere."""
    page = Page(html)
    tags = [tag for tag, _ in page.tags]
    assert "img" not in tags and not any(name.startswith("on") for _, given in page.tags for name in given)
    assert html.count("</script>") == tags.count("script")
    assert page.text.count(HOSTILE) >= num_shown
    assert "49" not in re.findall(r"\{\{[^}]*\}\}|\b49\b", page.text)
    for trace in figure_traces(html):
        assert HOSTILE not in json.dumps(trace), "Plotly would obey it"
    return page


def hostile_attribution() -> dict[str, Any]:
    feature = {"name": HOSTILE, **dict.fromkeys(("auc_drop", "logloss_rise", "auc_drop_std", "logloss_rise_std"), 0.1)}
    part = ("auc", "logloss", "mean_logit_positives", "mean_logit_negatives", "mean_abs_part", "variance_share")
    series = {f"{HOSTILE}{i}": {"mean": 1.0, "deviation": 0.1, "histogram": [0.5, 0.5]} for i in range(4)}
    few = {HOSTILE: series[f"{HOSTILE}0"]}
    return {
        "features": [feature],
        "branches": [feature],
        "parts": [{"name": HOSTILE, **dict.fromkeys(part, 0.5)}],
        "fusion_weights": {HOSTILE: 0.5},
        "gates": [{"name": HOSTILE, "series": found, "top": 2.0} for found in (series, few)],
        "p_t": None,
        **{"rows": 10, "split_rows": 20, "split": HOSTILE, "dataset": HOSTILE, "step": 3, "repeats": 2},
    }


def hostile_tables() -> dict[str, Any]:
    names = ("rows", "table_bytes", "weight_bytes", "auc", "logloss", "calibration", "max_difference")
    latency = [{"batch_size": 1, "milliseconds": 1.0, "rows_per_second": 1e3}]
    entry = {"tables": HOSTILE, **dict.fromkeys(names, 1), "latency": latency}
    about = {"step": 3, "split": HOSTILE, "dataset": HOSTILE, "threads": 1, "vocabulary_bytes": 1}
    return {"precisions": [entry], **about}


def test_the_report(tmp_path: Path) -> None:
    run = tmp_path / HOSTILE.replace("/", "\N{DIVISION SLASH}")
    make_run(run, tmp_path / "dataset")
    make_candidate(run, tmp_path)
    files = read_run(run)
    assert isinstance(files.manifest, DatasetManifest) and files.gate is not None
    schema = FeatureSchema("click", sparse=(SparseFeature("user_id", HashEncoding(10), columns=(HOSTILE,)),))
    [newest] = [kept for day, kept in files.data_checks.items() if day == max(files.data_checks)]
    results = tuple(replace(r, feature=r.feature and HOSTILE, reason=HOSTILE) for r in newest.results)
    rules = [replace(rule, name=HOSTILE, reason=HOSTILE, passed=False) for rule in files.gate.verdict.rules]
    kept = replace(newest, results=results, shapes={HOSTILE: next(iter(newest.shapes.values()))})
    files = replace(
        files,
        plan=[{**files.plan[0], "table": HOSTILE, "feature": HOSTILE}],
        metrics={**files.metrics, "seconds": {HOSTILE: 3.0}, "rows_per_second": {HOSTILE: 2.0}},
        evaluations={HOSTILE: files.evaluations["valid"]},
        attribution=hostile_attribution(),
        tables=hostile_tables(),
        data_checks={max(files.data_checks): kept},
        gate=replace(files.gate, day=HOSTILE, verdict=replace(files.gate.verdict, rules=tuple(rules))),
        dataset_path=HOSTILE,
        manifest=replace(files.manifest, schema=schema, rejected=Rejected(3, {HOSTILE: 3}, "x")),
        config={"training": {"model": {"easy": {"kind": HOSTILE}}, "device": HOSTILE, HOSTILE: HOSTILE}},
    )
    html = report_page.render_report(files)
    page = check(html, num_shown=40)
    assert page.row("user_id", HOSTILE, "hash")
    names = [name for trace in figure_traces(html) for name in [trace.get("name"), *trace.get("y", ())]]
    assert names.count(SEEN_BY_PLOTLY) >= 8
    bare = replace(files, attribution={}, tables={}, manifest=None, notes={"dataset": HOSTILE}, progress=[], checks=[])
    check(report_page.render_report(bare), num_shown=20)

    opened = open_page(html)
    assert opened.complaints == [] and opened.fetched == [] and "<img" not in opened.dom


def test_the_plan() -> None:
    rank = dict.fromkeys(("weights", "state", "gradients", "cache", "lookups", "bytes", "host"), 1 << 20)
    rank |= {"rank": 0, "num_shards": 1, "compute_ms": 1.0, "exchange_ms": 0.0, "ms": 1.0}
    entry = {"table": HOSTILE, "rows": 10, "width": 4, "sharding": HOSTILE, "kernel": HOSTILE, "num_shards": 1}
    sizes = dict.fromkeys(("bytes", "state", "cache", "host"), 1 << 20)
    result = {
        "cluster": {"device": HOSTILE, "world_size": 1, "local_world_size": 1, "device_memory": 1 << 30},
        "global_batch_size": 8,
        "batch_size_per_rank": 8,
        "embedding_optimizer": HOSTILE,
        "reserve": {"fixed": 1, "margin": 1, "left": 1},
        "bandwidth_gb_per_s": {"memory": 1.0, "within_host": 1.0, "between_hosts": 1.0},
        "total": {"weights": 1, "state": 1, "cache": 1, "host": 1},
        "balance": {name: {"largest": 1.0, "mean": 1.0, "ratio": 1.0} for name in ("bytes", "ms")},
        "tables": [{**entry, **sizes, "ranks": [0]}],
        "ranks": [rank],
    }
    html = plan_page.render_plan(result, {(HOSTILE, 0): 1 << 20})
    check(html, num_shown=6)
    assert [SEEN_BY_PLOTLY] in [trace.get("y") for trace in figure_traces(html)]


def test_the_leaderboard() -> None:
    row: dict[str, Any] = {"dataset": HOSTILE, "seeds": 1, "parameters": 10, "epochs": 1.0, "train_seconds": 1.0}
    row |= {f"valid_{metric}{end}": 0.5 for metric in ("auc", "logloss") for end in ("", "_std")}
    compared = {"compared_on": HOSTILE, "compared_seeds": 1}
    compared |= {f"{m}_{end}": 0.1 for m in ("auc", "logloss") for end in ("difference", "low", "high")}
    rows = [{**row, "model": HOSTILE, **compared}, {**row, "model": f"{HOSTILE}, too"}]
    html = leaderboard_page.render_leaderboard({"a": HOSTILE}, rows, reference=HOSTILE)
    page = check(html, num_shown=7)
    assert page.row(HOSTILE, "1", "10") and page.row(HOSTILE, "1", "+0.100000 (+0.100000 to +0.100000)")
    html = leaderboard_page.render_leaderboard({"a": HOSTILE}, rows[1:], reference=HOSTILE)
    assert "Only one model: nothing to compare." in Page(html).text


@pytest.mark.parametrize("is_guarded", [True, False])
def test_the_description_of_a_service(is_guarded: bool) -> None:
    paths = {
        f"/{HOSTILE}": {
            "post": {"description": HOSTILE, "responses": {"200": {}, HOSTILE: {}}},
            "get": {"responses": {}},
        }
    }
    document: dict[str, Any] = {"info": {"description": HOSTILE}, "paths": paths}
    if is_guarded:
        document["components"] = {"securitySchemes": {HOSTILE: {}}}
    page = Page(score_api_page.render_score_api(document, [HOSTILE]))
    assert {tag for tag, _ in page.tags}.isdisjoint(("script", "img"))
    assert page.row(f"POST /{HOSTILE}", HOSTILE)[2] == f"200, {HOSTILE}"
    assert json.dumps({"rows": [{HOSTILE: None}]}) in page.text
    assert json.dumps(document, indent=1) in page.text
    assert ("Bearer $TWINFOCUS_TOKEN" in page.text) == is_guarded
