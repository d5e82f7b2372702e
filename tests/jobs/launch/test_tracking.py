"""Tracking of real runs: TensorBoard event files and MLflow runs, resumed, stopped and without a store."""

import contextlib
import json
import socket
import sqlite3
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from features.disk.run_folder import TRACKING_NAME, RunFolder
from jobs.cli.errors import ConfigError
from jobs.cli.mlflow_client import import_mlflow
from jobs.launch.tracking import check_tracking, tracked
from tests.jobs.test_train import call, write_config
from training.config import TrackingConfig
from training.fit.run import Run

NUMBERS = {"progress": ("train", "loss"), "evaluation": ("valid", "auc")}


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """Name, step and value of each scalar of a folder's event files, in their order."""
    found = []
    for file in sorted(folder.iterdir()):
        data, start = file.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            event = Event.FromString(data[start + 12 : start + 12 + length])  # a record: length, check, event, check
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            start += length + 16
    return found


def history_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def client(uri: str) -> Any:
    return import_mlflow().MlflowClient(tracking_uri=uri)


def check_recorded(run: Path, uri: str) -> str:
    """Both hold each number of the history once, by its step; the id of the MLflow run."""
    found = scalars(run / "tensorboard")
    run_id = json.loads((run / TRACKING_NAME).read_text())["mlflow_run"]
    for kind, (side, name) in NUMBERS.items():
        expected = [(e["step"], e[name]) for e in history_of(run) if e["event"] == kind and e[name] is not None]
        assert expected
        points = client(uri).get_metric_history(run_id, f"{side}/{name}")
        assert sorted((p.step, p.value) for p in points) == expected
        written = [(step, value) for tag, step, value in found if tag == f"{side}/{name}"]
        assert [step for step, _ in written] == [step for step, _ in expected]
        assert [value for _, value in written] == pytest.approx([value for _, value in expected], rel=1e-6)
    return run_id


def test_a_training_and_its_resumption_are_one_run(make_dataset, tmp_path: Path) -> None:
    dataset = make_dataset(train=((800,),) * 4, valid=((512,),)).path
    config, run, uri = write_config(tmp_path, dataset), tmp_path / "run", f"sqlite:///{tmp_path}/store/mlflow.db"
    more = ("training.tracking.tensorboard=true", f"training.tracking.mlflow={uri}")
    done = call(config, run, *more, "training.max_epochs=1")
    assert done.returncode == 0, done.stderr
    run_id = check_recorded(run, uri)
    done = call(config, run, *more, "training.max_epochs=2", "--resume")
    assert done.returncode == 0, done.stderr
    assert check_recorded(run, uri) == run_id
    found = client(uri).get_run(run_id)
    assert found.info.status == "FINISHED" and found.data.params["training.model.embedding_dim"] == "8"
    assert found.data.metrics["best/auc"] == Run(run).read("metrics.json")["valid"]["auc"]
    assert client(uri).get_experiment(found.info.experiment_id).name == "twinfocus"
    assert len(client(uri).search_runs([found.info.experiment_id])) == 1


def evaluation(step: int, **values: Any) -> dict[str, Any]:
    return {"event": "evaluation", "split": "valid", "epoch": 0, "step": step, "best": True, **values}


@pytest.mark.parametrize(
    ("error", "status"), [(SystemExit(143), "KILLED"), (KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")]
)
def test_the_end_of_a_run_is_its_status(tmp_path: Path, error: BaseException, status: str) -> None:
    uri, run = f"sqlite:///{tmp_path}/mlflow.db", RunFolder(tmp_path)
    with pytest.raises(type(error)), tracked(run, TrackingConfig(mlflow=uri), {}) as record:
        record([evaluation(1, auc=None, logloss=0.5)])
        raise error
    found = client(uri).get_run(run.read(TRACKING_NAME)["mlflow_run"])
    assert (found.info.status, found.data.metrics) == (status, {"valid/logloss": 0.5})


def test_a_store_that_does_not_answer_loses_nothing_that_comes_before_it_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program holds SQLite's lock for longer than MLflow waits."""
    database, run = tmp_path / "mlflow.db", RunFolder(tmp_path)
    with tracked(run, TrackingConfig(mlflow=f"sqlite:///{database}"), {}) as record:
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            record([evaluation(1, auc=0.5)])
            other.execute("ROLLBACK")
        assert "MLflow does not take the run's history" in caplog.text
        record([evaluation(2, auc=0.6)])
    points = client(f"sqlite:///{database}").get_metric_history(run.read(TRACKING_NAME)["mlflow_run"], "valid/auc")
    assert [(point.step, point.value) for point in points] == [(1, 0.5), (2, 0.6)]


def test_a_store_that_is_none_is_told_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "text.db").write_text("no database, but as long as the header of one " * 10)
    (tmp_path / "file").write_text("no folder")
    for uri in (f"http://127.0.0.1:{port}", f"sqlite:///{tmp_path}/text.db", f"sqlite:///{tmp_path}/file/a.db"):
        with pytest.raises(ConfigError, match=f"config key 'training.tracking.mlflow': {uri}(:| cannot be reached)"):
            check_tracking(TrackingConfig(mlflow=uri))


def test_a_store_of_a_newer_mlflow_says_so(tmp_path: Path) -> None:
    tracking = TrackingConfig(mlflow=f"sqlite:///{tmp_path}/mlflow.db")
    check_tracking(tracking)
    (tmp_path / "mlflow.db").rename(tmp_path / "newer.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "newer.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    with pytest.raises(ConfigError, match=r"newer\.db was made by a newer MLflow than [\d.]+, which is installed: "):
        check_tracking(TrackingConfig(mlflow=f"sqlite:///{tmp_path}/newer.db"))


def test_nothing_is_written_unless_the_config_says_so(tmp_path: Path) -> None:
    with tracked(RunFolder(tmp_path), TrackingConfig(), {}) as record:
        record([evaluation(1, auc=0.5)])
    assert not list(tmp_path.iterdir())
