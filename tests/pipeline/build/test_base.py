"""Datasets that go on with an earlier one: an id never changes its meaning, whatever the day's log holds."""

import csv
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from features.disk.dataset import DatasetError, DatasetManifest
from features.disk.object_store import ObjectPath
from features.disk.place import locate
from features.learnt import Learnt, LearntError
from tests.oracles.row_encoder import RowEncoder, log_squared_token, to_number

ROWS = 12_000
ENCODINGS = {
    "user": {"kind": "vocabulary"},
    "city": {"kind": "vocabulary", "min_count": 300},
    "site": {"kind": "vocabulary", "max_size": 7},
    "late": {"kind": "vocabulary", "min_count": 2},
    "tags": {"kind": "vocabulary", "min_count": 400},
    "criteo": {"kind": "log_squared", "min_count": 20},
}
SPARSE = [
    *({"name": name, "encoding": ENCODINGS[name]} for name in ("user", "city", "site", "late")),
    {"name": "tags", "separator": "|", "max_length": 3, "encoding": ENCODINGS["tags"]},
    {"name": "criteo", "columns": ["price"], "encoding": ENCODINGS["criteo"]},
    {"name": "quantile", "columns": ["price"], "encoding": {"kind": "quantiles", "num_buckets": 5}},
    {"name": "hashed", "columns": ["city"], "encoding": {"kind": "hash", "num_buckets": 30}},
]
FEATURES = {
    "label": "click",
    "carry": ["row"],
    "sparse": SPARSE,
    "dense": [{"name": "scaled", "column": "price", "standardise": True}],
}
TOKENS = {
    "user": lambda row: [row["user"]],
    "city": lambda row: [row["city"]],
    "site": lambda row: [row["site"]],
    "late": lambda row: [row["late"]],
    "tags": lambda row: [tag for tag in row["tags"].split("|") if tag][:3],
    "criteo": lambda row: [log_squared_token(to_number(row["price"]))],
}


def log_of(day: int) -> list[dict[str, str]]:
    """Each day shows values that lie between those of the days before in byte order, and other numbers."""
    rng = random.Random(day)
    letters = "adgbehcfi"[: 3 * day + 3]
    users = [f"u{i * 7919 % 20_011}" for i in range((9_700, 10_300, 10_900)[day])]
    rng.shuffle(users)
    return [
        {
            "row": str(number),
            "click": rng.choice("01"),
            "user": users[number] if number < len(users) else rng.choice([*users[:50], ""]),
            "city": rng.choice([*letters, *letters, "", f"rare{rng.randrange(99)}"]),
            "site": rng.choices(["", *(f"{letter}é" for letter in letters)], range(1, len(letters) + 2))[0],
            "late": f"one{number}" if day == 0 else rng.choice(["", *letters]),  # the first day has none twice
            "tags": "|".join(rng.choice(["", *letters, "z" * (number % 40)]) for _ in range(rng.randrange(6))),
            "price": rng.choice(["", "0", "-1", f"{rng.gauss(0, 5):.1f}", str(rng.randrange(10 ** (day + 1)))]),
        }
        for number in range(ROWS)
    ]


def write_log(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def build_day(spark, folder, log: str, base=None, features=FEATURES) -> tuple[DatasetManifest, Learnt]:
    from jobs.cli.config import parse_config
    from jobs.launch.dataset_build import check_build, run_build

    pipeline = {"output": str(folder), "input": {"train": log}, "write": {"min_files": 2}}
    pipeline |= {"base": str(base)} if base else {}
    config = parse_config({"features": features, "pipeline": pipeline, "training": {"dataset": str(folder)}})
    check_build(config)
    run_build(spark, config)
    manifest = DatasetManifest.load(folder)
    return manifest, manifest.load_learnt(folder)


@dataclass
class Day:
    folder: Path
    log: str
    rows: list[dict[str, str]]
    manifest: DatasetManifest
    learnt: Learnt


@pytest.fixture(scope="module")
def days(spark, tmp_path_factory) -> list[Day]:
    """Three days, each built from its own log alone and the dataset of the day before."""
    root, days = tmp_path_factory.mktemp("days"), []
    for number in range(3):
        rows, folder = log_of(number), root / f"day{number}"
        log = write_log(root / f"day{number}.csv", rows)
        days.append(Day(folder, log, rows, *build_day(spark, folder, log, days[-1].folder if days else None)))
    return days


def naive_vocabularies(days: list[Day]) -> list[dict[str, tuple[list[str], dict[str, int], int]]]:
    """Of each day: feature -> (tokens, token -> id, out-of-vocabulary id), counted up one by one."""
    found, known, ids, oov = [], {}, {}, {}
    for day in days:
        for name, encoding in ENCODINGS.items():
            counts = Counter(t for row in day.rows for t in TOKENS[name](row) if t and (name, t) != ("criteo", "0"))
            old, of_feature = known.get(name, []), ids.setdefault(name, {})
            new = [t for t, n in counts.items() if n >= encoding.get("min_count", 1) and t not in old]
            new.sort(key=lambda t: (-counts[t], t.encode()))
            new = sorted(new[: max(encoding.get("max_size", 10**9) - len(old), 0)], key=str.encode)
            known[name] = old + new
            for token in new:
                of_feature[token] = len(of_feature) + 1 + (name in oov)
            oov.setdefault(name, len(of_feature) + 1)
        found.append({name: (known[name], dict(ids[name]), oov[name]) for name in ENCODINGS})
    return found


def test_vocabularies_are_those_of_a_naive_count(days):
    naive = naive_vocabularies(days)
    for day, expected in zip(days, naive, strict=True):
        assert day.learnt.vocabularies == {name: tokens for name, (tokens, _, _) in expected.items()}
        for name, (_, ids, oov) in expected.items():
            assert day.learnt.ids_of(name) == ids and day.learnt.oov_id(name) == oov, name
    # The world has every case: joined and not, extended from nothing, full, and with room for some of the new ones.
    sizes = {name: [len(day.learnt.vocabularies[name]) for day in days] for name in ENCODINGS}
    assert sizes["user"][0] < sizes["user"][1] < sizes["user"][2]
    assert sizes["late"][0] == 0 < sizes["late"][1] < sizes["late"][2]
    assert sizes["site"] == [3, 6, 7]
    assert all(of[0] < of[1] < of[2] for name, of in sizes.items())
    assert days[0].learnt.out_of_vocabulary == {}
    assert sorted(days[1].learnt.out_of_vocabulary) == sorted(ENCODINGS)


def test_an_id_never_changes_its_meaning(days, read_split):
    for number, later in enumerate(days):
        for earlier in days[: number + 1]:
            assert later.learnt.extends(earlier.learnt)
            for name in ENCODINGS:
                assert earlier.learnt.ids_of(name).items() <= later.learnt.ids_of(name).items()
        assert not any(later.learnt.extends(day.learnt) for day in days[number + 1 :])
    # In the files, where an id stands for one value on all days, and a value keeps the id it once got.
    for name in ("user", "city", "site", "late", "criteo"):
        meaning, oov = {}, days[0].learnt.oov_id(name)
        for day in days:
            table = read_split(day.manifest, day.folder)
            for row, id_ in zip(table["row"].to_pylist(), table[name].to_pylist(), strict=True):
                [token] = TOKENS[name](day.rows[int(row)])
                assert id_ == oov or meaning.setdefault(id_, token) == token, name
            assert len(set(meaning.values())) == len(meaning), name


def test_spark_and_python_encode_alike(days, read_split):
    for day in days:
        table = read_split(day.manifest, day.folder)
        assert table.num_rows == ROWS
        encoder = RowEncoder(day.manifest.schema, day.learnt)
        expected = encoder.encode([day.rows[int(row)] for row in table["row"].to_pylist()])
        for name, values in expected.items():
            found = np.array(table[name].to_pylist(), dtype=values.dtype)
            if values.dtype == np.float32:
                np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-7, err_msg=name)
            else:
                np.testing.assert_array_equal(found, values, err_msg=name)
        for name in ENCODINGS:  # the comparison above is of all kinds of ids: unknown, new and known values
            ids, oov = set(np.unique(expected[name])), day.learnt.oov_id(name)
            assert oov in ids and (oov + 1 in ids) == (day is not days[0]) and (oov == 1 or 1 in ids), name


def test_boundaries_and_moments_are_the_bases(spark, days, tmp_path):
    for day in days[1:]:
        assert day.learnt.boundaries == days[0].learnt.boundaries
        assert day.learnt.moments == days[0].learnt.moments
    _, anew = build_day(spark, tmp_path / "anew", days[2].log)
    assert anew.boundaries != days[0].learnt.boundaries and anew.moments != days[0].learnt.moments
    assert not anew.extends(days[0].learnt) and not days[2].learnt.extends(anew)


def test_out_of_vocabulary_rates(days):
    for day in days:
        for name in ENCODINGS:
            known = day.learnt.ids_of(name)
            # A missing number has a token too, but it is not a value.
            rows = [row for row in day.rows if name != "criteo" or row["price"]]
            tokens = [token for row in rows for token in TOKENS[name](row) if token]
            expected = sum(token not in known for token in tokens) / len(tokens)
            assert day.manifest.split("train").sparse[name].oov_rate == pytest.approx(expected), name


def test_no_new_token_changes_nothing(spark, days, tmp_path):
    manifest, learnt = build_day(spark, tmp_path / "again", days[0].log, days[2].folder)
    assert learnt == days[2].learnt and manifest.learnt_fingerprint == days[2].manifest.learnt_fingerprint


def test_a_dataset_goes_on_in_its_own_place(spark, days, tmp_path):
    folder = tmp_path / "rolling"
    shutil.copytree(days[0].folder, folder)
    for day in days[:2]:
        manifest, learnt = build_day(spark, folder, day.log, folder)
        assert learnt == day.learnt and manifest.fingerprint == day.manifest.fingerprint
        assert manifest.config["pipeline"]["base"] == str(folder)
        assert len(list(folder.glob("version-*"))) == 1


def test_a_base_in_an_object_store(spark, days, bucket):
    place = locate(f"{bucket.url}/rolling")
    assert isinstance(place, ObjectPath)
    place.upload(days[0].folder)
    manifest, learnt = build_day(spark, place, days[1].log, place)
    assert learnt == days[1].learnt and manifest.fingerprint == days[1].manifest.fingerprint


def test_a_base_of_another_schema_is_refused(spark, days, tmp_path):
    other = {**FEATURES, "dense": []}
    log = write_log(tmp_path / "small.csv", log_of(0)[:20])
    before, _ = build_day(spark, tmp_path / "other", log, None, other)
    with pytest.raises(DatasetError, match="another feature schema") as error:
        build_day(spark, tmp_path / "other", log, days[0].folder, other)
    for manifest in (before, days[0].manifest):
        assert manifest.schema_fingerprint[:12] in str(error.value)
    assert DatasetManifest.load(tmp_path / "other") == before
    assert len(list((tmp_path / "other").glob("version-*"))) == 1


def test_a_base_that_is_absent_or_damaged_is_refused(spark, days, tmp_path):
    with pytest.raises(DatasetError, match="is not a dataset"):
        build_day(spark, tmp_path / "new", days[1].log, tmp_path / "nowhere")
    shutil.copytree(days[1].folder, tmp_path / "base")
    moved = tmp_path / "base" / days[1].manifest.learnt_path / "out_of_vocabulary.json"
    text = moved.read_text()
    moved.write_text(text.replace("}", "") + "}}")
    with pytest.raises(LearntError, match="missing or damaged"):
        build_day(spark, tmp_path / "new", days[1].log, tmp_path / "base")
    moved.unlink()
    with pytest.raises(DatasetError, match=r"does not match manifest\.json"):
        build_day(spark, tmp_path / "new", days[1].log, tmp_path / "base")
    moved.write_text(text)
    assert days[1].manifest.load_learnt(tmp_path / "base") == days[1].learnt
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


def test_features_that_share_a_table_share_a_vocabulary(spark, tmp_path: Path) -> None:
    """It is learnt from the values of both, and goes on for both; a value has one id, whichever column it is in."""
    vocabulary = {"kind": "vocabulary", "min_count": 2}
    bag = {"name": "seen", "separator": "|", "max_length": 3, "encoding": vocabulary, "table": "item"}
    features = {"label": "click", "sparse": [{"name": "item", "encoding": vocabulary}, bag]}
    learnt = None
    for day, values in enumerate(([("b", "a|c"), ("d", "b|c")], [("e", "a|e"), ("c", "")])):
        rows = [{"click": str(i % 2), "item": item, "seen": seen} for i, (item, seen) in enumerate(values)]
        base = tmp_path / "day0" if day else None
        manifest, learnt = build_day(
            spark, tmp_path / f"day{day}", write_log(tmp_path / f"{day}.csv", rows), base, features
        )
        kept = ["b", "c", "e"][: 2 + day]  # "b" comes once in each column
        assert learnt.vocabularies == {"item": kept, "seen": kept}
    assert learnt is not None and learnt.ids_of("item") == learnt.ids_of("seen") == {"b": 1, "c": 2, "e": 4}
    encoded = RowEncoder(manifest.schema, learnt).encode([{"item": "e", "seen": "e|b|x"}])
    assert (encoded["item"].tolist(), encoded["seen"].tolist()) == ([4], [[4, 1, 3]])
