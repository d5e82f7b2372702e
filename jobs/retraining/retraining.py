"""retrain: the steps of one retraining, from raw files to a promotion or refusal; and its summaries."""

import contextlib
import logging
import shutil
import time
from functools import partial
from typing import Any

from features.log_format import LogError
from jobs.cli.interruption import Interrupted
from jobs.launch.connection import check_address
from jobs.registry.model_versions import ModelVersion
from jobs.registry.store import RegistryError
from jobs.retraining.alert import alert
from jobs.retraining.candidate import Candidate, carry_out
from jobs.retraining.file_states import describe_files
from jobs.retraining.partitions import build_partitions, check_partition, find_dates
from jobs.retraining.raw_partitions import date_of
from jobs.retraining.retrain_folder import UNREADABLE, RetrainFolder
from jobs.retraining.retry import Steps
from training.judge.metrics import remarks

_log = logging.getLogger(__name__)
Ended = tuple[dict[str, Any], str]
"""Outcome of a retraining: summary as JSON values, and text."""


def retrain_once(place: RetrainFolder, as_of: str | None) -> str:
    """Retrain, write the summary to last.json however it ends, and return its text.

    Raises:
        Exception: what a step raised at last.
        Interrupted: a signal has asked this program to end; says at which step.
    """
    steps = Steps(place.rules.retries, place.rules.retry_seconds)
    try:
        summary, text = retrain(place, steps, as_of)
        without = left_out(place)
    except Interrupted as signal:
        day = "" if steps.day is None else f" of {steps.day}"
        where = Interrupted(signal.number, f"at step {steps.current}{day}: the next retraining goes on there")
        with contextlib.suppress(OSError, ValueError):
            end(place, failure(place, steps, where))
        raise where from signal
    except Exception as error:
        with contextlib.suppress(OSError):  # what went wrong first is to be told
            end(place, failure(place, steps, error))
        raise
    end(place, {**summary, **without})
    for warning in warnings(without):
        _log.warning(warning)
    return text


def retrain(place: RetrainFolder, steps: Steps, as_of: str | None) -> Ended:
    """Run all steps that are left; return the outcome of the newest day.

    Args:
        place: folder of the retraining.
        steps: runs each step with retries.
        as_of: date after which partitions are ignored; None: use all.
    """
    started = time.perf_counter()
    _finish(place, steps)
    if files := place.undated_files():
        steps.do("dates", partial(find_dates, place, files))
    if names := place.look(as_of, steps.do("look", place.champion)).build:
        steps.do("connect", check_address)  # told before hours of builds, not after them
        raw = place.raw()
        # The log may have changed since the plan was made: what is not ready any more is built when it is.
        build_partitions(place, {name: raw[name] for name in names if name in raw}, steps)
    _check_readable(place)
    for name in place.built():
        if not place.is_checked(name):
            steps.day = name
            steps.do("check", partial(check_partition, place, name))
    steps.day = None
    champion = steps.do("look", place.champion)
    todo = place.look(as_of, champion)
    steps.day = todo.test
    if todo.test is None:
        return _nothing(place, as_of, champion)
    if place.verdict_file(todo.test).exists():
        return _done_before(place, todo.test)
    candidate = Candidate(place, todo, todo.test, champion)
    window = steps.do("window", candidate.join)
    steps.do("train", candidate.train)
    if candidate.has_other_features:
        steps.do("encode", candidate.encode_for_champion)
    found, metrics = steps.do("judge", candidate.judge)
    steps.do("export", candidate.export)
    steps.do("report", candidate.report)
    version = steps.do("register", partial(candidate.register, metrics["candidate"]))
    word = "promoted" if found.passed else "refused"
    summary = {
        "day": todo.test,
        "verdict": word,
        "stopped_by": None if found.passed else "gate",
        "version": version,
        "champion_version": version if found.passed else champion and champion.version,
        "auc": metrics["candidate"]["auc"],
        "logloss": metrics["candidate"]["logloss"],
        "trained_on": list(todo.train),
        "train_rows": window.split("train").num_rows,
        "is_warm": todo.is_warm,
        "metrics": metrics,
        "gate": found.to_json(),
        "is_done": False,
        "seconds": round(time.perf_counter() - started, 1),
    }
    # Before it is carried out: killed in between, a retraining would not know any more what it had decided.
    place.write(place.verdict_file(todo.test), summary)
    summary = steps.do("promote", partial(carry_out, place, summary))
    head = f"{todo.test}: version {version} {word}, trained on {', '.join(todo.train)}"
    said = "".join(f"\nwarning: on {todo.test} {words}" for words in remarks(metrics["candidate"]))
    return summary, f"{found.table()}\n{head}, {summary['seconds']:.0f} s{said}"


def _finish(place: RetrainFolder, steps: Steps) -> None:
    """Remove temporary folders of a killed retraining, and carry out verdicts that it had written."""
    for leftover in place.leftovers():
        shutil.rmtree(leftover)
    for path in place.verdict_files():
        verdict = place.read(path)
        if not verdict["is_done"]:
            steps.do("promote", partial(carry_out, place, verdict))


def _check_readable(place: RetrainFolder) -> None:
    """Refuse a log of which nothing could ever be read: it is the config that is wrong then, as a rule.

    Raises:
        LogError: gives the first date's reason.
    """
    unreadable = place.unreadable()
    if unreadable and not place.built():
        name, reason = next(iter(unreadable.items()))
        raise LogError(f"no date of the log can be read, so look at the config too; {name}: {reason}")


def _done_before(place: RetrainFolder, day: str) -> Ended:
    """Return the outcome of a day that is done; its retraining may have been killed before it reported."""
    return place.read(place.verdict_file(day)), f"{day}: done before"


def _nothing(place: RetrainFolder, as_of: str | None, champion: ModelVersion | None) -> Ended:
    serving, stopped = champion and champion.version, place.stopped()
    known = {*place.built(), *stopped}
    newest = max((name for name in known if as_of is None or date_of(name) <= as_of), default=None)
    if newest and newest == max(known) and place.verdict_file(newest).exists():
        return _done_before(place, newest)
    if newest in stopped:
        by = "data checks" if newest in place.built() else UNREADABLE
        summary = {"day": newest, "verdict": "stopped", "stopped_by": by, "champion_version": serving}
        return summary, f"{newest} is not trained on: {place.checks_file(newest)} says why"
    summary = {"day": newest, "verdict": "nothing", "stopped_by": None, "champion_version": serving}
    return summary, "nothing is new: there is no day before the newest one that the champion has not seen"


def failure(place: RetrainFolder, steps: Steps, error: BaseException) -> dict[str, Any]:
    """Summarise a retraining that failed at a step, or that a signal ended there."""
    try:
        champion = place.champion()
    except RegistryError:
        champion = None
    try:
        without = left_out(place)
    except (ValueError, OSError):  # what failed may be just that
        without = {}
    told = (ValueError, OSError, Interrupted)
    return {
        "day": steps.day or max(place.built(), default=None),
        "verdict": "failed" if isinstance(error, Exception) else "interrupted",
        "stopped_by": steps.current,
        "step": steps.current,
        "error": f"{error}" if isinstance(error, told) else f"{type(error).__name__}: {error}",
        "champion_version": champion and champion.version,
        **without,
    }


def left_out(place: RetrainFolder) -> dict[str, Any]:
    """Tell what of the log is in no partition: late rows, changes since a build, what cannot be read or is not ready.

    Returns:
        What is not empty; ``notes`` are on files that are left out by their names or are there twice.
    """
    late = {name: {"files": len(part.files), "rows": part.num_rows} for name, part in place.late().items()}
    found = {
        "late": late,
        "changed": place.changed(),
        "changed_files": place.changed_files(),
        "undated_rows": place.dates.num_undated(),
        UNREADABLE: place.unreadable(),
        "unreadable_files": place.dates.unreadable(),
        "not_ready": place.unready(),
        "notes": place.notes(),
    }
    return {name: rows for name, rows in found.items() if rows}


def warnings(without: dict[str, Any]) -> list[str]:
    """Describe what ``left_out`` counted, a line each."""
    lines = []
    for name, late in without.get("late", {}).items():
        rows = "" if late["rows"] is None else f" with {late['rows']:,} rows"
        lines.append(f"{date_of(name)}: {late['files']} files{rows} came late and are left out (retrain.late)")
    for name, more in without.get("changed", {}).items():
        lines.append(f"{name}: its raw files have changed by {more:+,} rows since it was built (retrain.changed)")
    for name, files in without.get("changed_files", {}).items():
        lines.append(f"{name}: {describe_files(files)} (retrain.changed)")
    lines += [f"{name} cannot be read: {reason}" for name, reason in without.get(UNREADABLE, {}).items()]
    if files := without.get("unreadable_files"):
        lines.append(f"{len(files)} files are put aside until they change: {next(iter(files.values()))}")
    lines += [f"{name} is not ready: {reason}" for name, reason in without.get("not_ready", {}).items()]
    if undated := without.get("undated_rows"):
        lines.append(f"{undated:,} rows have no readable time and are in no partition")
    return lines + without.get("notes", [])


def end(place: RetrainFolder, summary: dict[str, Any]) -> None:
    """Write last.json and send the alert; an unchanged summary is not sent again, unless the retraining failed."""
    path = place.last_file
    is_news = not path.exists() or place.read(path) != summary
    try:
        place.write(path, summary)
    finally:
        if is_news or summary["verdict"] in ("failed", "interrupted"):
            alert(summary, place.rules.alert_on)


def describe_todo(place: RetrainFolder, as_of: str | None) -> str:
    """Describe what a retraining would do (dry run).

    Raises:
        ValueError: the folder is of a newer version, or as ``RetrainFolder.look``.
    """
    place.check_version()
    lines = []
    if files := place.undated_files():
        lines.append(f"would look for dates in {len(files)} files first, which will show more than is known now")
        if not place.dates.files():
            return lines[0]
    todo = place.look(as_of, place.champion())
    lines.append(f"would build and check {', '.join(todo.build) or 'nothing'}")
    if todo.test is None:
        lines.append("would train nothing" + (" before that is checked" if todo.build else ": nothing is new"))
    else:
        start = "from the champion" if todo.is_warm else "from nothing"
        lines.append(f"would train {start} on {', '.join(todo.train)} and compare on {todo.test}, if checks allow it")
    return "\n".join(lines)
