"""A real service whose model reads bucket tables: it makes them, scores rows that have them, and refuses old ones."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from jobs.registry.registry import Registry
from tests.jobs.test_serving import check_interface
from tests.stand_ins.bucket_artifacts import DEVICES, VISITS, make_rows, without_events, write_bucket_artifacts
from tests.stand_ins.tiny_model import NAME
from tests.stand_ins.tiny_service import TinyService, started
from training.ship.predict import Predictor

pytestmark = pytest.mark.slow

SECONDS = 120.0
LISTS = ("visits__user", "visits__device", "devices__device", "devices__dwell")


@dataclass(frozen=True)
class Serving:
    service: TinyService
    registry: Registry
    predictors: dict[int, Predictor]

    def make(self, rows: list[dict[str, Any]], query: str = "") -> dict[str, Any]:
        """The answer to a request for tables that must be answered."""
        status, text = self.service.ask(f"/v1/buckets{query}", json.dumps(rows).encode())
        assert status == 200, text
        return json.loads(text)

    def metrics(self) -> dict[str, float]:
        lines = self.service.ask("/metrics")[1].splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Version 1 of two serves."""
    folder = write_bucket_artifacts(tmp_path_factory.mktemp("serving"))
    registry = Registry.open(None, folder / "registry")
    for name in ("int8", "other"):
        registry.register(NAME, folder / name)
    registry.promote(NAME, 1)
    more = ("--registry", registry.place, "--poll", 0.5, "--max-bytes", 200_000, "--max-value", 100)
    with started(folder, "--model", f"models:/{NAME}@champion", *more) as service:
        predictors = {n: Predictor.load(folder / name) for n, name in enumerate(("int8", "other"), start=1)}
        yield Serving(service, registry, predictors)
        assert service.stop() == 0, service.output.read_text()


def histories(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: row[name] if isinstance(row[name], list) else row[name].split() for name in LISTS} for row in rows]


def test_rows_with_tables_among_rows_with_events(serving: Serving) -> None:
    rows, predictor = make_rows(20, longest=15), serving.predictors[1]
    expected = predictor.predict(rows).tolist()
    for query, tolerance in (("", 1e-6), ("?precision=float32", 1e-6), ("?precision=float16", 1e-3)):
        before = serving.metrics()
        made = serving.make(histories(rows), query)
        assert (made["model"], made["version"], made["errors"]) == (NAME, 1, [])
        assert made["tables"] == predictor.buckets.make(rows, "float16" if "16" in query else "float32")
        given = [{**row, **table} for row, table in zip(without_events(rows), made["tables"], strict=True)]
        mixed = [row if number % 3 else other for number, (row, other) in enumerate(zip(rows, given, strict=True))]
        for asked in (given, mixed):
            answer = serving.service.score(asked)
            assert answer["errors"] == [] and answer["scores"] == pytest.approx(expected, abs=tolerance)
        after = serving.metrics()
        assert after["twinfocus_table_rows_total"] - before["twinfocus_table_rows_total"] == 20
        name = 'twinfocus_values_total{feature="devices__device",kind="missing"}'
        assert after[name] - before.get(name, 0) == 2 * 5, "a row whose events are in a table is not without any"


def test_a_users_table_is_sent_once(serving: Serving) -> None:
    rows, predictor = make_rows(6, seed=3, longest=15), serving.predictors[1]
    whole = [{**row, **{name: rows[0][name] for name in (*VISITS, *DEVICES)}} for row in rows]
    [table] = serving.make(histories(rows[:1]))["tables"]
    kept = {name: value for name, value in without_events(rows[:1])[0].items() if name in VISITS}
    candidates = [{k: v for k, v in row.items() if k not in (*VISITS, *DEVICES)} for row in rows]
    status, text = serving.service.ask(
        "/v1/score", json.dumps({"shared": {**kept, **table}, "candidates": candidates}).encode()
    )
    assert status == 200, text
    assert json.loads(text)["scores"] == pytest.approx(predictor.predict(whole).tolist(), abs=1e-6)


def test_refusals(serving: Serving) -> None:
    rows = make_rows(4, longest=15)
    [row, *_] = given = [
        {**row, **of} for row, of in zip(without_events(rows), serving.make(histories(rows))["tables"], strict=True)
    ]
    lacking = {name: value for name, value in row.items() if name != "devices__buckets"}
    long = {**histories(rows)[0], "devices__device": ["mobile"] * 101}
    many = histories(make_rows(200, longest=3))
    for path, body, status, detail in (
        ("/v1/score", [lacking, row], 422, "row 1 lacks column 'devices__device'"),
        ("/v1/score", [{k: v for k, v in row.items() if k not in VISITS}], 422, "row 1 lacks column 'visits__user'"),
        ("/v1/buckets", [{"visits__user": None}], 422, "row 1 lacks column 'visits__device'"),
        ("/v1/buckets", [long], 422, "row 1, column 'devices__device': the value is longer than 100"),
        ("/v1/buckets", many, 413, "the tables of 200 rows are "),
        ("/v1/buckets?precision=int8", [], 422, "precision 'int8' is none of float32, float16"),
        ("/v1/buckets", {"row": []}, 422, "the body must be"),
    ):
        found, text = serving.service.ask(path, json.dumps(body).encode())
        assert found == status and detail in json.loads(text)["detail"], text
    cut = row["devices__buckets"][:-8]
    bad = [{**row, "devices__buckets": cut}, {**row, "devices__device": ["a"]}, {**row, "liked__buckets": "x"}, row]
    answer = serving.service.score([*bad, given[1]])
    assert [score is None for score in answer["scores"]] == [True, True, True, False, False]
    assert [error["row"] for error in answer["errors"]] == [1, 2, 3]
    for error, said in zip(answer["errors"], (" bytes where ", "leave one out", "only 'sdim' reads"), strict=True):
        assert said in error["error"]
    made = serving.make([{**histories(rows)[0], "visits__device": []}, histories(rows)[1]])
    assert made["tables"][0] is None and made["tables"][1] is not None
    assert [error["row"] for error in made["errors"]] == [1] and "different lengths" in made["errors"][0]["error"]


def test_the_schema_names_the_columns(serving: Serving) -> None:
    columns = {column["name"]: column for column in json.loads(serving.service.ask("/v1/schema")[1])["columns"]}
    assert columns["visits__buckets"]["in_place_of"] == [], "short reads the newest visits"
    assert columns["devices__buckets"]["in_place_of"] == list(DEVICES)
    assert columns["devices__buckets"]["types"] == ["string", "null"] and "liked__buckets" not in columns


def test_the_interface_keeps_to_its_own_document(serving: Serving) -> None:
    assert check_interface(serving.service) == 6


def test_after_a_promotion_old_tables_are_refused_row_by_row(serving: Serving) -> None:
    rows = make_rows(4, longest=15)
    old = serving.make(histories(rows))["tables"]
    serving.registry.promote(NAME, 2)
    deadline = time.monotonic() + SECONDS
    while serving.service.health()["version"] != 2:
        assert time.monotonic() < deadline, serving.service.health()
        time.sleep(0.1)
    given = [{**row, **table} for row, table in zip(without_events(rows), old, strict=True)]
    answer = serving.service.score([*given, *rows])
    expected = serving.predictors[2].predict(rows).tolist()
    assert answer["version"] == 2 and answer["scores"][:4] == [None] * 4
    assert answer["scores"][4:] == pytest.approx(expected, abs=1e-6)
    for error in answer["errors"]:
        assert "the bucket table is of model" in error["error"] and "make it again" in error["error"]
    new = serving.make(histories(rows))
    given = [{**row, **table} for row, table in zip(without_events(rows), new["tables"], strict=True)]
    assert new["version"] == 2 and serving.service.score(given)["scores"] == pytest.approx(expected, abs=1e-6)
