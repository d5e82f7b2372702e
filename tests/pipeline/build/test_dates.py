"""Every row of a log is counted for one date or written aside, and is in the partition that its time says."""

import gzip
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

FEATURES = {
    "label": "click",
    "sparse": [{"name": "user", "encoding": {"kind": "vocabulary"}}],
    "carry": ["row"],
}
TIMES = {
    "unix": [0, 86_399, 86_400, 2_678_399, 2_678_400, 946_684_800, -1],
    "unix_ms": [86_399_999, 86_400_000],
    "yyMMddHH": ["14102100", "14102123", "14102200"],
}
BAD_TIMES = {"unix": ["", "soon", "9e14"], "unix_ms": ["-"], "yyMMddHH": ["14133100", "141021"]}


def write_log(path: Path, times: list, first_row: int = 0) -> None:
    lines = [f"{first_row + i},u{i},{i % 2},{time}" for i, time in enumerate(times)]
    with gzip.open(path, "wt") as file:
        file.write("\n".join(["row,user,click,t", *lines]) + "\n")


def parse(tree: dict, files: list[Path], output: Path, **more):
    from jobs.cli.config import parse_config

    pipeline = {"output": str(output), "input": {"train": [str(file) for file in files], **more}}
    return parse_config({"features": tree, "pipeline": pipeline, "training": {"dataset": "x"}})


@pytest.mark.parametrize(
    ("time_format", "span"), [("unix", "month"), ("unix", "day"), ("unix_ms", "day"), ("yyMMddHH", "hour")]
)
def test_rows_in_are_rows_counted(spark, tmp_path: Path, time_format: str, span: str) -> None:
    from pipeline.build.dates import count_dates
    from pipeline.build.sources import plan_sources

    good, bad = TIMES[time_format], BAD_TIMES[time_format]
    files = [tmp_path / "a=1 b.csv.gz", tmp_path / "c.csv.gz"]
    write_log(files[0], [*good, *bad])
    write_log(files[1], good[:1])
    config = parse({**FEATURES, "timestamp": {"column": "t", "format": time_format}}, files, tmp_path / "d")
    plan = plan_sources(config.pipeline, config.features)
    found = count_dates(spark, config.features, config.pipeline, plan, span, tmp_path / "undated")  # pyright: ignore

    def date(time: object) -> str:
        if time_format == "yyMMddHH":
            return f"20{time}"
        scale = 1000 if time_format == "unix_ms" else 1
        moment = datetime.fromtimestamp(int(str(time)) // scale, UTC)
        return f"{moment:%Y%m%d%H}"[: {"hour": 10, "day": 8, "month": 6}[span]]

    expected = Counter(map(date, good))
    assert found == {str(files[0]): {**expected, "": len(bad)}, str(files[1]): {date(good[0]): 1}}
    lines = [json.loads(line) for line in (tmp_path / "undated" / "rejected.jsonl").read_text().splitlines()]
    assert [line["line"].split(",")[-1] for line in lines] == bad
    assert {line["file"] for line in lines} == {str(files[0])} and all("unreadable" in line["reason"] for line in lines)


def test_partitions_of_a_file_have_its_rows_between_them(build, read_split, tmp_path: Path) -> None:
    """Also a malformed row, which is rejected in the partition of its date alone."""
    times = [i * 3_600 for i in range(72)]
    write_log(tmp_path / "a.csv.gz", [*times, "never"])
    features = {**FEATURES, "timestamp": {"column": "t"}}
    rows: Counter[str] = Counter()
    for day in range(3):
        pipeline = {"input": {"train": str(tmp_path / "a.csv.gz"), "times": [day * 86_400, (day + 1) * 86_400]}}
        manifest, folder = build(features, pipeline, f"day{day}")
        assert manifest.num_input_rows == 24 and manifest.rejected.num_rows == 0
        rows.update(read_split(manifest, folder)["row"].to_pylist())
    assert rows == Counter(str(i) for i in range(72))
