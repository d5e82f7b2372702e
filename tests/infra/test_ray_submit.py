"""infra/ray/submit.sh: a real head node and a submitted training job, two clusters at once, and nothing left behind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
SUBMIT = str(ROOT / "infra" / "ray" / "submit.sh")


def test_training_as_a_submitted_job(built, find_one, listens, tmp_path: Path):
    run = tmp_path / "run"
    command = [SUBMIT, "python", "-m", "jobs.train", "--config", str(built.config), "--run", str(run)]
    environment = {**os.environ, "RAY_NUM_CPUS": "2"}
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    # Meanwhile a second cluster, whose job fails: it says which Python it was given.
    other = subprocess.run(
        [SUBMIT, "python", "-c", "import sys; print('interpreter', sys.executable); sys.exit(3)"],
        env={**environment, "RAY_NUM_CPUS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
        check=False,
    )
    output, _ = job.communicate(timeout=400)

    assert job.returncode == 0, output
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["train"]["rows"] == len(built.rows["train"])
    assert metrics["valid"]["rows"] == len(built.rows["valid"])
    assert (run / "checkpoints").is_dir()

    assert other.returncode != 0
    assert Path(find_one(r"\ninterpreter (\S+)", other.stdout)).samefile(sys.executable)
    logs = Path(find_one(r"Ray's logs are in (\S+)", other.stdout))
    assert (logs / "gcs_server.out").is_file()
    scratch = logs.parents[1]
    shutil.rmtree(scratch)

    addresses = [find_one(r"Ray cluster at (127\.0\.0\.1:\d+)", text) for text in (output, other.stdout)]
    assert addresses[0] != addresses[1]
    assert not any(listens(address) for address in addresses)
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert not [c for c in commands if str(scratch) in c or any(a in c for a in addresses)]
