"""jobs.train as a user runs it: real Ray, a killed worker, resume, and what it refuses."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import torch

from features.disk.run_folder import WORKERS_LOCK_NAME
from jobs import train
from jobs.cli.config import load_config
from jobs.launch import run_guard, worker
from tests.ranks import on_two_ranks
from tests.stand_ins.running_cluster import running_cluster
from tests.stand_ins.tiny_dataset import TINY_FEATURES
from training.fit.run import Run, train_rank
from training.sharding import checkpoint
from training.ship.export import load_best

CONFIG = (
    TINY_FEATURES
    + """\
[pipeline]
output = "unused"
"""
)
TRAINING = """
[training]
from_data = []
dataset = "{dataset}"
num_workers = {num_workers}
max_epochs = 2
global_batch_size = 32
evaluation_batch_size = 32
reader.num_streams = 4
checkpoint.every_steps = 20
optimizer.embedding_learning_rate = 0.05
[training.model]
embedding_dim = 8
easy.hidden_units = [8]
hard.hidden_units = [16, 8]
"""
ROOT = Path(__file__).parents[2]
T = TypeVar("T")


def write_config(folder: Path, dataset: Path, num_workers: int = 1) -> Path:
    path = folder / "tiny.toml"
    path.write_text(CONFIG + TRAINING.format(dataset=dataset, num_workers=num_workers))
    return path


def command(config: Path, run: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train", "--config", str(config), "--run", str(run), *more]


def call(config: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(config, run, *more), cwd=ROOT, capture_output=True, text=True, check=False)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_best(Run(run))[0].state_dict()


def begin(config: Path, run: Path, *more: str, **environment: str) -> subprocess.Popen[str]:
    """A training that is starting."""
    words, pipe = command(config, run, *more), subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, stdout=pipe, stderr=pipe, text=True)


def start(config: Path, run: Path, *more: str) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A training that has written its first checkpoint, and its workers."""
    job = begin(config, run, *more)
    deadline = time.monotonic() + 180
    while not list((run / "checkpoints").glob("step=*")):
        assert job.poll() is None and time.monotonic() < deadline, job.stderr and job.stderr.read()
        time.sleep(0.02)
    return job, workers_of(job)


def workers_of(job: subprocess.Popen[str], name: str = "RayTrainWorker") -> list[psutil.Process]:
    found = []
    for process in psutil.Process(job.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process] if any(name in word for word in process.cmdline()) else []
    return found


def killed_in_mid_epoch(config: Path, run: Path, *more: str) -> str:
    """Train with a worker killed between two checkpoints of the first epoch; what the job printed by its end."""
    job, workers = start(config, run, *more)
    assert len(workers) == 2
    os.kill(workers[1].pid, signal.SIGKILL)
    assert (run / "metrics.json").exists() is False
    output, errors = job.communicate(timeout=300)
    assert job.returncode == 0, errors
    return output


def test_killed_worker_changes_nothing_but_the_time(make_dataset, tmp_path: Path) -> None:
    """Beside it: the same training on two ranks that no Ray has started."""
    dataset = make_dataset(train=((800,),) * 4, valid=((512,),)).path
    config, one_thread = write_config(tmp_path, dataset, num_workers=2), "training.threads_per_worker=1"
    output = killed_in_mid_epoch(config, tmp_path / "killed", one_thread)
    assert "trained 2 epochs" in output and "valid (best" in output

    (tmp_path / "quiet").mkdir()
    prepared = run_guard.prepare_run(tmp_path / "quiet", load_config([str(config)], [one_thread]), resume=False)
    on_two_ranks(tmp_path, train_rank, Run(tmp_path / "quiet"), prepared.training)
    quiet, killed = weights(tmp_path / "quiet"), weights(tmp_path / "killed")
    assert all(torch.equal(quiet[name], killed[name]) for name in quiet)
    for run in ("quiet", "killed"):
        assert Run(tmp_path / run).read("metrics.json")["train"]["rows"] == 2 * 3_200
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "history.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_sigterm_ends_the_workers_too_and_resume_goes_on(make_dataset, tmp_path: Path, run_here) -> None:
    dataset = make_dataset(train=((800,),) * 4).path
    config, run = write_config(tmp_path, dataset), tmp_path / "run"
    # So many epochs that it is not over when the signal comes, however busy the machine.
    job, workers = start(config, run, "training.max_epochs=1000")
    job.terminate()
    _, errors = job.communicate(timeout=180)
    assert job.returncode == 128 + signal.SIGTERM
    assert "terminated: --resume goes on from the newest checkpoint" in errors
    assert len(workers) == 1 and not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)
    assert not (run / "metrics.json").exists()

    here = ("--config", config, "--run", run)
    code, _, error = run_here(train.main, *here)
    assert code == 1 and "already holds a run: add --resume" in error
    code, _, error = run_here(train.main, *here, "--resume", "training.seed=7")
    assert code == 2 and "--resume cannot change training.seed" in error
    before = checkpoint.newest(run / "checkpoints")
    assert before is not None
    epochs = before.progress["epoch"] + 1
    resumed = call(config, run, "--resume", f"training.max_epochs={epochs}")
    assert resumed.returncode == 0, resumed.stderr
    assert f"\nepoch {epochs}: valid auc " in f"\n{resumed.stderr}" and resumed.stdout.startswith("trained ")
    assert Run(run).read("metrics.json")["train"]["rows"] == epochs * 3_200

    newest = checkpoint.newest(run / "checkpoints")
    assert newest is not None and newest.step == epochs * 100 > before.step
    shard = next((run / "checkpoints" / f"step={newest.step:09d}").glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:100])
    code, _, error = run_here(train.main, *here, "--resume", "training.max_epochs=1000")
    assert code == 1 and f"step={newest.step:09d} is damaged" in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_end_before_the_first_checkpoint(make_dataset, tmp_path: Path, number: signal.Signals) -> None:
    config, run = write_config(tmp_path, make_dataset(train=((800,),) * 4).path), tmp_path / "run"
    job = begin(config, run, "training.checkpoint.every_steps=1000000", "training.global_batch_size=4")
    workers, errors = ended_by(job, number, lambda: workers_of(job))
    assert job.returncode == 128 + number, errors
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert f"error: {word}: there is no checkpoint yet, so --resume starts at the beginning" in errors
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)
    done = call(config, run, "--resume", "training.max_epochs=1")
    assert done.returncode == 0, done.stderr


def ended_by(job: subprocess.Popen[str], number: signal.Signals, begun: Callable[[], T]) -> tuple[T, str]:
    """Signal a training once something is so; what that is, and what the training says to stderr."""
    deadline = time.monotonic() + 300
    try:
        while not (found := begun()):
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        job.send_signal(number)
        return found, job.communicate(timeout=180)[1]
    finally:
        job.kill()


def test_ctrl_c_ends_a_training_that_waits_for_a_core(make_dataset, tmp_path: Path) -> None:
    config, run = write_config(tmp_path, make_dataset().path), tmp_path / "run"
    with running_cluster(1, is_busy=True) as cluster:
        job = begin(config, run, **cluster.environment)
        _, errors = ended_by(job, signal.SIGINT, (run / "ray").exists)  # Ray Train's controller has begun
    assert job.returncode == 130 and "interrupted: there is no checkpoint yet" in errors, errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_cuda_without_a_gpu_is_refused_at_the_start(make_dataset, tmp_path: Path) -> None:
    config, started = write_config(tmp_path, make_dataset().path), time.monotonic()
    done = call(config, tmp_path / "run", "training.device=cuda")
    assert done.returncode == 2 and time.monotonic() - started < 240
    assert "this machine has no GPU that Ray sees: set training.device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_workers_of_a_killed_program_are_waited_for_or_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = []
    monkeypatch.setattr(run_guard, "ORPHAN_SECONDS", 0.3)
    monkeypatch.setattr(worker, "_fit", fitted.append)
    first = run_guard.take_over(tmp_path)
    of_first, lock = {"run": str(tmp_path), "training": first}, tmp_path / WORKERS_LOCK_NAME
    with lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        worker.work(of_first)  # workers share it
        with pytest.raises(ValueError, match="workers of an earlier training are still using"):
            run_guard.take_over(tmp_path)
    assert fitted == [of_first]
    second = run_guard.take_over(tmp_path)
    worker.work(of_first)
    assert fitted == [of_first] and second != first


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    word = worker._final_word(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert word == f"{tmp_path} cannot be written (No space left on device): make room, then go on with --resume"
    assert worker._final_word(OSError(errno.EIO, "Input/output error"), tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("deleted file", "is named in manifest.json but is missing"),
        ("cut file", "it was cut or changed"),
        ("other schema", "built from another feature schema"),
        ("unknown key", "unknown config key 'training.modle'; did you mean 'model'?"),
        ("no dataset", "is not a dataset"),
        ("run not writable", "cannot be written"),
    ],
)
def test_bad_input_is_one_sentence(make_dataset, tmp_path: Path, run_here, damage: str, words: str) -> None:
    tiny = make_dataset()
    config, run, more = write_config(tmp_path, tiny.path), tmp_path / "run", []
    file = tiny.path / tiny.manifest.splits["train"].files[0].path
    if damage == "deleted file":
        file.unlink()
    elif damage == "cut file":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "other schema":
        config.write_text(config.read_text().replace("num_buckets = 20", "num_buckets = 21"))
    elif damage == "unknown key":
        more = ["training.modle.embedding_dim=4"]
    elif damage == "no dataset":
        more = [f"training.dataset={tmp_path}"]
    else:
        (tmp_path / "file").write_text("not a folder")
        run = tmp_path / "file" / "run"
    code, out, error = run_here(train.main, "--config", config, "--run", run, *more)
    assert code in (1, 2) and out == ""
    assert words in error, error
    assert len(error.splitlines()) == 1
