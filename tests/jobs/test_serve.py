"""What a service takes and refuses, and where its model is found; ``test_serving.py`` asks a real one."""

import asyncio
import json
import shutil
import socket
import time
from pathlib import Path

import pytest

from features.bucket_tables import BucketColumn
from features.disk.artifact import ArtifactError, digest_of_artifact
from features.schema import (
    DenseFeature,
    FeatureSchema,
    LogEncoding,
    SequenceFeature,
    SparseFeature,
    Timestamp,
    VocabularyEncoding,
)
from jobs import serve
from jobs.cli.conventions import TOKEN
from jobs.registry.found_artifact import FollowedVersion, find_artifact, find_in, open_registry
from jobs.registry.store import SETTLED_SECONDS, RegistryError
from jobs.serving import server
from jobs.serving.row_schema import RowSchema
from jobs.serving.score_request import RequestError, RequestLimits, ScoreRequest, read_budget
from tests.jobs.registry.test_registry import make_artifact, make_registry

LIMITS = RequestLimits(rows=2, value=5)
SCHEMA = FeatureSchema(
    label="click",
    sparse=(SparseFeature("user", VocabularyEncoding(), separator="|"),),
    dense=(DenseFeature("price"),),
)
WANTED = RowSchema(SCHEMA, frozenset(), {})


def rows_of(body: object) -> list[dict[str, object]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return [dict(row) for row in ScoreRequest.parse(data, LIMITS).rows_of(WANTED)]


def test_rows_keep_their_values_and_lose_other_columns() -> None:
    row = {"user": "u", "price": 2.5}
    for body in ([{**row, "more": {"a": [1]}}], {"rows": [{**row, "more": "x" * 100}]}):
        assert rows_of(body) == [row]
    values = ["12345", -(2**63), 2**64, 1e300, True, None, ["a", "b", None], [], ""]
    assert [rows_of([{"user": v, "price": None}])[0]["user"] for v in values] == values
    assert rows_of([]) == rows_of({"rows": []}) == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not JSON"),
        (b'{"rows": [', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b'[{"user": NaN, "price": 1}]', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        ({"user": "u", "price": 1}, "the body must be"),
        ({"rows": [], "more": 1}, "the body must be"),
        ({"rows": None}, "the body must be"),
        ("rows", "the body must be"),
        ([{"user": "u", "price": 1}, 3], "row 2 is no object"),
        ([{"user": "u", "price": 1}, {"user": "u"}], "row 2 lacks column 'price'"),
        ([{"user": "123456", "price": 1}], "row 1, column 'user': the value is longer than 5"),
        ([{"user": ["a"] * 6, "price": 1}], "row 1, column 'user': the value is longer than 5"),
        ([{"user": ["a", "123456"], "price": 1}], "row 1, column 'user': the value is longer than 5"),
        ([{"user": [["a"]], "price": 1}], "a list in a list"),
        ([{"user": {"a": 1}, "price": 1}], "an object is no value"),
        ([{"user": 2**1024, "price": 1}], "a number that is too large"),
        (b'[{"user": 1, "price": 2, "user": 3}]', "key 'user' is there twice in one object"),
        (b'[{"user": 1, "pri\\u0063e" : 2, "price": 3}]', "key 'price' is there twice in one object"),
        (b'{"rows": [], "rows": []}', "key 'rows' is there twice in one object"),
        (b'[{"user": "a:b", "price": 1, "more": {"x": 1, "x": 2}}]', "key 'x' is there twice in one object"),
        ([{"user": "u", "Price": 1}], r"row 1 lacks column 'price' \(it has 'Price'\)"),
        ({"shared": {"user": "u"}}, "the body must be"),
        ({"shared": [], "candidates": []}, "the body must be"),
        ({"shared": {"user": "u"}, "rows": []}, "the body must be"),
        ({"shared": {"user": "u"}, "candidates": [3]}, "candidate 1 is no object"),
        (
            {"shared": {"user": "u"}, "candidates": [{"price": 1}, {"price": 1, "user": "v"}]},
            "candidate 2 has column 'user', which shared has too",
        ),
        ({"shared": {"user": "123456"}, "candidates": []}, "shared, column 'user': the value is longer than 5"),
        ({"shared": {"user": "u"}, "candidates": [{}]}, "row 1 lacks column 'price'"),
        (
            b'{"shared": {"user": 1, "user": 2}, "candidates": [{"price": 1}]}',
            "key 'user' is there twice in one object",
        ),
        (b'[{"user": 1' + b"0" * 5000 + b', "price": 1}]', "(is too large|is not JSON)"),
    ],
)
def test_what_is_refused_as_a_whole(body: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as raised:
        rows_of(body)
    assert raised.value.status == 422


def test_columns_that_all_rows_have_may_be_given_once() -> None:
    candidates = [{"price": 1}, {"price": None, "more": ":"}]
    expected = [{"user": "u", "price": 1}, {"user": "u", "price": None}]
    assert rows_of({"shared": {"user": "u", "other": 1}, "candidates": candidates}) == expected
    assert rows_of({"shared": {}, "candidates": expected}) == expected
    assert rows_of({"shared": {"user": "u", "price": 2}, "candidates": [{}]}) == [{"user": "u", "price": 2}]
    assert rows_of({"shared": {"user": "u"}, "candidates": []}) == []


def test_columns_that_a_log_may_lack_a_row_may_lack_too() -> None:
    wanted = RowSchema(SCHEMA, frozenset({"price"}), {})
    request = ScoreRequest.parse(b'[{"user": "u"}, {"user": "v", "price": 3}]', LIMITS)
    assert request.rows_of(wanted) == [{"user": "u", "price": None}, {"user": "v", "price": 3}]
    shared = ScoreRequest.parse(b'{"shared": {"price": 2}, "candidates": [{"user": "v"}]}', LIMITS)
    assert shared.rows_of(wanted) == [{"user": "v", "price": 2}]
    [user, price] = wanted.to_json()["columns"]
    assert (user["required"], price["required"]) == (True, False)
    assert "array" in user["types"] and user["features"] == [
        {"feature": "user", "encoding": "vocabulary", "separator": "|"}
    ]
    config = {"pipeline": {"input": {"format": {"optional": ["price"]}}}}
    assert RowSchema.of(SCHEMA, config, {}) == wanted
    assert RowSchema.of(SCHEMA, {}, {}).optional == frozenset()


def test_histories_are_columns_of_a_row() -> None:
    sparse = (SparseFeature("item", VocabularyEncoding()), SparseFeature("size", LogEncoding()))
    clicks = SequenceFeature("clicks", ("item", "size"), 5, gaps=(60,), newest="last", separator="|")
    schema = FeatureSchema("click", sparse, sequence=(clicks,), timestamp=Timestamp("time"))
    found = {column["name"]: column for column in RowSchema(schema, frozenset(), {}).to_json()["columns"]}
    assert list(found) == ["item", "size", "clicks__item", "clicks__size", "clicks__time", "time"]
    assert found["clicks__item"]["types"] == [*found["item"]["types"], "array"]
    for name in ("clicks__size", "clicks__time"):
        assert found[name]["types"] == [*found["size"]["types"], "array"]
    assert (found["time"]["types"], found["time"]["features"]) == (found["size"]["types"], [])
    assert found["clicks__time"]["features"] == [{"feature": "clicks__gap", "encoding": "boundaries", "separator": "|"}]


def test_a_bucket_table_stands_for_the_columns_of_events() -> None:
    clicks = SequenceFeature("clicks", ("item",), 5, gaps=(60,), newest="last")
    likes, views = (SequenceFeature(name, ("item",), 5, newest="last") for name in ("likes", "views"))
    schema = FeatureSchema(
        "click",
        (SparseFeature("item", VocabularyEncoding()),),
        sequence=(clicks, likes, views),
        timestamp=Timestamp("time"),
    )
    buckets = (
        BucketColumn.of(clicks, "sdim", {"hard": (2, 4, 3)}),
        BucketColumn.of(likes, "sdim", {"hard": (2, 4, 3)}, keeps_events=True),
        BucketColumn.of(views, "mean", {}),
    )
    wanted = RowSchema.of(schema, {}, {}, buckets)
    history = {"clicks__item": "a", "clicks__time": "1"}
    others = {"item": "i", "time": 3, "likes__item": "b", "views__item": None}
    nothing = {"clicks__buckets": None, "likes__buckets": None, "views__buckets": None}

    def select(body: object) -> list[dict[str, object]]:
        request = ScoreRequest.parse(json.dumps(body).encode(), RequestLimits(value=5))
        return [dict(row) for row in request.rows_of(wanted)]

    assert select([{**others, **history}]) == [{**others, **history}], "as without bucket tables"
    empty = dict.fromkeys(history)
    long = "x" * 100  # it is no value that the limit is for
    rows = [{**others, **history, "clicks__buckets": None}, {**others, "clicks__buckets": long}]
    assert select(rows) == [
        {**others, **history, **nothing},
        {**others, **empty, **nothing, "clicks__buckets": long},
    ]
    shared = {
        "shared": {"clicks__buckets": long, "time": 3},
        "candidates": [{k: v for k, v in others.items() if k != "time"}],
    }
    assert select(shared) == [{**others, **empty, **nothing, "clicks__buckets": long}]
    assert select([{**others, **history, "clicks__buckets": "t"}]) == [
        {**others, **history, **nothing, "clicks__buckets": "t"}
    ]
    for row, column in (
        ({**others, "clicks__buckets": None}, "clicks__item"),
        ({**others, "likes__buckets": "t"}, "clicks__item"),
        ({"item": "i", "time": 3, "views__item": None, "clicks__buckets": "t", "likes__buckets": "t"}, "likes__item"),
    ):
        with pytest.raises(RequestError, match=f"row 1 lacks column '{column}'"):
            select([row])
    assert wanted.of_histories.columns == ("clicks__item", "likes__item")
    request = ScoreRequest.parse(b'[{"clicks__item": "a", "likes__item": ["b"], "time": 1}]', LIMITS)
    assert request.rows_of(wanted.of_histories) == [{"clicks__item": "a", "likes__item": ["b"]}]


@pytest.mark.parametrize("text", ["", "soon", "0", "-5", "nan", "inf", "1e999"])
def test_a_time_budget_that_is_none(text: str) -> None:
    with pytest.raises(RequestError, match=r"X-Time-Budget-Ms: .* is no number of milliseconds above 0"):
        read_budget(text)


def test_a_time_budget_in_milliseconds() -> None:
    assert (read_budget(None), read_budget("250"), read_budget("1.5")) == (None, 0.25, 0.0015)


def test_a_followed_version_is_read_again_only_when_the_registry_has_changed(tmp_path: Path) -> None:
    registry = make_registry(tmp_path / "registry")
    artifacts = [make_artifact(tmp_path / f"artifact-{n}", str(n)) for n in (1, 2)]
    for artifact in artifacts:
        registry.register("ctr", artifact)
    registry.promote("ctr", 1)
    followed = FollowedVersion(registry, "models:/ctr@champion")
    assert followed.find().version == 1
    registry.promote("ctr", 2)
    assert followed.find().version == 2  # a change just now counts, whatever the ticks of file times
    time.sleep(SETTLED_SECONDS + 0.1)
    found = followed.find()
    assert registry.state() is not None and registry.state() == registry.state()
    registry.fetch("models:/ctr/2").rename(tmp_path / "gone")
    assert followed.find() is found  # not looked at
    registry.promote("ctr", 1)
    assert followed.find().version == 1
    shutil.rmtree(tmp_path / "registry")
    with pytest.raises(RegistryError):
        followed.find()


def test_too_many_rows() -> None:
    with pytest.raises(RequestError, match="3 rows are too many: a request may have 2") as raised:
        rows_of([{}] * 3)
    assert raised.value.status == 413


def test_where_an_artifact_is_found(tmp_path: Path) -> None:
    registry = make_registry(tmp_path / "registry")
    artifacts = [make_artifact(tmp_path / f"artifact-{n}", str(n)) for n in (1, 2)]
    for artifact in artifacts:
        registry.register("ctr", artifact)
    registry.promote("ctr", 1)
    registry.promote("ctr", 2)

    def champion() -> tuple[int | None, str]:
        found = find_artifact("models:/ctr@champion", registry.place)
        assert digest_of_artifact(found.place) == found.sha256 and found.name == "ctr"
        return found.version, found.sha256

    assert champion() == (2, digest_of_artifact(str(artifacts[1])))
    registry.rollback("ctr")
    assert champion() == (1, digest_of_artifact(str(artifacts[0])))
    assert find_in(open_registry(registry.place), "models:/ctr/2").version == 2
    given = find_artifact(f"{artifacts[0]}/")
    assert (given.place, given.name, given.version) == (str(artifacts[0]), "artifact-1", None)
    with pytest.raises(RegistryError, match="ctr has no best; its aliases: candidate, champion"):
        find_artifact("models:/ctr@best", registry.place)
    with pytest.raises(RegistryError, match="is no registry"):
        find_artifact("models:/ctr", str(tmp_path / "nothing"))
    with pytest.raises(ArtifactError, match="is not a usable artifact"):
        find_artifact(str(tmp_path / "nothing"))
    shutil.rmtree(find_artifact("models:/ctr/2", registry.place).place)
    with pytest.raises(RegistryError, match="is not what was registered as ctr version 2"):
        find_artifact("models:/ctr/2", registry.place)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "models:/ctr", "--host", "0.0.0.0"), 2, "can be reached by others: set TWINFOCUS_TOKEN"),
        (("--model", "ctr"), 2, "write models:/NAME@ALIAS"),
        (("--model", "models:/ctr", "--replicas", "0"), 2, "--replicas must be more than 0"),
        (("--model", "models:/ctr", "--artifact", "x"), 2, "not allowed with"),
        (("--model", "models:/ctr", "--registry", "/nothing"), 1, "/nothing is no registry"),
        (("--artifact", "/nothing"), 1, "/nothing is not a usable artifact"),
    ],
)
def test_what_does_not_start(run_here, monkeypatch, arguments: tuple[str, ...], code: int, message: str) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    found, _, complaint = run_here(serve.main, *arguments)
    assert found == code and message in complaint


def test_no_part_of_an_answer_waits_for_the_clients_confirmation() -> None:
    async def ask(listener: socket.socket) -> int:
        asked = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, writer: asked.set_result(writer), sock=listener)
        async with server:
            _, client = await asyncio.open_connection(*listener.getsockname()[:2])
            answering = await asked
            found = answering.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for writer in (client, answering):
                writer.close()
                await writer.wait_closed()
        return found

    with server.bound("127.0.0.1", 0) as listener:
        assert asyncio.run(ask(listener))
