"""jobs.status on ten days of real files, before there are any, on half of them, and in a real browser."""

import fcntl
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features.disk.atomic import write_json
from jobs import status
from jobs.cli.config import load_config
from jobs.pages.status_page import MAX_REASONS, render_status
from jobs.registry.registry import Registry
from jobs.retraining.data_checks import CheckResult, Checks, Level
from jobs.retraining.date_index import DateIndex
from jobs.retraining.raw_partitions import dashed
from jobs.retraining.retrain_folder import TRAINED_TAG
from jobs.retraining.retraining_status import RetrainingStatus, read_status
from jobs.retraining.status_text import age, describe_status
from tests.browser import open_page
from tests.jobs.test_report import Page, figure_traces
from tests.stand_ins.retrained import (
    BROKEN,
    DAYS,
    FIRST,
    HOSTILE,
    LATE,
    REFUSED,
    ROLLED_BACK,
    UNSEEN,
    Retrained,
    judge_day,
    make_retrained,
)

RunHere = Callable[..., tuple[int, str, str]]
KNOWN = [FIRST, *DAYS[1:3], DAYS[5], REFUSED]
"""What the champion was trained on: it was promoted on day 28, and the day after was rolled back."""


@pytest.fixture(scope="module")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Retrained:
    return make_retrained(tmp_path_factory.mktemp("retrained"))


@pytest.fixture
def own(retrained: Retrained, tmp_path: Path) -> Retrained:
    """A copy that a test may damage."""
    made = Retrained(tmp_path / "own", tmp_path / "c.toml", retrained.logs)
    shutil.copytree(retrained.root, made.root)
    text = retrained.config.read_text(encoding="utf-8")
    made.config.write_text(text.replace(str(retrained.root), str(made.root)), encoding="utf-8")
    return made


def read(made: Retrained, *overrides: str) -> RetrainingStatus:
    return read_status(made.root, "ctr", None, load_config([str(made.config)], list(overrides)))


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file's bytes and time, every folder's time."""
    paths = [folder, *folder.rglob("*")]
    return {str(p): (p.read_bytes() if p.is_file() else b"", p.stat().st_mtime_ns) for p in paths}


# -------------------------------------------------------------------------------------------------------- what is found


def test_what_became_of_every_day(retrained: Retrained) -> None:
    found = json.loads(json.dumps(read(retrained).to_json()))
    champion = found["champion"]
    assert (champion["version"], champion["trained_on"], champion["newer"]) == (5, KNOWN, list(DAYS[7:]))
    assert champion["promoted"] == next(p["at"] for p in found["promotions"] if p["version"] == 5)
    assert [(p["version"], p["undone"]) for p in found["promotions"]] == [
        *((v, False) for v in (1, 2, 3, 5)),
        (6, True),
    ]
    assert found["notes"] == [] and found["is_running"] is False

    assert [(r["day"][-2:], r["verdict"], r["stopped_by"], r["champion_version"]) for r in found["retrainings"]] == [
        ("22", "promoted", None, 1),
        ("23", "promoted", None, 2),
        ("25", "stopped", "data checks", None),
        ("26", "promoted", None, 3),
        ("27", "refused", "gate", 3),
        ("28", "promoted", None, 5),
        ("29", "promoted", None, 6),
    ]
    stopped, refused = found["retrainings"][2], found["retrainings"][4]
    assert [reason.split(":")[0] for reason in stopped["reasons"]] == ["label rate", "nulls of app"]
    assert {"auc", "logloss"} < {reason.split(":")[0] for reason in refused["reasons"]}
    kept = json.loads((retrained.root / "verdicts" / f"{REFUSED}.json").read_text())
    assert (refused["auc"], refused["seconds"]) == (kept["metrics"]["candidate"]["auc"], 61.5)
    assert found["metrics"][-1]["champion"]["logloss"] == judge_day(ROLLED_BACK, True)["metrics"]["champion"]["logloss"]

    states = {p["name"]: (p["state"], p["is_late"]) for p in found["partitions"]}
    assert states == {
        **{day: ("trained on", False) for day in KNOWN},
        **{day: ("checked", False) for day in DAYS[7:9]},
        LATE: ("not yet seen", True),
        BROKEN: ("stopped", False),
        UNSEEN: ("not yet seen", False),
    }
    broken = next(p for p in found["partitions"] if p["name"] == BROKEN)
    assert broken["level"] == "stop" and broken["null_rates"]["app"] == 1.0 and broken["label_rate"] > 0.4
    assert found["next"] == {
        "build": [LATE, UNSEEN],
        "train": [LATE, *DAYS[7:9]],
        "test": UNSEEN,
        "is_warm": True,
        "valid": None,
    }
    assert FIRST not in found["drift"], "there was nothing to compare it with"
    price = found["drift"][REFUSED]["price"]
    assert (price["distance"], price["limit"], price["value"] > 0.25) == ("psi", 0.25, True)


def test_the_summary(retrained: Retrained) -> None:
    text = describe_status(replace(read(retrained), at="2030-01-01T00:00:00Z"))
    for line in (
        "champion   version 5, promoted 20",
        "trained on 2014-10-21 to 2014-10-27 (5); newest there 2014-10-30, 3 partitions later\n",
        "at work    no retraining\n",
        "next       build and check 2014-10-24, 2014-10-30; train from the champion on 2014-10-24, 2014-10-28, "
        "2014-10-29 and compare on 2014-10-30, if its checks allow it\n",
        "1 stopped (2014-10-25), 2 checked; late: 2014-10-24\n",
        "drift      2014-10-29: 1 of 9 features beyond the limit: price (psi 0.",
    ):
        assert line in text
    days = [line.split()[:2] for line in text.splitlines() if line.startswith("2014-10-")]
    assert days[:3] == [["2014-10-29", "promoted"], ["2014-10-28", "promoted"], ["2014-10-27", "refused"]]


def test_only_the_last_ten_are_listed(own: Retrained) -> None:
    kept = json.loads((own.root / "verdicts" / f"{REFUSED}.json").read_text())
    for day in range(1, 9):
        write_json(own.root / "verdicts" / f"2014110{day}.json", {**kept, "day": f"2014110{day}"})
    found = read(own)
    assert [r["day"] for r in found.to_json()["retrainings"]][::9] == ["20141028", "20141108"]
    assert describe_status(found).count("\n2014-1") == 10
    assert len(found.to_json()["metrics"]) == 14


def test_undefined_metrics(own: Retrained) -> None:
    path = own.root / "verdicts" / f"{REFUSED}.json"
    kept = json.loads(path.read_text())
    metrics = {side: dict.fromkeys(values) for side, values in kept["metrics"].items()}
    rules = [{**rule, "candidate": None, "champion": None} for rule in kept["gate"]["rules"]]
    undefined = {"auc": None, "logloss": None, "metrics": metrics, "gate": {**kept["gate"], "rules": rules}}
    write_json(own.root / "verdicts" / "20141109.json", {**kept, **undefined, "day": "20141109"})
    found = read(own)
    assert "\n2014-11-09  refused" in describe_status(found)
    assert Page(render_status(found)).row("2014-11-09", "refused")[4:6] == ["\N{EN DASH}", "\N{EN DASH}"]
    assert "calibration" in found.outcomes[-1].gate.table()


def test_dates() -> None:
    names = {"201410": "2014-10", "20141028": "2014-10-28", "2014102805+2": "2014-10-28 05+2", "<i>": "<i>"}
    assert {name: dashed(name) for name in names} == names


def test_ages() -> None:
    now = "2014-10-28T12:00:00Z"
    ages = {"2014-10-28T11:59:30Z": "less than a minute", "2014-10-28T11:00:00Z": "1 hour"}
    ages |= {"2014-10-26T11:00:00Z": "2 days", "2014-10-28T11:58:00Z": "2 minutes"}
    assert {since: age(since, now) for since in ages} == ages


# --------------------------------------------------------------------------------------------- nothing is changed by it


def test_nothing_is_changed(own: Retrained) -> None:
    before = tree(own.root)
    render_status(read(own))
    assert tree(own.root) == before


def test_a_retraining_at_work_is_seen_and_not_disturbed(own: Retrained) -> None:
    assert read(own).files.is_running is False
    with (own.root / ".lock").open("w") as lock:
        assert read(own).files.is_running is False
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read(own).files.is_running is True
        assert "at work    a retraining is at work" in describe_status(read(own))
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert read(own).files.is_running is False


# ---------------------------------------------------------------------------------------------- when not all is there


def test_before_anything_was_retrained(retrained: Retrained, tmp_path: Path, run_here: RunHere) -> None:
    root, config = tmp_path / "retrain", tmp_path / "c.toml"
    text = retrained.config.read_text(encoding="utf-8")
    config.write_text(text.replace(str(retrained.root), str(root)), encoding="utf-8")
    code, out, _ = run_here(status.main, "--config", config)
    assert code == 0 and "champion   none yet" in out and "10 not yet seen (2014-10-21, " in out
    assert "build and check 2014-10-21" in out and "from nothing on 2014-10-25" in out
    assert "no page: " in out and not root.exists()

    page = tmp_path / "page.html"
    assert run_here(status.main, "--config", config, "--output", page)[0] == 0
    shown = Page(page.read_text(encoding="utf-8")).text
    for note in ("Nothing has been retrained yet", "No partition has been built yet", "No version has been promoted"):
        assert note in shown

    code, out, error = run_here(status.main, "--config", config, f"retrain.partitions={tmp_path}/{{date}}.csv")
    assert code == 1 and "no partition is there: nothing matches" in out
    assert error == f"error: there is nothing to show of {root}: python -m jobs.retrain begins it\n"
    assert not root.exists()


def test_half_of_it(own: Retrained) -> None:
    """Killed, full disks, damaged files: what can be read is shown, and what cannot is named."""
    (own.root / "registry" / "registry.db").unlink()
    (own.root / "checks" / f"{BROKEN}.json").write_text('{"level": "sto', encoding="utf-8")
    (own.root / "verdicts" / f"{REFUSED}.json").write_text("[]", encoding="utf-8")
    (own.root / "partitions" / DAYS[1] / "manifest.json").write_text("{}", encoding="utf-8")
    shutil.rmtree(own.root / "partitions" / DAYS[2])
    (own.root / "partitions" / UNSEEN / "v1").mkdir(parents=True)
    (own.root / "runs" / UNSEEN).mkdir()
    unfinished = own.root / "verdicts" / f"{ROLLED_BACK}.json"
    write_json(unfinished, {**json.loads(unfinished.read_text()), "is_done": False, "a key of tomorrow": [1]})
    write_json(own.root / "last.json", {"verdict": "failed", "stopped_by": "train", "error": "no disk", "day": UNSEEN})
    found = read(own)
    text, states = describe_status(found), {p.name: p.state for p in found.partitions}
    assert "at work    no retraining; begun and not decided: 2014-10-30\n" in text
    assert "champion   not known" in text and "is no registry: it has no registry.db" in text
    for name in ("registry", f"{BROKEN}.json", f"{REFUSED}.json", f"{DAYS[1]}/manifest.json"):
        assert name in " ".join(found.notes)
    assert "which partitions are there is not known" in found.notes[-1] and "\n" not in "".join(found.notes)
    assert len(found.notes) == 5 and found.todo is None
    assert (states[UNSEEN], states[BROKEN], states[DAYS[2]]) == ("half built", "not checked", "checked")
    *_, unfinished, failed = found.to_json()["retrainings"]
    assert unfinished["reasons"] == ("decided but not carried out: the next retraining does that",)
    assert (failed["verdict"], failed["day"], failed["reasons"]) == ("failed", UNSEEN, ("no disk",))
    page = Page(render_status(found))
    assert "No version has been promoted yet" in page.text and page.row("2014-10-30", "failed")[-1] == "train: no disk"
    assert not (own.root / "registry" / "registry.db").exists()


def test_what_comes_late(own: Retrained, tmp_path: Path) -> None:
    """A day before all others, and more rows of one that is built: wanted or not, by the config."""
    own = replace(own, logs=tmp_path / "logs")
    for day in ("20141001", DAYS[1]):
        own.raw(day).parent.mkdir(parents=True)
        own.raw(day).write_text("site,click\n", encoding="utf-8")
    more, logs = f"{DAYS[1]}+1", f"retrain.partitions={own.logs}/day={{date}}/*.csv"
    states = {p.name: (p.state, p.is_late) for p in read(own, logs).partitions}
    assert (states[more], states["20141001"]) == (("left out", True), ("not yet seen", True))
    states = {p.name: (p.state, p.is_late) for p in read(own, logs, "retrain.late=build").partitions}
    assert states[more] == ("not yet seen", True)
    found = read(own, logs, "retrain.train_on=window")
    states = {p.name: (p.state, p.is_late) for p in found.partitions}
    assert states["20141001"] == ("not yet seen", False), "a window does not go back to it"
    assert f"1 left out ({more.replace('20141022', '2014-10-22')})" in describe_status(found)


def test_days_that_only_the_rows_tell(own: Retrained) -> None:
    rows = {str(own.raw(p.name)): {p.name: p.rows} for p in read(own).partitions if p.rows}
    rows[str(own.raw(FIRST))] = {FIRST: rows[str(own.raw(FIRST))][FIRST] + 5, "20141031": 50, "": 3}
    DateIndex(own.root / "dates").add(list(rows), lambda _: rows)
    before = tree(own.root)
    found = read(own, "retrain.partition_by=day", f"retrain.partitions={own.logs}/*/*.csv")
    assert [p.state for p in found.partitions if p.name == "20141031"] == ["not yet seen"]
    assert found.notes == (
        "2 raw files are new: the next retraining looks for the dates of their rows",
        "the raw files of 20141021 have changed by +5 rows since it was built",
        "3 raw rows have no readable time and are in no partition",
    )
    assert found.todo is not None and found.todo.build == ("20141031",)
    assert tree(own.root) == before


def test_a_champion_that_retraining_did_not_register(own: Retrained) -> None:
    registry = Registry.open(None, own.root / "registry")
    registry._client.delete_model_version_tag("ctr", "5", TRAINED_TAG)
    found = read(own)
    assert found.champion is not None and found.champion.trained_on == found.champion.newer == ()
    assert "version 5 does not say what it was trained on" in found.notes[0]


def test_a_server_that_is_not_there(retrained: Retrained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = read_status(retrained.root, "ctr", "http://127.0.0.1:9", load_config([str(retrained.config)]))
    assert found.place == "http://127.0.0.1:9" and found.champion is None and len(found.outcomes) == 7
    assert "127.0.0.1:9 cannot be reached" in describe_status(found)


# ---------------------------------------------------------------------------------------------------------- the program


def test_the_program(own: Retrained, tmp_path: Path, run_here: RunHere) -> None:
    code, out, error = run_here(status.main, "--config", own.config)
    page = own.root / "status.html"
    assert (code, error) == (0, "") and out.endswith(f"page: {page}\n") and page.stat().st_size > 1_000_000
    page.unlink()

    code, out, error = run_here(status.main, "--root", own.root, "--json")
    found = json.loads(out)
    assert (code, found["champion"]["version"], found["next"]) == (0, 5, None)
    assert LATE not in {p["name"] for p in found["partitions"]}, "without a config the log is not known"
    assert not page.exists()
    assert [path for path in own.root.iterdir() if path.name.startswith(".status")] == []

    code, out, error = run_here(status.main, "--root", own.root, "--json", "--output", tmp_path / "gone" / "a.html")
    assert code == 1 and json.loads(out) and "gone" in error
    assert run_here(status.main, "--root", own.root, "training.max_epochs=3")[0] == 2
    assert run_here(status.main)[0] == 2
    assert run_here(status.main, "--root", own.root, "--name", "other")[0] == 0


# ------------------------------------------------------------------------------------------------------------- the page


def test_the_page_shows_it_all(retrained: Retrained) -> None:
    found = read(retrained)
    html = render_status(found)
    page, traces = Page(html), figure_traces(html)
    for tag, attributes in page.tags:
        assert tag not in ("img", "link", "iframe") and "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")

    refused = page.row("2014-10-27", "refused")
    assert refused[2:4] == ["4", "3"] and refused[-1].startswith("gate: calibration: it predicts 1.67 times")
    reasons = found.reasons(next(outcome for outcome in found.outcomes if outcome.day == "20141027"))
    more = len(reasons) - MAX_REASONS
    assert refused[-1].endswith(f"; and {more} more" if more > 0 else reasons[-1])
    assert page.row("2014-10-25", "stopped", "")[3:5] == ["stop", "3,531"]
    assert page.row("2014-10-24")[1:3] == ["not yet seen", "late"]
    assert page.row("version 6")[2] == "rolled back" and page.row("version 5")[2] == "serving"
    assert page.row("ok", "auc")[2] == f"{found.files.verdicts[ROLLED_BACK].auc:.6g}"
    assert page.row("2014-10-29", "warn", "psi", "price")[6] == "at most 0.25"

    def named(name: str) -> list[dict[str, Any]]:
        return [trace for trace in traces if trace.get("name") == name]

    aucs = [outcome.auc for outcome in found.files.verdicts.values()]
    assert named("candidate")[0]["y"] == aucs and named("champion")[0]["y"][0] is None
    assert named("candidate")[0]["marker"]["symbol"].index("x") == 3
    [heat] = [trace for trace in traces if trace["type"] == "heatmap"]
    assert (len(heat["x"]), sorted(heat["y"])) == (7, sorted(p for p in found.partitions[0].null_rates))
    app = heat["z"][heat["y"].index("app")]
    assert max(app) == app[2] == 2.0, "the emptied column, on the broken day, is far beyond its limit"
    rows = [partition.rows for partition in found.partitions if partition.rows]
    [bars] = [trace for trace in traces if trace.get("y") == rows]
    assert [colour for colour in bars["marker"]["color"]].count("#b3261e") == 1


def hostile(made: Retrained) -> None:
    """Names and reasons that are HTML, wherever a file may hold one."""
    levels: dict[str, Level] = {"psi": "stop", "nulls": "warn", "out of vocabulary": "ok"}
    results = [
        CheckResult(rule, HOSTILE, 0.5, 0.1, "at most 0.25", level, HOSTILE, 0.25) for rule, level in levels.items()
    ]
    shape = {"bins": [HOSTILE, "b"], "current": [0.4, 0.6], "reference": [0.5, 0.5]}
    kept = {**Checks(tuple(results)).to_json(), "shapes": {HOSTILE: shape}}
    write_json(made.root / "checks" / f"{UNSEEN}.json", kept)
    path = made.root / "verdicts" / f"{ROLLED_BACK}.json"
    verdict = json.loads(path.read_text())
    verdict["gate"]["rules"][-1] |= {"name": f"country={HOSTILE}", "reason": HOSTILE, "passed": False}
    verdict["metrics"]["candidate"][HOSTILE] = 1.0
    write_json(path, verdict)
    write_json(made.root / "last.json", {"verdict": "failed", "stopped_by": HOSTILE, "error": HOSTILE, "day": HOSTILE})


def test_names_are_no_markup(own: Retrained) -> None:
    hostile(own)
    html = render_status(read(own))
    assert "<img" not in html and html.count("</script>") == len(re.findall(r"<script[ >]", html))
    assert Page(html).text.count(HOSTILE) > 10
    opened = open_page(html)
    assert opened.complaints == [] and opened.fetched == []
    assert "<img" not in opened.dom


def test_the_page_in_a_browser(retrained: Retrained) -> None:
    html = render_status(read(retrained))
    opened = open_page(html)
    assert opened.complaints == [] and opened.fetched == []
    assert len(opened.plots) == html.count("Plotly.newPlot(") == 11 and min(opened.plots) > 0
    assert opened.dom.count('class="main-svg"') >= len(opened.plots)
    assert opened.width <= 1280, "nothing is wider than the window"
