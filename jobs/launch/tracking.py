"""Tracking: the history of a run as TensorBoard event files and as a run in MLflow, from the driver."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.disk.lock import lock
from features.disk.run_folder import METRICS_NAME, TENSORBOARD_NAME, TRACKING_NAME, RunFolder
from jobs.cli.errors import ConfigError
from jobs.cli.mlflow_client import MAKING_SECONDS, explain_mlflow, import_mlflow, log_values
from training.config import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

_Event = dict[str, Any]
Record = Callable[[Sequence[_Event]], None]
"""Function that records events of a history, in their order."""

_SQLITE = "sqlite:///"
_BESIDE = ("event", "split", "epoch", "epochs", "step", "step_in_epoch", "epoch_steps", "seconds", "rows")
_NAMES = {"train_loss": "train/mean_loss", "learning_rate": "train/learning_rate"}
_SIDES = {"progress": "train", "evaluation": "valid"}

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def tracked(
    run: RunFolder, tracking: TrackingConfig, params: Mapping[str, Any], events_folder: Path | None = None
) -> Iterator[Record]:
    """Give a function that records a run's events while the body runs; how that ends is the MLflow run's status.

    Args:
        run: run folder; it remembers what is recorded, so that a resumed run goes on and records nothing twice.
        tracking: what to write.
        params: resolved config, for MLflow.
        events_folder: folder of the TensorBoard files; None: ``tensorboard`` in the run's folder.

    Raises:
        ConfigError: the MLflow store cannot be used.
    """
    tracker = _Tracker(run, tracking, params, events_folder or run.path / TENSORBOARD_NAME)
    try:
        yield tracker.record
    except (SystemExit, KeyboardInterrupt):
        tracker.end("KILLED")
        raise
    except BaseException:
        tracker.end("FAILED")
        raise
    tracker.end("FINISHED")


def check_tracking(tracking: TrackingConfig) -> None:
    """Check that the MLflow store, if there is one, can be reached.

    Raises:
        ConfigError: it cannot.
    """
    if tracking.mlflow is not None:
        _open_experiment(tracking.mlflow, tracking.experiment)


class _Tracker:
    """Recorder of one run."""

    def __init__(
        self, run: RunFolder, tracking: TrackingConfig, params: Mapping[str, Any], events_folder: Path
    ) -> None:
        self._run, self._state = run, {"mlflow_run": None, "steps": {}}
        if (run.path / TRACKING_NAME).exists():
            self._state |= run.read(TRACKING_NAME)
        self._pending: list[_Event] = []
        self._is_warned = False
        self._mlflow, self._uri = None, tracking.mlflow or ""
        if tracking.mlflow is not None:
            self._mlflow = _MlflowRun(tracking, run.path, params, self._state["mlflow_run"])
            self._state["mlflow_run"] = self._mlflow.run_id
            run.write(TRACKING_NAME, self._state)
        self._writer: Any = None
        if tracking.tensorboard:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(events_folder))

    def record(self, events: Sequence[_Event]) -> None:
        """Record events that are not recorded yet; where MLflow does not answer, they are tried again with the next."""
        if self._writer is None and self._mlflow is None:
            return
        steps = self._state["steps"]
        self._pending += [event for event in events if event["step"] > steps.get(event["event"], -1)]
        if not self._pending:
            return
        if self._mlflow is not None and not self._told_mlflow(self._mlflow):
            return
        for event in self._pending:
            for name, value in _numbers(event).items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, event["step"])
            steps[event["event"]] = event["step"]
        if self._writer is not None:
            self._writer.flush()
        self._pending.clear()
        self._run.write(TRACKING_NAME, self._state)

    def end(self, status: str) -> None:
        """Record what is left, and how the run ended."""
        self.record([])
        if self._pending:
            _log.warning("%d events of %s are not in MLflow: it did not answer", len(self._pending), self._run.path)
        if self._writer is not None:
            self._writer.close()
        if self._mlflow is not None:
            path = self._run.path / METRICS_NAME
            summary = self._run.read(METRICS_NAME) if status == "FINISHED" and path.exists() else {}
            with self._warned():
                self._mlflow.end(status, summary.get("valid", {}))

    def _told_mlflow(self, mlflow: "_MlflowRun") -> bool:
        with self._warned():
            mlflow.log(self._pending)
            return True
        return False

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        """Warn, once, of an MLflow that does not answer: a training does not end for that."""
        try:
            yield
        except _errors() as error:
            if not self._is_warned:
                _log.warning("MLflow does not take the run's history: %s", explain_mlflow(error, self._uri))
            self._is_warned = True


class _MlflowRun:
    """A run in MLflow, made or gone on with."""

    def __init__(self, tracking: TrackingConfig, path: Path, params: Mapping[str, Any], run_id: str | None) -> None:
        assert tracking.mlflow is not None
        with _explained(tracking.mlflow):
            self._client, experiment = _open_experiment(tracking.mlflow, tracking.experiment)
            if run_id is None:
                tags = {"mlflow.source.name": str(path)}
                made = self._client.create_run(experiment, run_name="/".join(path.parts[-3:]), tags=tags)
                run_id = made.info.run_id
                log_values(self._client, run_id, params, ())
            else:
                self._client.update_run(run_id, status="RUNNING")
        self.run_id = run_id

    def log(self, events: Sequence[_Event]) -> None:
        """Log the numbers of events by step."""
        found = [(name, value, event["step"]) for event in events for name, value in _numbers(event).items()]
        log_values(self._client, self.run_id, {}, found)

    def end(self, status: str, best: Mapping[str, Any]) -> None:
        """Log the metrics of the best checkpoint, and end the run."""
        log_values(self._client, self.run_id, {}, ((f"best/{name}", value, 0) for name, value in best.items()))
        self._client.set_terminated(self.run_id, status)


def _open_experiment(uri: str, name: str) -> tuple["MlflowClient", str]:
    """Connect to a store and find or make an experiment there; one program of several makes it.

    Raises:
        ConfigError: the store cannot be used.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_explained(uri))
        if uri.startswith(_SQLITE):
            database = Path(uri.removeprefix(_SQLITE)).absolute()
            database.parent.mkdir(parents=True, exist_ok=True)
            uri = f"{_SQLITE}{database}"
            held = f"{database} is being made by another program"
            stack.enter_context(lock(database.with_name(f"{database.name}.lock"), held, patience=MAKING_SECONDS))
        client = import_mlflow().MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        return client, found.experiment_id if found is not None else client.create_experiment(name)


@contextlib.contextmanager
def _explained(uri: str) -> Iterator[None]:
    try:
        yield
    except _errors() as error:
        raise ConfigError(f"config key 'training.tracking.mlflow': {explain_mlflow(error, uri)}") from error


def _errors() -> tuple[type[Exception], ...]:
    """List what MLflow raises where its store is none, or does not answer."""
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return import_mlflow().MlflowException, RequestException, SQLAlchemyError, OSError


def _numbers(event: _Event) -> dict[str, float]:
    """List the numbers of an event by side and name, such as ``valid/auc``; undefined metrics are left out."""
    side = _SIDES.get(event["event"], event["event"])
    return {
        _NAMES.get(name, f"{side}/{name}"): float(value)
        for name, value in event.items()
        if name not in _BESIDE and isinstance(value, int | float) and not isinstance(value, bool)
    }
