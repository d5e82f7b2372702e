"""A log whose files have rows of several days: each row is in one partition, late ones are counted or get their own."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet
import pytest

from features.disk.dataset import DatasetManifest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DAY = 86_400
CONFIG = """
[features]
label = "click"
timestamp = {{ column = "t" }}
carry = ["row"]
[[features.sparse]]
name = "user"
encoding = {{ kind = "vocabulary" }}
[pipeline]
output = "unused"
spark.master = "local[2]"
spark.driver_memory = "1g"
[training]
from_data = []
dataset = "unused"
[retrain]
root = "{folder}/retrain"
partitions = "{folder}/logs"
partition_by = "day"
"""


def write(path: Path, times: list[int | str]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [f"{path.stem}{i},u{i},{i % 2},{time}" for i, time in enumerate(times)]
    path.write_text("\n".join(["row,user,click,t", *lines]) + "\n", encoding="utf-8")


def retrain(folder: Path, *more: str) -> dict:
    command = [sys.executable, "-m", "jobs.retrain", "--config", str(folder / "c.toml"), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "retrain" / "last.json").read_text())


def rows(folder: Path) -> dict[str, Counter[str]]:
    """Partition -> its rows."""
    found: dict[str, Counter[str]] = {}
    for path in sorted((folder / "retrain" / "partitions").iterdir()):
        files = [path / file.path for file in DatasetManifest.load(path).split("train").files]
        found[path.name] = Counter(r for f in files for r in pyarrow.parquet.read_table(f)["row"].to_pylist())
    return found


def test_each_row_goes_to_its_day(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")
    write(tmp_path / "logs" / "a.csv", [0, 1, "never", DAY - 1, DAY, 2 * DAY])
    write(tmp_path / "logs" / "b.csv", [DAY + 5, 5])
    last = retrain(tmp_path, "--as-of", "1970-01-01")
    assert (last["verdict"], last["undated_rows"]) == ("nothing", 1) and "late" not in last
    assert rows(tmp_path) == {"19700101": Counter(["a0", "a1", "a3", "b1"])}
    (undated,) = (tmp_path / "retrain" / "dates").glob("*.undated/rejected.jsonl")
    assert json.loads(undated.read_text())["line"] == "a2,u2,0,never"

    write(tmp_path / "logs" / "c.csv", [7, 8, DAY + 7])
    write(tmp_path / "logs" / "b.csv", [DAY + 5, 5, 6])
    last = retrain(tmp_path, "--as-of", "1970-01-01")
    assert last["late"] == {"19700101+1": {"files": 1, "rows": 2}} and last["changed"] == {"19700101": 1}
    assert list(rows(tmp_path)) == ["19700101"]

    last = retrain(tmp_path, "--as-of", "1970-01-01", 'retrain.late="build"')
    assert "late" not in last and last["changed"] == {"19700101": 1}
    assert rows(tmp_path)["19700101+1"] == Counter(["c0", "c1"])
    checks = json.loads((tmp_path / "retrain" / "checks" / "19700101+1.json").read_text())
    assert "rows" not in {result["rule"] for result in checks["results"]}
