"""train_on_ray: a training's worker group under Ray Train, on a local cluster or on the one of RAY_ADDRESS."""

import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

from features.disk.run_folder import FAILURE_NAME, HISTORY_NAME, RunFolder
from jobs.cli.config import Config
from jobs.cli.conventions import EXIT_DATA
from jobs.launch.connection import check_room, connect, has_own_cluster, ray_settings
from jobs.launch.follow import follow
from jobs.launch.tracking import Record, tracked
from jobs.launch.worker import work
from training.config import TrainingConfig
from training.fit.allocator import HUGE_PAGES

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how late the end of a run is noticed

_log = logging.getLogger(__name__)

RAY_ENDED = "Ray ended under the training"
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""Signals that end a training in order -> what is said of it."""


def train_on_ray(run_path: Path, config: Config, name: str) -> None:
    """Run the worker group until training ends, and track it as the config says.

    Args:
        run_path: folder of the run; ``run_guard.prepare_run`` has prepared it.
        config: the resolved config.
        name: name of this training, from ``run_guard.take_over``.

    Raises:
        ConnectionError: there is no cluster at RAY_ADDRESS; or Ray ended, not the training.
        ConfigError: the cluster has too few cores or GPUs, or the MLflow store cannot be used.
        ValueError: data, config or checkpoint are wrong, as a worker reported.
        RuntimeError: workers died more often than ``training.max_failures``.
    """
    with tracked(RunFolder(run_path), config.training.tracking, config.to_dict()) as record:
        _train(run_path, config, name, record)


def _train(run_path: Path, config: Config, name: str, record: Record) -> None:
    os.environ.update(ray_settings())
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(config.training.stall_seconds)
    import ray
    import ray.exceptions
    import ray.train
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.launch.process_group import LocalTorchConfig

    training = config.training
    use_gpu = training.device == "cuda"
    own_cluster = not ray.is_initialized()
    if own_cluster:
        connect(max(os.cpu_count() or 1, training.worker_counts[-1]))
    group = LocalTorchConfig if own_cluster and has_own_cluster() else TorchConfig
    trainer = TorchTrainer(
        work,
        train_loop_config={"run": str(run_path), "config": config.to_dict(), "training": name},
        torch_config=group(backend="nccl" if use_gpu else "gloo", timeout_s=training.stall_seconds),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,  # a pair is elastic
            use_gpu=use_gpu,
            elastic_resize_monitor_interval_s=float(training.resize_seconds),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run_path),
            failure_config=FailureConfig(max_failures=training.max_failures),
            worker_runtime_env={"env_vars": {HUGE_PAGES: "1"}},  # a running cluster's workers do not inherit ours
        ),
    )
    ended_by: list[signal.Signals] = []

    def stop(number: int, _frame: Any) -> None:
        """Raise SystemExit, so that workers are shut down; Ray's own handlers would leave them or wait for them."""
        ended_by.append(signal.Signals(number))
        raise SystemExit(128 + number)

    finished = threading.Event()
    follower = threading.Thread(target=follow, args=(run_path / HISTORY_NAME, training, finished, record), daemon=True)
    follower.start()
    if group is LocalTorchConfig:
        threading.Thread(target=_watch_node, args=(finished, run_path, training), daemon=True).start()
    # Ray's handler of SIGINT waits for the controller, and that for workers that may wait for a core.
    trainer._register_sigint_handler = lambda controller: None
    for number in WORDS:  # here, because ray.init has just taken SIGTERM over
        signal.signal(number, stop)
    try:
        check_room(training.worker_counts[0], use_gpu)
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        _raise_failure(run_path)
        raise RuntimeError(f"workers failed more than {training.max_failures} times; see {run_path}/errors") from error
    except SystemExit:  # Ray's library has made a 1 of its code
        number = ended_by[0] if ended_by else signal.SIGTERM
        _log.error("%s: %s", WORDS[number], _way_on(run_path, training))
        raise SystemExit(128 + number) from None
    except ray.exceptions.RayError as error:
        raise ConnectionError(f"{RAY_ENDED}: {_way_on(run_path, training)}") from error
    finally:
        finished.set()
        follower.join()
        if own_cluster:
            ray.shutdown()
    _raise_failure(run_path)


def _way_on(run_path: Path, training: TrainingConfig) -> str:
    """Say what --resume does to a run that was broken off."""
    from training.fit.run import Run
    from training.sharding import checkpoint

    if checkpoint.saved_steps(Run(run_path).checkpoints_of(training)):
        return "--resume goes on from the newest checkpoint"
    return "there is no checkpoint yet, so --resume starts at the beginning"


def _watch_node(finished: threading.Event, run_path: Path, training: TrainingConfig) -> None:
    """End this process with a message when the local cluster's node dies; Ray's library would end it silently."""
    import ray._private.worker

    node: Any = ray._private.worker._global_node
    (raylet,) = node.all_processes["raylet"]
    while not finished.wait(0.2):
        if raylet.process.poll() is not None and not finished.is_set():
            _log.error("%s: %s", RAY_ENDED, _way_on(run_path, training))
            os._exit(EXIT_DATA)


def _raise_failure(run_path: Path) -> None:
    failure = run_path / FAILURE_NAME
    if failure.exists():
        raise ValueError(json.loads(failure.read_text())["message"])
