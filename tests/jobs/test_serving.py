"""A real service on Ray Serve: its answers, what it refuses, and versions and replicas that change under load."""

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case
from schemathesis.core.result import Ok

from jobs.registry.registry import Registry
from jobs.serving.score_request import BUDGET_HEADER
from jobs.serving.scorer import ScoreWork, score_in_time
from tests.sockets import check_loopback, listening
from tests.stand_ins.tiny_model import NAME, raw_rows, register_tiny
from tests.stand_ins.tiny_service import TinyService, started
from training.ship.predict import Predictor

pytestmark = pytest.mark.slow

TOKEN = "not-a-secret"
SECONDS = 120.0
HEALTH_CHECKS = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)


@dataclass(frozen=True)
class Serving:
    service: TinyService
    registry: Registry
    predictors: dict[int, Predictor]

    def damage(self, version: int) -> tuple[Path, str]:
        """Change a file of a version; the file and what it held."""
        path = self.registry.fetch(f"models:/{NAME}/{version}") / "golden.jsonl"
        held = path.read_text()
        path.write_text(held + "\n")
        return path, held


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Version 1 of three serves, on two replicas."""
    folder = tmp_path_factory.mktemp("serving")
    registry, artifacts = register_tiny(folder, num_versions=3)
    limits = ("--max-rows", 200, "--max-bytes", 100_000, "--timeout", SECONDS, "--log-json")
    more = ("--registry", registry.place, "--replicas", 2, "--poll", 0.5, *limits)
    with started(folder, "--model", f"models:/{NAME}@champion", *more, token=TOKEN) as service:
        predictors = {version: Predictor.load(path) for version, path in enumerate(artifacts, start=1)}
        yield Serving(service, registry, predictors)
        assert service.stop() == 0, service.output.read_text()


def wait_for(serving: Serving, **expected: Any) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while (health := serving.service.health()) | expected != health:
        assert time.monotonic() < deadline, health
        time.sleep(0.1)
    return health


def test_scores_are_the_predictors(serving: Serving) -> None:
    for num_rows in (0, 1, 2, 50, 200):
        rows = raw_rows(num_rows, seed=num_rows)
        answer = serving.service.score(rows)
        assert (answer["model"], answer["version"], answer["errors"]) == (NAME, 1, [])
        assert answer["scores"] == pytest.approx(serving.predictors[1].predict(rows).tolist(), abs=1e-6)


def test_a_malformed_row_is_answered_beside_the_others(serving: Serving) -> None:
    rows = raw_rows(6)
    rows[1]["price"], rows[4]["age"], rows[5]["device"] = "much", "old", 0.5
    answer = serving.service.score(rows)
    assert [(error["row"], error["error"][:14]) for error in answer["errors"]] == [
        (2, "column 'price'"),
        (5, "column 'age': "),
        (6, "column 'device"),
    ]
    assert [score is None for score in answer["scores"]] == [False, True, False, False, True, True]
    good = [row for row, score in zip(rows, answer["scores"], strict=True) if score is not None]
    scores = [score for score in answer["scores"] if score is not None]
    assert scores == pytest.approx(serving.predictors[1].predict(good).tolist(), abs=1e-6)


def test_refusals(serving: Serving) -> None:
    ask = serving.service.ask
    lacking = [{key: value for key, value in row.items() if key != "age"} for row in raw_rows(2)]
    for body, status, detail in (
        (b"[", 422, "is not JSON"),
        (b'[{"user": 1, "user": 2}]', 422, "key 'user' is there twice"),
        (json.dumps(lacking).encode(), 422, "row 1 lacks column 'age'"),
        (json.dumps(raw_rows(201)).encode(), 413, "201 rows are too many: a request may have 200"),
        (b" " * 100_001, 413, "the body is longer than 100000 bytes"),
    ):
        found, text = ask("/v1/score", body)
        assert found == status and detail in json.loads(text)["detail"]
    assert ask("/v1/score")[0] == 405 and ask("/nothing")[0] == 404
    for path in ("/v1/score", "/v1/buckets", "/v1/schema", "/v1/values", "/metrics", "/docs", "/openapi.json"):
        body = b"[]" if path in ("/v1/score", "/v1/buckets") else None
        for authorization in ("", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xe9"):
            assert ask(path, body, Authorization=authorization)[0] == 401, (path, authorization)
        assert ask(path, body)[0] == (409 if path == "/v1/buckets" else 200)
    assert ask("/healthz", Authorization="")[0] == 200


def test_shared_columns_are_given_once(serving: Serving) -> None:
    rows = [{**row, "user": 7, "age": None} for row in raw_rows(20)]
    candidates = [{name: row[name] for name in row if name not in ("user", "age")} for row in rows]
    body = {"shared": {"user": 7, "age": None}, "candidates": candidates}
    status, text = serving.service.ask("/v1/score", json.dumps(body).encode())
    assert status == 200
    assert json.loads(text)["scores"] == pytest.approx(serving.predictors[1].predict(rows).tolist(), abs=1e-6)


def test_a_time_budget_that_is_over(serving: Serving) -> None:
    body = json.dumps(raw_rows(1)).encode()
    for budget, expected in (("0.001", 504), ("60000", 200), ("soon", 422)):
        status, text = serving.service.ask("/v1/score", body, **{BUDGET_HEADER: budget})
        assert status == expected, text
    before = read_metrics(serving)["twinfocus_rows_total"]
    status, text = serving.service.ask("/v1/score", body, **{BUDGET_HEADER: "0.001"})
    assert json.loads(text) == {"detail": "the time budget of 0.001 ms is over"}
    after = read_metrics(serving)
    assert after["twinfocus_rows_total"] == before and after["twinfocus_over_budget_total"] == 2


def test_a_replica_does_not_compute_what_nobody_waits_for(serving: Serving) -> None:
    predictor = serving.predictors[1]
    found = score_in_time(
        predictor,
        [
            ScoreWork(raw_rows(2), time.time() - 1),
            ScoreWork(raw_rows(3), None),
            ScoreWork(raw_rows(1), time.time() + 60),
        ],
    )
    assert found[0] is None
    assert found[1] is not None and len(found[1].scores) == 3
    assert found[1].values is not None and found[1].values.rows == 4
    assert found[2] is not None and len(found[2].scores) == 1 and found[2].values is None


def test_the_schema_says_what_a_row_needs(serving: Serving) -> None:
    found = json.loads(serving.service.ask("/v1/schema")[1])
    assert (found["model"], found["version"], found["max_rows"]) == (NAME, 1, 200)
    columns = {column["name"]: column for column in found["columns"]}
    assert set(columns) == set(raw_rows(1)[0])
    assert columns["price"]["types"][0] == "number"
    assert columns["genres"]["features"] == [{"feature": "genres", "encoding": "hash", "separator": "|"}]
    assert found["label"] == {"column": "click", "is_1_where": "click"}


def test_unknown_values_are_told(serving: Serving) -> None:
    before = read_metrics(serving)
    rows = [{**row, "device": "Mobile", "user": None} for row in raw_rows(150)]
    serving.service.score(rows)
    after = read_metrics(serving)
    for kind, feature in (("unknown", "device"), ("missing", "user")):
        name = f'twinfocus_values_total{{feature="{feature}",kind="{kind}"}}'
        assert after[name] - before.get(name, 0) == 150
    assert after['twinfocus_trained_values{feature="device",kind="unknown"}'] == 0
    seen = json.loads(serving.service.ask("/v1/values")[1])
    assert seen["values"]["device"]["unknown"] > 0 and seen["values"]["device"]["train"]["unknown"] == 0
    for _ in range(20):
        serving.service.score(rows)
    seen = json.loads(serving.service.ask("/v1/values")[1])
    [sentence] = [warning for warning in seen["warnings"] if "'device'" in warning]
    assert "not in its vocabulary, where training had 0.0%" in sentence
    assert "one of them is " in sentence
    deadline = time.monotonic() + SECONDS
    while "feature 'device': " not in serving.service.output.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def read_metrics(serving: Serving) -> dict[str, float]:
    text = serving.service.ask("/metrics")[1]
    return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")}


def test_metrics_count_what_was_asked(serving: Serving) -> None:
    before = read_metrics(serving)
    serving.service.score([*raw_rows(2), {**raw_rows(1)[0], "price": "much"}])
    after = read_metrics(serving)
    names = ('requests_total{code="200"}', "rows_total", "row_errors_total", "request_seconds_count")
    assert [after[f"twinfocus_{n}"] - before.get(f"twinfocus_{n}", 0) for n in names] == [1, 3, 1, 1]
    [version] = [name for name in after if name.startswith("twinfocus_model_version{")]
    assert 'name="ctr"' in version and 'version="1"' in version
    assert after["twinfocus_replicas"] == 2


def test_the_page_needs_no_internet(serving: Serving) -> None:
    page = serving.service.ask("/docs")[1]
    assert "/v1/score" in page and "genres" in page
    assert not re.search(r"(src|href)=.(http|//)|@import|<script", page)


def test_everything_listens_on_loopback(serving: Serving) -> None:
    seen = listening(psutil.Process(serving.service.process.pid))
    check_loopback(seen, "gcs_server", "raylet", "python", "ServeReplica")


def test_the_interface_keeps_to_its_own_document(serving: Serving) -> None:
    assert check_interface(serving.service, {"Authorization": f"Bearer {TOKEN}"}) == 6


def test_a_model_without_bucket_tables_makes_none(serving: Serving) -> None:
    status, text = serving.service.ask("/v1/buckets", json.dumps(raw_rows(1)).encode())
    assert status == 409 and "has no sequence whose encoder is 'sdim': send the events" in json.loads(text)["detail"]


def check_interface(service: TinyService, headers: dict[str, str] | None = None) -> int:
    """Ask every operation what the service's own document allows; how many there are."""
    document = json.loads(service.ask("/openapi.json")[1])
    api = schemathesis.openapi.from_dict(document)

    num_operations = 0
    for operation in api.get_all_operations():
        assert isinstance(operation, Ok)

        @given(case=operation.ok().as_strategy())
        @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=HEALTH_CHECKS)
        def check(case: Case) -> None:
            if float(case.headers.get(BUDGET_HEADER, 0)) < 60_000:  # may be over: then 504 is right
                case.headers.pop(BUDGET_HEADER, None)
            case.call_and_validate(base_url=service.url, headers=headers, timeout=60)

        check()
        num_operations += 1
    return num_operations


# ------------------------------------------------------------------------------------------------- changes under load


@dataclass
class Load:
    """Clients that ask all the time; every answer is of one version and is what that version gives."""

    serving: Serving
    rows: list[dict[str, Any]] = field(default_factory=lambda: raw_rows(5))
    versions: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __enter__(self) -> "Load":
        self.stopped = threading.Event()
        self.expected = {v: p.predict(self.rows).tolist() for v, p in self.serving.predictors.items()}
        self.clients = [threading.Thread(target=self._ask_on) for _ in range(4)]
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        for client in self.clients:
            client.join()

    def _ask_on(self) -> None:
        while not self.stopped.wait(0.01):
            try:
                answer = self.serving.service.score(self.rows)
                assert answer["scores"] == pytest.approx(self.expected[answer["version"]], abs=1e-6)
                self.versions.append(answer["version"])
            except (AssertionError, OSError) as error:
                self.wrong.append(str(error))


def test_promotions_a_damaged_version_and_killed_replicas(serving: Serving) -> None:
    with Load(serving) as load:
        wait_for(serving, version=1, replicas=2)
        serving.registry.promote(NAME, 2)
        wait_for(serving, version=2, refused=None, replicas=2)

        path, held = serving.damage(3)
        serving.registry.promote(NAME, 3)
        deadline = time.monotonic() + SECONDS
        while not (refused := serving.service.health()["refused"]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "ctr version 3" in refused and "golden.jsonl is missing or was changed after export" in refused
        wait_for(serving, version=2, status="ready")
        path.write_text(held)
        serving.registry.rollback(NAME)
        wait_for(serving, version=2, refused=None)

        for process in serving.service.replicas()[:1]:
            process.send_signal(signal.SIGKILL)
        wait_for(serving, replicas=1)
        wait_for(serving, replicas=2)

        for process in serving.service.replicas():
            process.send_signal(signal.SIGKILL)
        wait_for(serving, replicas=0, status="waiting")
        wait_for(serving, replicas=2, status="ready")

        assert serving.registry.rollback(NAME).version == 1
        wait_for(serving, version=1)
    assert load.wrong == []
    assert set(load.versions) == {1, 2}
    output = serving.service.output.read_text()
    assert "ctr version 3" in output and "ctr version 2" in output and "stays: " in output
    # Ray itself writes about a killed worker beside our lines, in words of its own.
    said = [json.loads(line) for line in output.splitlines() if "(raylet)" not in line]
    assert {"model": NAME, "version": 2}.items() <= next(
        line for line in said if line["message"].startswith("serves ctr version 2")
    ).items()
    assert TOKEN not in output
