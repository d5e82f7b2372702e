"""A retraining a day as an Airflow DAG; put this file, or a link to it, into Airflow's DAG folder.

It takes its settings from the environment of Airflow, whose workers have the project and its .venv on their disk:

* TWINFOCUS_HOME: folder of the project; /opt/twinfocus.
* TWINFOCUS_CONFIG: what jobs.retrain is started with; /etc/twinfocus/retrain.toml.
* TWINFOCUS_SCHEDULE: five fields of cron, in UTC; "30 2 * * *". Each run is for the day before.
* TWINFOCUS_START: a day, such as 2026-01-31; all days since are made up for, one by one. Without it a day that was
  missed is trained on with the next one.
* TWINFOCUS_WEBHOOK: see jobs/retraining/alert.py.
"""

import os
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronDataIntervalTimetable

HOME = Path(os.environ.get("TWINFOCUS_HOME", "/opt/twinfocus"))
CONFIG = os.environ.get("TWINFOCUS_CONFIG", "/etc/twinfocus/retrain.toml")
SCHEDULE = os.environ.get("TWINFOCUS_SCHEDULE", "30 2 * * *")
START = os.environ.get("TWINFOCUS_START")
PYTHON = str(HOME / ".venv" / "bin" / "python")


def give_alert(context: dict[str, Any]) -> None:
    """Say that there will be no other try; what went wrong jobs.retrain has told, if it could."""
    error = f"{context['task_instance_key_str']}: {context.get('exception')}"
    command = [PYTHON, "-m", "infra.scheduler.alert", "--by", "Airflow", error]
    subprocess.run(command, cwd=HOME, timeout=60, check=True)  # noqa: S603


with DAG(
    "twinfocus_retrain",
    description="Train on what is new and promote the model if it is no worse.",
    # The run at 02:30 is for the interval that begins on the day before: the newest day whose log is complete.
    schedule=CronDataIntervalTimetable(SCHEDULE, timezone="UTC"),
    start_date=datetime.fromisoformat(START or "2024-01-01").replace(tzinfo=UTC),
    catchup=START is not None,
    max_active_runs=1,
    tags=["twinfocus"],
    default_args={
        "cwd": str(HOME),
        # The commands below are constants: what is set comes to the shell in variables.
        "env": {"PYTHON": PYTHON, "CONFIG": CONFIG, "AS_OF": "{{ data_interval_start | ds }}"},
        "append_env": True,
    },
) as dag:
    retrain = BashOperator(
        task_id="retrain",
        bash_command='exec "$PYTHON" -m jobs.retrain --config "$CONFIG" --as-of "$AS_OF"',
        # jobs.retrain tries a step again itself; this is for a machine that is lost or another retraining at work.
        retries=2,
        retry_delay=timedelta(minutes=10),
        retry_exponential_backoff=2.0,
        max_retry_delay=timedelta(hours=2),
        execution_timeout=timedelta(hours=6),
        on_failure_callback=give_alert,
    )
    status = BashOperator(
        task_id="status",
        bash_command='exec "$PYTHON" -m jobs.status --config "$CONFIG"',
        execution_timeout=timedelta(minutes=10),
    )
    # A teardown: the page is made after a failure too, and the run is what the retraining was.
    retrain >> status.as_teardown()
