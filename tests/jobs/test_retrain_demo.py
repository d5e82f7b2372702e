"""The played week without its play: what it breaks, what it notices, and the configs of logs that are retrained on."""

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from jobs.cli.config import load_config
from jobs.demos.demo_client import DemoClient, RequestOutcome, ask, find_wrong, with_histories
from jobs.demos.retrain_week import PLAY, RetrainDemo, break_log, compare_days, cut_log, halve_log
from pipeline.synthetic.generate import LogSpec, generate_chunks, write_chunk

OVERLAYS = sorted(Path("jobs/configs/retrain").glob("*.toml"))
SUMMARY = [
    {"day": d.date, "verdict": d.verdict, "stopped_by": d.stopped_by, "champion_version": d.champion} for d in PLAY
]
PROMOTED = [(1, 100.0), (2, 200.0)]
EXPECTED = {1: [0.25, 0.5], 2: [0.125, 0.75]}
ANSWERS = [
    RequestOutcome(at, 0.1, "", version, tuple(EXPECTED[version]))
    for at, version in ((150, 1), (199.95, 1), (201, 2), (202, 2))
]


def read(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as log:
        return list(csv.DictReader(log))


def test_the_broken_day_has_three_times_the_clicks_and_no_countries(tmp_path: Path) -> None:
    ((_, _, columns),) = generate_chunks(LogSpec(rows=5_000, days=1))
    write_chunk(tmp_path / "day.csv.gz", columns)
    break_log(tmp_path / "day.csv.gz", tmp_path / "broken.csv.gz")
    whole, broken = read(tmp_path / "day.csv.gz"), read(tmp_path / "broken.csv.gz")
    clicks = [sum(int(row["click"]) for row in rows) for rows in (whole, broken)]
    assert clicks[1] == pytest.approx(3 * clicks[0], rel=0.03)
    assert {row["country"] for row in broken} == {""} and list(broken[0]) == list(whole[0])
    for before, after in zip(whole, broken, strict=True):
        assert after["click"] >= before["click"]
        assert {**before, "click": "", "country": ""} == {**after, "click": "", "country": ""}


def test_a_day_comes_by_half_or_is_cut(tmp_path: Path) -> None:
    ((_, _, columns),) = generate_chunks(LogSpec(rows=1_001, days=1))
    write_chunk(tmp_path / "day.csv.gz", columns)
    halve_log(tmp_path / "day.csv.gz", tmp_path / "half.csv.gz")
    assert read(tmp_path / "half.csv.gz") == read(tmp_path / "day.csv.gz")[:500]
    cut_log(tmp_path / "day.csv.gz", tmp_path / "cut.csv.gz")
    with pytest.raises(EOFError):
        read(tmp_path / "cut.csv.gz")


def test_a_week_that_goes_otherwise_is_noticed() -> None:
    assert compare_days(SUMMARY) == []
    promoted = {"day": "2024-01-04", "verdict": "promoted", "stopped_by": None, "champion_version": 3}
    assert compare_days([*SUMMARY[:2], promoted, *SUMMARY[3:]]) == [
        "2024-01-04: verdict is promoted, not stopped",
        "2024-01-04: stopped_by is None, not data checks",
        "2024-01-04: champion_version is 3, not 2",
    ]
    assert {day.verdict for day in PLAY} == {"promoted", "refused", "stopped"} and len(PLAY) >= 7


def test_a_champion_that_is_served_throughout() -> None:
    assert find_wrong(ANSWERS, PROMOTED, EXPECTED) == []


@pytest.mark.parametrize(
    ("answers", "word"),
    [
        ([], "nobody was asked"),
        (
            [*ANSWERS, RequestOutcome(203, 5.0, "TimeoutError: timed out")],
            "1 of 5 requests failed, the first with TimeoutError",
        ),
        (ANSWERS[:2], r"versions \[1\] answered, but champions were \[1, 2\]"),
        ([*ANSWERS, ANSWERS[0]], r"versions \[1, 2, 1\] answered"),
        ([*ANSWERS, replace(ANSWERS[0], version=3)], r"versions \[1, 2, 3\] answered"),
        ([*ANSWERS[:2], replace(ANSWERS[2], at=199.0), ANSWERS[3]], "version 2 answered before it was promoted"),
        ([*ANSWERS[:3], replace(ANSWERS[3], scores=(0.125, 0.7501))], "but its artifact gives"),
    ],
)
def test_a_champion_that_is_not(answers: list[RequestOutcome], word: str) -> None:
    with pytest.raises(AssertionError, match=word):
        assert find_wrong(answers, PROMOTED, EXPECTED) == []


def test_a_row_is_sent_with_what_its_user_clicked_an_hour_before() -> None:
    schema = load_config(["jobs/configs/demo.toml"]).features
    log = [
        {"user_id": user, "timestamp": str(time), "click": click, "category": f"c{time}", "ad_id": f"a{time}"}
        for user, time, click in (("u", 50, "1"), ("u", 20, "1"), ("u", 30, "0"), ("v", 40, "1"), ("u", 100, "1"))
    ]
    rows = [{"user_id": user, "timestamp": str(3600 + time)} for user, time in (("u", 99), ("u", 100), ("w", 100))]
    first, second, third = with_histories(rows, log, schema)
    lists = {"clicks__category": ["c50", "c20"], "clicks__ad_id": ["a50", "a20"], "clicks__time": ["50", "20"]}
    assert first == {**rows[0], **lists}
    assert second["clicks__time"] == ["100", "50", "20"] and third["clicks__time"] == []


class _Server(BaseHTTPRequestHandler):
    """Answers as version 1 does, and three rows with an error."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["rows"]
        self.send_response(200 if len(rows) < 3 else 503)
        self.end_headers()
        self.wfile.write(json.dumps({"version": "1", "scores": [0.5 for _ in rows], "errors": []}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_client_keeps_what_was_answered(address: str) -> None:
    client = DemoClient(address, [{"a": "1"}, {"a": "2"}])
    assert client.is_ready() and not DemoClient("http://127.0.0.1:1", []).is_ready()
    client.start()
    assert client.saw(1)
    client.stop()
    assert {(answer.version, answer.scores, answer.error) for answer in client.answers} == {(1, (0.5, 0.5), "")}
    assert f"{len(client.answers)} requests, 0 failed" in client.describe()
    assert "HTTPError: HTTP Error 503" in ask(address, [{}, {}, {}]).error
    assert "URLError" in ask("http://127.0.0.1:1", []).error


def test_nothing_but_an_older_play_is_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is no retraining demo"):
        RetrainDemo(tmp_path, 10).run()
    assert (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda p: p.stem)
def test_configs_say_how_to_retrain_and_what_to_expect(overlay: Path) -> None:
    config = load_config([f"jobs/configs/{overlay.name}", str(overlay)])
    assert config.retrain is not None and config.training.max_epochs < 5
    header = "\n".join(line for line in overlay.read_text().splitlines() if line.startswith("#"))
    assert f"--config jobs/configs/{overlay.name} --config {overlay}" in header
    assert "jobs.retrain" in header and "Cost" in header and "Expect" in header
