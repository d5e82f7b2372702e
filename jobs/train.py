"""Train a model with Ray Train: workers form a process group, and each runs ``training.fit.run.fit``.

Ray restarts the group when a worker dies; the ranks then go on from the newest complete checkpoint in the run folder,
whatever Ray itself remembers.
"""

import dataclasses
import json
import logging
import os
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # also how late the end of a run is noticed

from tqdm import tqdm

from features.disk.atomic import is_full
from features.disk.lock import lock
from features.disk.place import Place, locate
from jobs.cli.config import Config, check_manifest, parse_config
from jobs.cli.config_arguments import config_parser, parse_config_arguments
from jobs.cli.conventions import EXIT_DATA, absolute, place, run_program
from jobs.cli.errors import ConfigError
from jobs.launch.worker import LOOPBACK, loopback_settings, set_up_worker
from training.fit.allocator import HUGE_PAGES

COMPARED_ON_RESUME = (
    "warm_start",
    "model",
    "optimizer",
    "global_batch_size",
    "seed",
    "clip_gradient_norm",
    "precision",
    "ema_decay",
    "schedule",
    "monitor",
)
"""Training keys that must not change when a run goes on: the weights already depend on them."""

GO_ON = "--resume goes on from the newest checkpoint"
RAY_ENDED = "Ray ended under the training"
WORKERS_LOCK = ".workers"
"""Shared by the workers as long as they live; holds the name of the training that they belong to."""
ORPHAN_SECONDS = 60.0
RESERVE = ".reserve"
"""File of a run that makes room for a last word when the disk is full."""


def main() -> int:
    parser = config_parser(
        "jobs.train",
        "Train a model on a built dataset under Ray Train.",
        "python -m jobs.train --config jobs/configs/demo.toml --run runs/demo training.max_epochs=1",
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="folder of the run; made if absent")
    parser.add_argument("--resume", action="store_true", help="go on from the run's newest checkpoint")
    arguments, config = parse_config_arguments(parser)
    config = _with_places(config)
    run_path = absolute(arguments.run)
    started = time.perf_counter()
    with _locked(run_path):
        training = _take_over(run_path)
        config = _prepare(run_path, config, resume=arguments.resume)
        _train(run_path, config, training)
    _print_summary(run_path, time.perf_counter() - started)
    return 0


def _with_places(config: Config) -> Config:
    """The config with paths that mean the same to every worker."""
    training = dataclasses.replace(config.training, dataset=str(place(config.training.dataset)))
    if training.warm_start is not None:
        training = dataclasses.replace(training, warm_start=str(absolute(training.warm_start)))
    if training.checkpoint.folder is not None:
        folder = str(place(training.checkpoint.folder))
        training = dataclasses.replace(training, checkpoint=dataclasses.replace(training.checkpoint, folder=folder))
    return dataclasses.replace(config, training=training)


@contextmanager
def _locked(run_path: Path) -> Iterator[None]:
    """Hold the run folder for this process alone."""
    message = f"another training is using {run_path}: wait for it or choose another --run"
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(run_path / ".lock", message))
        except OSError as error:
            raise ValueError(f"--run {run_path} cannot be written: {error.strerror}") from error
        yield


def _take_over(run_path: Path) -> str:
    """Wait until the workers of an earlier training, whose program was killed, have ended too; they take some seconds.

    Returns:
        A name of this training; workers of an earlier one that have still to start know another and leave.

    Raises:
        LockedError: they do not end.
    """
    name = secrets.token_hex(8)
    message = (
        f"workers of an earlier training are still using {run_path}, though its program is gone: end the "
        "ray::RayTrainWorker processes, then --resume goes on"
    )
    with lock(run_path / WORKERS_LOCK, message, patience=ORPHAN_SECONDS, owner=name):
        return name


def _prepare(run_path: Path, config: Config, resume: bool) -> Config:
    """Check dataset and run before any worker starts; returns the config with the dataset's own schema.

    Raises:
        ValueError: the dataset does not fit the config, or the run folder is used by another run.
    """
    from training.data.opened_dataset import Dataset
    from training.fit.run import LEARNT_NAME, Run, find_warm_start
    from training.sharding import checkpoint

    dataset = Dataset.open(config.training.dataset)
    manifest = dataset.manifest
    check_manifest(config, manifest)
    find_warm_start(config.training, dataset)
    run = Run(run_path)
    checkpoints = run.checkpoints_of(config.training)
    used = [folder for folder in {checkpoints, run.checkpoints, *_places_before(run)} if checkpoint.saved_steps(folder)]
    if used and not resume:
        more = "" if used == [run.checkpoints] else f", in {used[0]},"
        raise ValueError(
            f"{run_path} already holds a run{more}: add --resume to go on with it, or choose another --run"
        )
    if used:
        _check_same(run, config, manifest.schema_fingerprint, dataset.learnt.fingerprint)
        checkpoint.newest(checkpoints)
    else:
        run.history.unlink(missing_ok=True)
    run.failure.unlink(missing_ok=True)
    (run_path / RESERVE).write_bytes(bytes(4096))
    run.write("config.json", config.to_dict())
    dataset.learnt.save(run_path / LEARNT_NAME)
    run.write(
        "dataset.json",
        {
            "dataset": str(dataset.path),
            "schema_fingerprint": manifest.schema_fingerprint,
            "learnt_fingerprint": dataset.learnt.fingerprint,
        },
    )
    return config


def _places_before(run: Any) -> list[Place]:
    """Where an earlier start of the run was told to keep its checkpoints."""
    if not (run.path / "config.json").is_file():
        return []
    folder = run.read("config.json").get("training", {}).get("checkpoint", {}).get("folder")
    return [] if folder is None else [locate(folder)]


def _check_same(run: Any, config: Config, schema_fingerprint: str, learnt_fingerprint: str) -> None:
    before = parse_config(run.read("config.json"), run.path).training
    changed = [name for name in COMPARED_ON_RESUME if getattr(before, name) != getattr(config.training, name)]
    if before.reader.num_streams != config.training.reader.num_streams:
        changed.append("reader.num_streams")
    if before.checkpoint.folder != config.training.checkpoint.folder:
        changed.append("checkpoint.folder")
    if changed:
        raise ConfigError(f"--resume cannot change training.{', training.'.join(changed)}: start a new --run")
    data = run.read("dataset.json")
    if (data["schema_fingerprint"], data["learnt_fingerprint"]) != (schema_fingerprint, learnt_fingerprint):
        raise ValueError(f"{run.path} was trained on another dataset than {config.training.dataset}")


def _train(run_path: Path, config: Config, name: str) -> None:
    """Run the worker group to its end.

    Args:
        name: what ``_take_over`` said.

    Raises:
        ConnectionError: Ray ended, not the training.
        ValueError: what a worker found wrong with data, config or checkpoint.
        RuntimeError: workers died more often than ``training.max_failures``.
    """
    if "RAY_ADDRESS" not in os.environ:
        os.environ.update(loopback_settings())
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
    group = TorchConfig
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if own_cluster and "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    elif own_cluster:
        cores = max(os.cpu_count() or 1, training.num_workers)
        ray.init(address="local", num_cpus=cores, include_dashboard=False, _node_ip_address=LOOPBACK, **quiet)
        group = LocalTorchConfig
    trainer = TorchTrainer(
        _work,
        train_loop_config={"run": str(run_path), "config": config.to_dict(), "training": name},
        torch_config=group(backend="nccl" if use_gpu else "gloo", timeout_s=training.stall_seconds),
        scaling_config=ScalingConfig(num_workers=training.num_workers, use_gpu=use_gpu),
        run_config=RunConfig(
            name="ray",
            storage_path=str(run_path),
            failure_config=FailureConfig(max_failures=training.max_failures),
            worker_runtime_env={"env_vars": {HUGE_PAGES: "1"}},  # a running cluster's workers do not inherit ours
        ),
    )
    finished = threading.Event()
    follower = threading.Thread(target=_follow, args=(run_path / "history.jsonl", training, finished), daemon=True)
    follower.start()
    if group is LocalTorchConfig:
        threading.Thread(target=_watch_node, args=(finished,), daemon=True).start()
    signal.signal(signal.SIGTERM, _stop)  # here, because ray.init has just taken it over
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        _raise_failure(run_path)
        raise RuntimeError(f"workers failed more than {training.max_failures} times; see {run_path}/errors") from error
    except SystemExit:  # of _stop or of Ray's own handler of SIGINT; Ray's library has made a 1 of its code
        print(f"terminated: {GO_ON}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    except ray.exceptions.RayError as error:
        raise ConnectionError(f"{RAY_ENDED}: {GO_ON}") from error
    finally:
        finished.set()
        follower.join()
        if own_cluster:
            ray.shutdown()
    _raise_failure(run_path)


def _watch_node(finished: threading.Event) -> None:
    """End with a word when the node of our own cluster is gone; Ray's library would end this process without one."""
    import ray._private.worker

    node: Any = ray._private.worker._global_node
    (raylet,) = node.all_processes["raylet"]
    while not finished.wait(0.2):
        if raylet.process.poll() is not None and not finished.is_set():
            print(f"error: {RAY_ENDED}: {GO_ON}", file=sys.stderr, flush=True)
            os._exit(EXIT_DATA)


def _stop(*_: Any) -> None:
    """End in order, workers and all; Ray's own way is to abort and to leave the workers to find out."""
    raise SystemExit


def _raise_failure(run_path: Path) -> None:
    failure = run_path / "failure.json"
    if failure.exists():
        raise ValueError(json.loads(failure.read_text())["message"])


def _work(arguments: dict[str, Any]) -> None:
    """One Ray Train worker."""
    path = Path(arguments["run"]) / WORKERS_LOCK
    with lock(path, f"{path} is held", shared=True, patience=ORPHAN_SECONDS) as owner:
        if owner.read() == arguments["training"]:
            _fit(arguments)


def _fit(arguments: dict[str, Any]) -> None:
    import ray.train

    from training.fit.run import Run, fit

    config = parse_config(arguments["config"]).training
    run = Run(Path(arguments["run"]))
    if run.failure.exists():
        return  # an error that a restart cannot mend: leave quietly, the driver tells it
    context = ray.train.get_context()
    set_up_worker(context.get_local_world_size(), config.threads_per_worker)
    rank = context.get_world_rank()

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "evaluation":
            ray.train.report({k: v for k, v in event.items() if isinstance(v, int | float)})

    try:
        fit(run, config, report)
    except Exception as error:
        with suppress(OSError):  # where nothing can be written; the error itself goes to the driver by Ray
            message = _final_word(error, run.path)
            if message is not None:
                (run.path / RESERVE).unlink(missing_ok=True)
                run.write("failure.json", {"rank": rank, "message": message})
            errors = run.path / "errors"
            errors.mkdir(exist_ok=True)
            (errors / f"rank={rank}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _final_word(error: Exception, run_path: Path) -> str | None:
    """What to tell of an error that a restart of the workers would only meet again; None of one that it may mend."""
    if isinstance(error, OSError) and is_full(error):
        return f"{run_path} cannot be written ({error.strerror}): make room, then go on with --resume"
    return str(error) if isinstance(error, ValueError) else None


def _follow(history: Path, training: Any, finished: threading.Event) -> None:
    """Show the history as a progress bar while workers write it; quiet when not a terminal."""
    with tqdm(disable=None, unit="step", dynamic_ncols=True) as bar:
        position = 0
        while not finished.wait(0.5):
            if not history.exists() or history.stat().st_size == position:
                continue
            position = min(position, history.stat().st_size)  # a resumed run shortens its history
            with history.open(encoding="utf-8") as file:
                file.seek(position)
                lines = file.readlines()
                position = file.tell()
            for line in lines:
                if line.endswith("\n"):
                    _show(bar, json.loads(line), training.max_epochs)


def _show(bar: Any, event: dict[str, Any], max_epochs: int) -> None:
    if event["event"] == "progress":
        bar.total = event["epoch_steps"]
        bar.set_description(f"epoch {event['epoch'] + 1}/{max_epochs}", refresh=False)
        bar.set_postfix_str(f"{event['rows_per_second']:,.0f} rows/s loss {event['loss']:.4f}", refresh=False)
        bar.update(event["step_in_epoch"] - bar.n)
    elif event["event"] == "evaluation":
        mark = " best" if event["best"] else ""
        bar.write(f"epoch {event['epoch'] + 1}: valid auc {event['auc']:.6f} logloss {event['logloss']:.6f}{mark}")
        bar.reset()


def _print_summary(run_path: Path, seconds: float) -> None:
    metrics = json.loads((run_path / "metrics.json").read_text(encoding="utf-8"))
    train = metrics["train"]
    print(
        f"trained {train['epochs']} epochs, {train['steps']:,} steps, {train['rows']:,} rows "
        f"at {train['rows_per_second']:,.0f} rows/s; {seconds:.0f} s in all"
    )
    print(
        f"a step of {1e3 * train['seconds_per_step']:.0f} ms: {_listed(train['shares'])}; "
        f"the reader ({_listed(train['reader_shares'])}) makes {train['reader_rows_per_second']:,.0f} rows/s beside it"
    )
    if train["of_limit"]:
        print(f"of what reader, memory and products give alone: {_listed(train['of_limit'])}")
    if "valid" in metrics:
        valid = metrics["valid"]
        print(f"valid (best, step {metrics['best_step']:,}): auc {valid['auc']:.6f}  logloss {valid['logloss']:.6f}")
    print(f"run: {run_path}")


def _listed(shares: dict[str, float]) -> str:
    """Parts and their shares, the largest first."""
    return ", ".join(f"{part} {share:.0%}" for part, share in sorted(shares.items(), key=lambda found: -found[1]))


if __name__ == "__main__":
    run_program(main)
