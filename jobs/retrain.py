"""Retrain once: preprocess what is new, check it, train a candidate, hold it against the champion, promote or refuse.

Every step leaves a file that says it is done, so a retraining that is killed anywhere goes on where it was when it is
started again, and one that is done does nothing. ``jobs/retraining/retrain_folder.py`` lists the files. A step that
fails is tried again; when it fails for good, ``last.json`` and the exit code say so, and the champion stays.
"""

import contextlib
import json
import shutil
import time
from argparse import ArgumentParser
from functools import partial
from typing import Any

from features.disk.atomic import write_json
from jobs.cli.config_arguments import config_parser, parse_config_arguments
from jobs.cli.conventions import absolute, run_program
from jobs.cli.errors import ConfigError
from jobs.registry.model_versions import ModelVersion
from jobs.registry.store import RegistryError
from jobs.retraining.alert import alert
from jobs.retraining.candidate import Candidate, carry_out
from jobs.retraining.partitions import build, check_partition, find_dates
from jobs.retraining.raw_partitions import date_key, date_of
from jobs.retraining.retrain_folder import RetrainFolder
from jobs.retraining.retry import Steps

Ended = tuple[dict[str, Any], str]
"""What a retraining came to, for programs and for a person."""


def main() -> int:
    parser = config_parser(
        "jobs.retrain",
        "Train on what is new and promote the model if it is no worse.",
        "python -m jobs.retrain --config mine.toml --as-of 2014-10-28",
    )
    parser.add_argument("--as-of", metavar="DATE", help="as if it were this day; without it, all there is")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    arguments, config = parse_config_arguments(parser)
    if config.retrain is None:
        raise ConfigError("config key 'retrain' is missing: see python -m jobs.retrain --help and README.md")
    place = RetrainFolder(absolute(config.retrain.root), config, config.retrain)
    as_of = None if arguments.as_of is None else date_key(arguments.as_of)
    if arguments.dry_run:
        print(_describe(place, as_of))
        return 0
    steps = Steps(config.retrain.retries, config.retrain.retry_seconds)
    with place.alone():
        try:
            summary, text = retrain(place, steps, _settings(parser), as_of)
        except Exception as error:
            with contextlib.suppress(OSError):  # what went wrong first is to be told
                _end(place, _failure(place, steps.current, error))
            raise
        left_out = _left_out(place)
        _end(place, {**summary, **left_out})
    print("\n".join([*_warnings(left_out), text]))
    return 0


def _settings(parser: ArgumentParser) -> list[str]:
    """The same config for the programs that are started from here."""
    arguments, overrides = parser.parse_known_args()
    return [*(word for path in arguments.config for word in ("--config", path)), *overrides]


def retrain(place: RetrainFolder, steps: Steps, settings: list[str], as_of: str | None) -> Ended:
    """All steps; returns what became of the newest day."""
    started = time.perf_counter()
    _finish(place, steps)
    if files := place.undated_files():
        steps.do("dates", partial(find_dates, place, files))
    raw = place.raw()
    if names := place.look(as_of, steps.do("look", place.champion)).build:
        steps.do("build", partial(build, place, {name: raw[name] for name in names}))
    for name in place.built():
        if not place.note("checks", name).exists():
            steps.do("check", partial(check_partition, place, name))
    champion = steps.do("look", place.champion)
    todo = place.look(as_of, champion)
    if todo.test is None:
        return _nothing(place, as_of, champion)
    if place.note("verdicts", todo.test).exists():
        return _done_before(place, todo.test)
    candidate = Candidate(place, todo, todo.test, champion, settings)
    window = steps.do("window", candidate.join)
    steps.do("train", candidate.train)
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
    write_json(place.note("verdicts", todo.test), summary)
    summary = steps.do("promote", partial(carry_out, place, summary))
    head = f"{todo.test}: version {version} {word}, trained on {', '.join(todo.train)}"
    return summary, f"{found.table()}\n{head}, {summary['seconds']:.0f} s"


def _finish(place: RetrainFolder, steps: Steps) -> None:
    """Remove what a killed retraining left, and carry out what it had decided."""
    for leftover in [*place.root.glob("windows/.*"), *place.root.glob("runs/*/.artifact.*.tmp")]:
        shutil.rmtree(leftover)
    for path in sorted(place.root.glob("verdicts/*.json")):
        verdict = json.loads(path.read_text(encoding="utf-8"))
        if not verdict["is_done"]:
            steps.do("promote", partial(carry_out, place, verdict))


def _done_before(place: RetrainFolder, day: str) -> Ended:
    """What was said then is said again: the retraining may have been killed before it could tell."""
    return json.loads(place.note("verdicts", day).read_text(encoding="utf-8")), f"{day}: done before"


def _nothing(place: RetrainFolder, as_of: str | None, champion: ModelVersion | None) -> Ended:
    serving, stopped = champion and champion.version, place.stopped()
    built = place.built()
    newest = max((name for name in built if as_of is None or date_of(name) <= as_of), default=None)
    if newest and newest == max(built) and place.note("verdicts", newest).exists():
        return _done_before(place, newest)
    if newest in stopped:
        summary = {"day": newest, "verdict": "stopped", "stopped_by": "data checks", "champion_version": serving}
        return summary, f"{newest} is not trained on: {place.note('checks', newest)} says why"
    summary = {"day": newest, "verdict": "nothing", "stopped_by": None, "champion_version": serving}
    return summary, "nothing is new: there is no day before the newest one that the champion has not seen"


def _failure(place: RetrainFolder, step: str, error: Exception) -> dict[str, Any]:
    try:
        champion = place.champion()
    except RegistryError:
        champion = None
    return {
        "day": max(place.built(), default=None),
        "verdict": "failed",
        "stopped_by": step,
        "step": step,
        "error": f"{error}" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}",
        "champion_version": champion and champion.version,
    }


def _left_out(place: RetrainFolder) -> dict[str, Any]:
    """Rows of the log that are in no partition: those that came late, and those without a readable time."""
    late = {name: {"files": len(part.files), "rows": part.num_rows} for name, part in place.late().items()}
    left_out = {"late": late, "changed": place.changed(), "undated_rows": place.dates.num_undated()}
    return {name: found for name, found in left_out.items() if found}


def _warnings(left_out: dict[str, Any]) -> list[str]:
    """The same for a person."""
    lines = []
    for name, late in left_out.get("late", {}).items():
        rows = "" if late["rows"] is None else f" with {late['rows']:,} rows"
        lines.append(f"warning: {date_of(name)}: {late['files']} files{rows} came late and are left out (retrain.late)")
    for name, more in left_out.get("changed", {}).items():
        lines.append(f"warning: {name}: its raw files have changed by {more:+,} rows since it was built")
    if undated := left_out.get("undated_rows"):
        lines.append(f"warning: {undated:,} rows have no readable time and are in no partition")
    return lines


def _end(place: RetrainFolder, summary: dict[str, Any]) -> None:
    """Leave the summary for the scheduler, and tell whoever wants to know, of what was so before only once."""
    path = place.root / "last.json"
    is_news = not path.exists() or json.loads(path.read_text(encoding="utf-8")) != summary
    try:
        write_json(path, summary)
    finally:
        if is_news or summary["verdict"] == "failed":
            alert(summary, place.rules.alert_on)


def _describe(place: RetrainFolder, as_of: str | None) -> str:
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


if __name__ == "__main__":
    run_program(main)
