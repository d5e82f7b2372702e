"""Logs of lists through a build: rows, splits, duplicates, histories and the accounting of what was read."""

import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.log_format import LogError
from jobs.cli.config import ConfigError, parse_config
from jobs.launch.dataset_build import describe_build
from pipeline.build.dates import count_dates
from pipeline.build.sources import plan_sources

SHARED = Path(__file__).parents[4] / "shared" / "data"
START = 1_570_000_000
LISTS = {"column": "seen", "name": "item", "label": "clicked", "label_separator": "-", "list_id": "page"}
FEATURES = {
    "label": "clicked",
    "group_id": "page",
    "timestamp": {"column": "t"},
    "sparse": [
        {"name": "item", "encoding": {"kind": "vocabulary"}},
        {"name": "user", "encoding": {"kind": "hash", "num_buckets": 50}},
    ],
    "sequence": [
        {"name": "old", "parts": ["item"], "max_length": 3, "columns": {"item": "history"}, "newest": "last"},
        {"name": "clicks", "parts": ["item"], "max_length": 4, "history": {"of": "user"}},
    ],
    "carry": ["page", "position", "line"],
}


def a_log(path: Path, count: int = 120, *, other: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Write a log of lists whose times grow; ``other`` are lists by number of the line. Returns its lines."""
    rng = random.Random(5)
    lines = []
    with path.open("w") as file:
        file.write("page\tline\tuser\tt\thistory\tseen\n")
        for number in range(count):
            items = [f"N{rng.randrange(20)}-{int(rng.random() < 0.3)}" for _ in range(rng.choice([1, 2, 3, 9]))]
            seen = (other or {}).get(f"at_{number}", " ".join(items))
            history = " ".join(f"N{rng.randrange(20)}" for _ in range(rng.randrange(5)))
            line = {"page": f"p{number}", "user": f"u{rng.randrange(6)}", "t": START + 10 * number, "seen": seen}
            lines.append(line | {"history": history})
            values = (line["page"], number, line["user"], line["t"], history, seen)
            file.write("\t".join(map(str, values)) + "\n")
    return lines


def pipeline(path: Path, **more: Any) -> dict[str, Any]:
    return {"input": {"train": str(path), "format": {"kind": "tsv", "candidates": LISTS}}, **more}


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    found = table.to_pylist()
    return sorted(found, key=lambda row: (int(row["line"]), int(row["position"])))


def test_each_candidate_is_a_row_of_its_line(build, read_split, tmp_path):
    lines = a_log(tmp_path / "log.tsv")
    manifest, dataset = build(FEATURES, pipeline(tmp_path / "log.tsv"))
    ids = manifest.load_learnt(dataset).ids_of("item")
    rows = rows_of(read_split(manifest, dataset))
    assert [(row["page"], row["item"], row["label"], row["position"]) for row in rows] == [
        (line["page"], ids[item.rpartition("-")[0]], float(item[-1]), str(place))
        for line in lines
        for place, item in enumerate(line["seen"].split(), start=1)
    ]
    by_page = defaultdict(set)
    for row in rows:
        by_page[row["page"]].add((row["group_id"], tuple(row["old__item"])))
    assert all(len(found) == 1 for found in by_page.values())
    assert len({group for found in by_page.values() for group, _ in found}) == len(by_page)
    for line in lines:
        newest = [ids[item] for item in line["history"].split()[::-1][:3]]
        assert [*by_page[line["page"]].pop()[1]] == newest
    assert manifest.lists is not None
    assert (manifest.lists.num_lists, manifest.lists.num_candidates) == (len(lines), len(rows))


def test_arrays_of_json_make_the_rows_of_text(build, read_split, tmp_path):
    lines = a_log(tmp_path / "log.tsv")
    with (tmp_path / "log.jsonl").open("w") as file:
        for number, line in enumerate(lines):
            seen, history = line["seen"].split(), line["history"].split()
            file.write(json.dumps({**line, "line": number, "seen": seen, "history": history or None}) + "\n")
    tables = []
    for name, kind in (("log.tsv", "tsv"), ("log.jsonl", "jsonl")):
        given = {"train": str(tmp_path / name), "format": {"kind": kind, "candidates": LISTS}}
        manifest, dataset = build(FEATURES, {"input": given}, kind)
        tables.append(rows_of(read_split(manifest, dataset)))
    assert tables[0] == tables[1] and len(tables[0]) == manifest.lists.num_candidates


def test_a_list_does_not_see_its_own_clicks(build, read_split, tmp_path):
    """Candidates of one page have one time: a built history of any of them ends before the page."""
    lines = a_log(tmp_path / "log.tsv")
    manifest, dataset = build(FEATURES, pipeline(tmp_path / "log.tsv"))
    ids = manifest.load_learnt(dataset).ids_of("item")
    clicks: dict[str, list[int]] = defaultdict(list)
    expected = {}
    for line in lines:
        expected[line["page"]] = clicks[line["user"]][::-1][:4]
        clicks[line["user"]] += [ids[i[:-2]] for i in line["seen"].split() if i.endswith("-1")]
    rows = rows_of(read_split(manifest, dataset))
    assert all(row["clicks__item"] == expected[row["page"]] for row in rows)
    assert any(expected.values())


def test_what_is_no_list_is_counted(build, read_split, tmp_path):
    odd = {"at_3": "", "at_5": "N1-0 N2", "at_9": "N1-0 N2-7 N3-1", "at_11": ""}
    lines = a_log(tmp_path / "log.tsv", other=odd)
    manifest, dataset = build(FEATURES, pipeline(tmp_path / "log.tsv", quality={"max_rejected_fraction": 0.1}))
    good = [line for number, line in enumerate(lines) if f"at_{number}" not in odd]
    num_rows = sum(len(line["seen"].split()) for line in good)
    assert manifest.split("train").num_rows == num_rows
    assert manifest.rejected.reasons == {
        "column 'seen': a candidate has no label behind '-'": 1,
        "label 'clicked' is not 0 or 1": 1,
        "another candidate of its list is no row": 2,
    }
    assert manifest.num_input_rows == num_rows + 4
    assert vars(manifest.lists) == {
        "num_lists": len(good) + 1, "num_candidates": num_rows + 3, "num_empty": 2, "num_rejected": 1, "num_unseen": 0,
    }  # fmt: skip
    text = (dataset / manifest.rejected.path / "rejected.jsonl").read_text()
    assert [json.loads(line)["number"] for line in text.splitlines()] == [7, 11, 11, 11]
    told = describe_build(json.loads((dataset / "build.json").read_text()))
    assert f"{num_rows + 4:,} rows read, in 117 lists of candidates, 2 empty, 1 rejected" in told


def test_too_many_rejected_lists_are_told_though_they_are_few_rows(build, tmp_path):
    with (tmp_path / "log.tsv").open("w") as file:
        file.write("page\tline\tuser\tt\thistory\tseen\n")
        for number in range(40):
            seen = "bad" if number < 2 else " ".join(["N1-0"] * 50)
            file.write(f"p{number}\t{number}\tu\t{START + number}\t\t{seen}\n")
    with pytest.raises(LogError, match=r"2 of 40 lists of candidates are malformed.*a candidate has no label"):
        build(FEATURES, pipeline(tmp_path / "log.tsv", quality={"max_rejected_fraction": 0.01}))


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "hash", "valid": 0.3, "test": 0.2},
        {"kind": "hash", "valid": 0.3, "test": 0.2, "column": "page"},
        {"kind": "hash", "valid": 0.3, "test": 0.2, "column": "user"},
        {"kind": "time", "valid_from": "2019-10-02T07:17:00"},
    ],
)
def test_no_split_tears_a_list(build, read_split, tmp_path, rule):
    lines = a_log(tmp_path / "log.tsv")
    manifest, dataset = build(FEATURES, pipeline(tmp_path / "log.tsv", split=rule))
    pages = {split: {row["page"] for row in rows_of(read_split(manifest, dataset, split))} for split in manifest.splits}
    assert len(pages) > 1
    assert sum(map(len, pages.values())) == len(lines) == len(set().union(*pages.values()))


@pytest.mark.parametrize("column", ["item", "position", "clicked"])
def test_a_split_that_would_tear_lists_is_refused(tmp_path, column):
    tree = pipeline(tmp_path / "log.tsv", split={"kind": "hash", "column": column}, output="out")
    with pytest.raises(ConfigError, match="would tear lists of candidates apart: split by 'page'"):
        parse_config({"features": FEATURES, "pipeline": tree, "training": {"dataset": "out"}})


def test_portions_and_workers_change_nothing(build, read_split, tmp_path):
    a_log(tmp_path / "log.tsv", other={"at_3": "", "at_5": "N1-0 N2"})
    limit = {"quality": {"max_rejected_fraction": 0.1}}
    whole, folder = build(FEATURES, pipeline(tmp_path / "log.tsv", **limit), "whole")
    cut, cut_folder = build(
        FEATURES, pipeline(tmp_path / "log.tsv", spark={"max_partition_bytes": 300}, **limit), "cut"
    )
    assert read_split(whole, folder).equals(read_split(cut, cut_folder))
    assert whole.lists == cut.lists
    first, second = (
        (d / m.rejected.path / "rejected.jsonl").read_text() for m, d in ((whole, folder), (cut, cut_folder))
    )
    assert first == second


def test_duplicates_and_sampled_negatives_are_single_candidates(build, tmp_path):
    lines = a_log(tmp_path / "log.tsv")
    config = pipeline(tmp_path / "log.tsv", dedupe=["page", "item"], sample={"negatives": 0.5})
    manifest, _ = build(FEATURES, config)
    distinct = [{item.rpartition("-")[0] for item in line["seen"].split()} for line in lines]
    total = sum(len(line["seen"].split()) for line in lines)
    assert manifest.num_duplicates == total - sum(map(len, distinct)) > 0
    assert manifest.sampled is not None and manifest.sampled.num_left_out > 0
    assert manifest.num_input_rows == total
    assert manifest.split("train").num_rows == total - manifest.num_duplicates - manifest.sampled.num_left_out


def test_dates_count_the_rows_that_builds_have(spark, build, tmp_path):
    a_log(tmp_path / "log.tsv", other={"at_3": "", "at_5": "N1-0 N2"})
    tree = pipeline(tmp_path / "log.tsv", output=str(tmp_path / "out"), quality={"max_rejected_fraction": 0.1})
    config = parse_config({"features": FEATURES, "pipeline": tree, "training": {"dataset": "out"}})
    plan = plan_sources(config.pipeline, config.features)
    [dates] = count_dates(spark, config.features, config.pipeline, plan, "day", tmp_path / "undated").values()
    [date] = set(dates) - {""}
    day = START // 86_400 * 86_400
    del tree["output"]
    tree["input"]["times"] = [day, day + 86_400]
    manifest, _ = build(FEATURES, tree)
    assert dates == {date: manifest.num_input_rows, "": 1}
    assert manifest.lists is None


def test_a_path_that_names_a_made_column_is_refused(tmp_path):
    folder = tmp_path / "item=3"
    folder.mkdir()
    a_log(folder / "log.tsv", 5)
    tree = pipeline(tmp_path, output=str(tmp_path / "out"))
    config = parse_config({"features": FEATURES, "pipeline": tree, "training": {"dataset": "out"}})
    with pytest.raises(LogError, match="has a column 'item', and so would the candidates of 'seen'"):
        plan_sources(config.pipeline, config.features)


# ------------------------------------------------------------------------------------------------------------ real logs


@pytest.mark.skipif(not (SHARED / "mind_sample").is_dir(), reason="no shared data")
def test_mind(build, read_split):
    from jobs.cli.config import load_config

    tree = load_config([str(Path(__file__).parents[3] / "jobs/configs/sequences/mind.toml")]).to_dict()
    del tree["pipeline"]["output"]
    tree["pipeline"]["input"]["train"] = str(SHARED / "mind_sample" / "behaviors.tsv.gz")
    manifest, dataset = build(tree["features"], tree["pipeline"])
    assert vars(manifest.lists) == {
        "num_lists": 5000, "num_candidates": 189_359, "num_empty": 0, "num_rejected": 0, "num_unseen": 0,
    }  # fmt: skip
    assert manifest.num_input_rows == sum(split.num_rows for split in manifest.splits.values()) == 189_359
    groups = [set(read_split(manifest, dataset, split)["group_id"].to_pylist()) for split in ("train", "valid")]
    assert [len(found) for found in groups] == [4032, 968]


@pytest.mark.skipif(not (SHARED / "ebnerd").is_dir(), reason="no shared data")
def test_ebnerd(build, read_split):
    path = SHARED / "ebnerd" / "behaviors.parquet"
    features = {
        "label": "clicked",
        "group_id": "impression_id",
        "timestamp": {"column": "impression_time"},
        "sparse": [
            {"name": "article", "encoding": {"kind": "vocabulary"}},
            {"name": "device_type", "encoding": {"kind": "vocabulary"}},
        ],
        "sequence": [
            {"name": "clicks", "parts": ["article"], "max_length": 20, "gaps": [3600], "history": {"of": "user_id"}}
        ],
        "carry": ["impression_id", "position"],
    }
    lists = {
        "column": "article_ids_inview", "name": "article", "label": "clicked", "clicked": "article_ids_clicked",
        "list_id": "impression_id",
    }  # fmt: skip
    given = {"train": str(path), "format": {"kind": "parquet", "candidates": lists}}
    manifest, dataset = build(features, {"input": given, "split": {"kind": "hash", "valid": 0.2, "test": 0.0}})
    log = pq.read_table(path)
    shown, clicked = log["article_ids_inview"].to_pylist(), log["article_ids_clicked"].to_pylist()
    assert manifest.num_input_rows == sum(map(len, shown)) and manifest.rejected.num_rows == 0
    rows = pa.concat_tables(read_split(manifest, dataset, split) for split in ("train", "valid"))
    in_view = sum(len({*chosen} & {*seen}) for seen, chosen in zip(shown, clicked, strict=True))
    assert sum(rows["label"].to_pylist()) == in_view
    assert manifest.lists is not None
    assert manifest.lists.num_unseen == sum(
        len({*chosen} - {*seen}) for seen, chosen in zip(shown, clicked, strict=True)
    )
    assert len(set(rows["impression_id"].to_pylist())) == len(set(log["impression_id"].to_pylist()))
