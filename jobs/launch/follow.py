"""Progress bar of a running training, and the summary of a finished one."""

import json
import logging
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from features.disk.run_folder import METRICS_NAME
from jobs.launch.tracking import Record
from training.config import TrainingConfig
from training.judge.metrics import WINDOW_METRICS, metric_texts, remarks

_log = logging.getLogger(__name__)


def follow(
    history: Path, training: TrainingConfig, finished: threading.Event, record: Record = lambda events: None
) -> None:
    """Log each evaluation of a history while workers write it; on a terminal, show a progress bar too.

    Args:
        history: file of the run that its first worker appends to.
        training: config of the training.
        finished: set when the training is over.
        record: called with the events that are new, in order.
    """
    with tqdm(disable=None, unit="step", dynamic_ncols=True) as bar:
        shown = _Shown(bar, training)
        position, is_last = 0, False
        while not is_last:
            is_last = finished.wait(0.5)
            if not history.exists() or history.stat().st_size == position:
                continue
            position = min(position, history.stat().st_size)  # a resumed run shortens its history
            with history.open(encoding="utf-8") as file:
                file.seek(position)
                lines = file.readlines()
                position = file.tell()
            events = [json.loads(line) for line in lines if line.endswith("\n")]
            for event in events:
                shown.take(event)
            record(events)


class _Shown:
    """Bar of a running training, told of one event after the other."""

    def __init__(self, bar: Any, training: TrainingConfig) -> None:
        self._bar, self._training, self._window = bar, training, ""

    def take(self, event: dict[str, Any]) -> None:
        if event["event"] == "progress":
            self._take_progress(event)
        elif event["event"] == "window":
            self._window = f"; training rows {' '.join(metric_texts(event, *WINDOW_METRICS))}"
        elif event["event"] == "evaluation":
            self._take_evaluation(event)

    def _take_progress(self, event: dict[str, Any]) -> None:
        bar = self._bar
        bar.total = event["epoch_steps"]
        bar.set_description(f"epoch {event['epoch'] + 1}/{self._training.max_epochs}", refresh=False)
        rates = f"{event['rows_per_second']:,.0f} rows/s loss {event['loss']:.4f}"
        bar.set_postfix_str(rates + self._window, refresh=False)
        bar.update(event["step_in_epoch"] - bar.n)

    def _take_evaluation(self, event: dict[str, Any]) -> None:
        mark, epochs = " best" if event["best"] else "", event.get("epochs", event["epoch"] + 1)
        found = " ".join(metric_texts(event, *_shown(self._training.monitor)))
        with tqdm.external_write_mode(sys.stderr):  # the bar steps aside for the line
            _log.info("epoch %s: valid %s%s%s", epochs_text(epochs), found, mark, self._window)
        if isinstance(epochs, int):
            self._bar.reset()


def describe_training(run_path: Path, seconds: float, monitor: Iterable[str] = ()) -> str:
    """Summarise a training in a few lines.

    Args:
        run_path: folder of the run, which has ended.
        seconds: duration, start and end included.
        monitor: monitored metrics.
    """
    metrics = json.loads((run_path / METRICS_NAME).read_text(encoding="utf-8"))
    train = metrics["train"]
    lines = [
        f"trained {epochs_text(train['epochs'])} epochs, {train['steps']:,} steps, {train['rows']:,} rows "
        f"at {train['rows_per_second']:,.0f} rows/s; {seconds:.0f} s in all",
        f"a step of {1e3 * train['seconds_per_step']:.0f} ms: {_listed(train['shares'])}; the reader "
        f"({_listed(train['reader_shares'])}) makes {train['reader_rows_per_second']:,.0f} rows/s beside it",
    ]
    if train["of_limit"]:
        lines.append(f"of what reader, memory and products give alone: {_listed(train['of_limit'])}")
    if "valid" in metrics:
        valid = metrics["valid"]
        best = f"valid (best, step {metrics['best_step']:,})"
        lines.append(f"{best}: {'  '.join(metric_texts(valid, *_shown(monitor)))}")
        lines += [f"warning: on validation {words}" for words in remarks(valid)]
    for name, found in metrics.get("vectors", {}).items():
        lines.append(
            f"vectors {name}: {found['covered']:,} of {found['rows']:,} ids have one, of {found['dimension']} numbers"
        )
    if train.get("ended_by") == "max_minutes":
        lines.append("training.max_minutes ended it: --resume with more goes on from there")
    return "\n".join([*lines, f"run: {run_path}"])


def epochs_text(epochs: float) -> str:
    """Format epochs that are done, whole ones or not."""
    return str(epochs) if isinstance(epochs, int) else f"{epochs:.2f}"


def _shown(monitor: Iterable[str]) -> list[str]:
    """List the metrics that are printed."""
    return list(dict.fromkeys(["auc", "logloss", *monitor]))


def _listed(shares: dict[str, float]) -> str:
    """List parts with their shares, the largest first."""
    return ", ".join(f"{part} {share:.0%}" for part, share in sorted(shares.items(), key=lambda found: -found[1]))
