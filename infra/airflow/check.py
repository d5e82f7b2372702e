"""What infra/airflow/check.sh asks of a real Airflow; it runs in Airflow's environment, and imports nothing of ours.

Airflow and the tasks write to standard output what is of interest only when something fails; what is said here goes to
the file descriptor 3.
"""

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import DagSerialization

DAY = datetime(2024, 1, 2, tzinfo=UTC)
"""The day that a run is for: of a log of three days it is the second."""
NUM_ROWS = 6_000
CONFIG = """
[features]
label = "click"
[[features.sparse]]
names = ["ad_id", "site_id"]
encoding = {{ kind = "hash", num_buckets = 500 }}
[[features.dense]]
name = "price"
standardise = true
[pipeline]
output = "unused"
spark = {{ master = "local[2]", driver_memory = "1g" }}
[training]
dataset = "unused"
max_epochs = 1
global_batch_size = 256
[training.model]
embedding_dim = 4
easy.hidden_units = [8]
hard.hidden_units = [8]
[retrain]
root = "{folder}/retrain"
partitions = "{folder}/logs/day={{date}}/*.csv.gz"
retries = 0
alert_on = []
"""
"""A model too small to be any good."""


def main() -> None:
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    dag = load(folder / "dags")
    check(dag)
    if "--load" not in options:
        dag.get_task("retrain").retry_delay = timedelta(seconds=1)
        check_a_day(dag, folder)
        check_a_failure(dag, folder)


def load(folder: Path) -> DAG:
    bag = DagBag(folder)
    expect("import errors", bag.import_errors, {})
    expect("warnings", bag.captured_warnings, {})
    expect("DAGs", list(bag.dags), ["twinfocus_retrain"])
    return bag.dags["twinfocus_retrain"]


def check(dag: DAG) -> None:
    """What the scheduler makes of it: order, schedule, retries, and the commands of a day."""
    retrain, status = dag.get_task("retrain"), dag.get_task("status")
    expect("tasks", set(dag.task_ids), {"retrain", "status"})
    expect("what status waits for", status.upstream_task_ids, {"retrain"})
    expect("runs at a time", dag.max_active_runs, 1)
    expect("retries", retrain.retries, 2)
    expect("whether the time between two retries grows", retrain.retry_exponential_backoff > 1, True)
    scheduled = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    first = scheduled.next_dagrun_info(last_automated_run_info=None)
    expect("hour and minute of a run", (first.run_after.hour, first.run_after.minute), (2, 30))
    expect("what a run is for", first.run_after - first.data_interval.start, timedelta(days=1))
    context = {"data_interval_start": DAY}
    for task in (retrain, status):
        variables = task.render_template(task.env, context)
        expect("day of the command", variables["AS_OF"], str(DAY.date()))
        say(f"{task.task_id}: {' '.join(f'{k}={v}' for k, v in variables.items())} {task.bash_command}")
    say("ok: Airflow loads the DAG, and its tasks, schedule and retries are as they should be")


def check_a_day(dag: DAG, folder: Path) -> None:
    """A day retrained on, and once more, which changes nothing."""
    (folder / "retrain.toml").write_text(CONFIG.format(folder=folder), encoding="utf-8")
    logs = ["--output", str(folder / "logs"), "--rows", str(NUM_ROWS), "--days", "3"]
    command = [f"{os.environ['TWINFOCUS_HOME']}/.venv/bin/python", "-m", "jobs.generate_logs", *logs]
    subprocess.run(command, check=True)  # noqa: S603
    for number in (1, 2, 3):
        day = folder / "logs" / f"day=2024-01-{number:02d}"
        day.mkdir()
        for raw in (folder / "logs").glob(f"day-{number:02d}-*"):
            raw.rename(day / raw.name)
    expect("state of the run", run(dag), "success")
    last = folder / "retrain" / "last.json"
    said = json.loads(last.read_text(encoding="utf-8"))
    expect("the day that was compared on", said["day"], f"{DAY:%Y%m%d}")
    expect("the verdict", said["verdict"] in ("promoted", "refused"), True)
    expect("whether there is a page", (folder / "retrain" / "status.html").is_file(), True)
    expect("state of a second run", run(dag), "success")
    expect(
        "what it changed", list((folder / "retrain" / "runs").iterdir()), [folder / "retrain" / "runs" / said["day"]]
    )
    say(f"ok: a run for {DAY.date()} retrained ({said['verdict']}) and made the page; a second one did nothing")


def check_a_failure(dag: DAG, folder: Path) -> None:
    """A log that cannot be read: tried three times, then one alert, and the run has failed."""
    for raw in (folder / "logs").glob("day=2024-01-03/*.gz"):
        raw.write_bytes(b"no gzip")
    with Webhook() as webhook:
        os.environ["TWINFOCUS_WEBHOOK"] = webhook.address
        expect("state of the run", run(dag, DAY + timedelta(days=1)), "failed")
    [alert] = webhook.received
    expect("who says so", (alert["verdict"], alert["stopped_by"]), ("failed", "Airflow"))
    said = json.loads((folder / "retrain" / "last.json").read_text(encoding="utf-8"))
    expect("the verdict", said["verdict"], "failed")
    say(f"ok: a broken log was tried on three times, then the webhook heard of it: {alert['error']}")


def run(dag: DAG, day: datetime = DAY) -> str:
    """What becomes of the run for a day, retries and all."""
    return str(dag.test(logical_date=day + timedelta(days=1, hours=2, minutes=30)).state)


def say(text: str) -> None:
    os.write(3, f"{text}\n".encode())


def expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        say(f"error: {what}: expected {expected}, found {found}")
        sys.exit(1)


class Webhook(HTTPServer):
    """A server on loopback that keeps what is posted."""

    def __init__(self) -> None:
        received = self.received = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> "Webhook":
        threading.Thread(target=self.serve_forever).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


if __name__ == "__main__":
    main()
