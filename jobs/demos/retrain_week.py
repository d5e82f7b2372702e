"""RetrainDemo: nine simulated days of retraining with a drifting log, broken data, and a candidate that is worse.

One day is broken, one grows after it was built, and one cannot be read.

Every day its files are delivered and ``jobs.retrain`` is started, as a scheduler would start it. After the first
promotion ``jobs.serve`` serves the champion and a client sends it requests all the time.
"""

import contextlib
import csv
import gzip
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from features.disk.atomic import write_json
from features.disk.dataset import DatasetManifest
from features.disk.retrain_folder import RetrainFiles
from jobs.cli.child_process import ending_with_us
from jobs.cli.config import load_config
from jobs.cli.config_arguments import hand_on
from jobs.cli.text_table import text_table
from jobs.demos.demo_client import PICKED_UP_SECONDS, DemoClient, find_wrong, with_histories
from jobs.registry.registry import Registry
from training.judge.metrics import METRICS
from training.ship.predict import Predictor

CONFIGS = ("jobs/configs/demo.toml", "jobs/configs/retrain/demo.toml")
DRIFT = 0.1
FIRST_DAY = "2024-01-01"
"""First day, delivered before the first retraining."""
MODEL = "ctr"
NUM_ASKED_ROWS = 3
START_SECONDS = 180.0
"""Seconds within which the server must be ready."""
EMPTIED = "country"
"""Column that has no values on the broken day."""


Delivered = Literal["whole", "broken", "half", "cut"]


@dataclass(frozen=True)
class Day:
    """Day: one simulated day and its expected outcome.

    Attributes:
        verdict: expected verdict of the retraining.
        champion: version that serves at the end of the day.
        stopped_by: expected ``stopped_by``.
        settings: config overrides of the day.
        delivery: what arrives: the day's files; broken ones, with three times the clicks and a column without values;
            half of their rows, the rest with the next day; or files that are cut and cannot be read.
    """

    date: str
    verdict: str
    champion: int
    stopped_by: str | None = None
    settings: tuple[str, ...] = ()
    delivery: Delivered = "whole"


HEADINGS = ("day", "verdict", "by", "champion", "auc", "logloss", "seconds")
MISTAKE = ("training.optimizer.embedding_learning_rate=10", "training.optimizer.learning_rate=0.1")
"""Overrides of the bad candidate: both learning rates a hundred times too large."""

PLAY = (
    Day("2024-01-02", "promoted", 1),
    Day("2024-01-03", "promoted", 2),
    Day("2024-01-04", "stopped", 2, "data checks", delivery="broken"),
    Day("2024-01-05", "promoted", 3),
    Day("2024-01-06", "refused", 3, "gate", settings=MISTAKE),
    Day("2024-01-07", "promoted", 5),
    Day("2024-01-08", "promoted", 6),
    Day("2024-01-09", "promoted", 7, delivery="half"),
    Day("2024-01-10", "stopped", 7, "unreadable", delivery="cut"),
)


@dataclass(frozen=True)
class RetrainDemo:
    """RetrainDemo: the simulated days in one folder."""

    folder: Path
    rows: int

    @property
    def root(self) -> Path:
        """Folder of the retraining."""
        return self.folder / "retrain"

    @property
    def configs(self) -> Path:
        """Folder of the resolved configs: one for each day, and ``play`` without overrides."""
        return self.folder / "configs"

    def run(self) -> list[str]:
        """Simulate the days; return the deviations from the expected outcomes."""
        self._clear()
        self._resolve()
        self._generate()
        self._deliver(FIRST_DAY)
        summary: list[dict[str, Any]] = []
        print(line(HEADINGS), flush=True)
        with contextlib.ExitStack() as stack:
            client, half = None, None
            for day in PLAY:
                if half is not None:
                    self._deliver(half)  # the rest of it comes a day late
                half = day.date if day.delivery == "half" else None
                self._deliver(day.date, day.delivery)
                summary.append(self._retrain(day))
                write_json(self.folder / "summary.json", summary)
                champion = summary[-1]["champion_version"]
                if champion is None:
                    continue
                client = client or stack.enter_context(self._served())
                if not client.saw(champion):
                    print(f"version {champion} does not answer after {PICKED_UP_SECONDS:.0f} s", flush=True)
        return [
            *compare_days(summary),
            *self._built_wrong(),
            *self._histories_wrong(client),
            *self._served_wrong(client),
            *self._shown_wrong(summary),
        ]

    def _clear(self) -> None:
        """Remove an older demo; refuse any other folder."""
        if self.folder.exists() and not self.root.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} exists and is no retraining demo: choose another --run")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.root.mkdir(parents=True)

    def _resolve(self) -> None:
        """Write the config of every day in advance, so that an edit of a config file has no effect meanwhile."""
        settings = [f"retrain.root={self.root}", f"retrain.partitions={self.folder}/logs/day={{date}}/*.csv.gz"]
        for name, more in {"play": (), **{day.date: day.settings for day in PLAY}}.items():
            hand_on(load_config(list(CONFIGS), [*settings, *more]), self.configs / f"{name}.json")

    def _resolved(self, name: str) -> tuple[str, str]:
        return "--resolved", str(self.configs / f"{name}.json")

    def _generate(self) -> None:
        num_days = len(PLAY) + 1
        more = ["--output", str(self.folder / "generated"), "--rows", str(self.rows * num_days), "--days"]
        self._call("generate_logs", "generate", *more, str(num_days), "--drift", str(DRIFT))

    def _deliver(self, date: str, delivery: Delivered = "whole") -> None:
        """Copy a day's generated files into the log; generated days are numbered from 01."""
        target = self.folder / "logs" / f"day={date}"
        target.mkdir(parents=True, exist_ok=True)
        acts = {"whole": shutil.copyfile, "broken": break_log, "half": halve_log, "cut": cut_log}
        for source in sorted((self.folder / "generated").glob(f"day-{date[-2:]}-part-*.csv.gz")):
            acts[delivery](source, target / source.name)

    def _built_wrong(self) -> list[str]:
        """List the days that have not all of their rows, though these came late, or that were built and cannot be."""
        files, wrong = RetrainFiles(self.root), []
        for day in PLAY:
            name = day.date.replace("-", "")
            if day.delivery == "half":
                rows = DatasetManifest.load(files.partition(name)).num_input_rows
                wrong += [] if rows == self.rows else [f"{day.date} has {rows:,} rows, and grew to {self.rows:,}"]
            if day.delivery == "cut" and name in files.built():
                wrong.append(f"{day.date} was built of files that are cut")
        return wrong

    def _retrain(self, day: Day) -> dict[str, Any]:
        started = time.perf_counter()
        self._call("retrain", day.date, *self._resolved(day.date), "--as-of", day.date)
        last = RetrainFiles(self.root).read(RetrainFiles(self.root).last_file)
        keys = ("verdict", "stopped_by", "champion_version", "auc", "logloss")
        found = {"day": day.date, **{key: last.get(key) for key in keys}}
        print(line([*describe_day(found), f"{time.perf_counter() - started:.0f}"]), flush=True)
        return found

    @contextlib.contextmanager
    def _served(self) -> Iterator[DemoClient]:
        """Start a server of the champion and yield a client that sends it requests all the time."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        more = [
            "--model",
            f"models:/{MODEL}@champion",
            "--registry",
            str(RetrainFiles(self.root).registry_folder),
            "--port",
            str(port),
        ]
        path = self.folder / "output" / "serve.txt"
        with path.open("w", encoding="utf-8") as output:
            server = subprocess.Popen(  # noqa: S603
                [sys.executable, "-m", "jobs.serve", *more],
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=ending_with_us(signal.SIGTERM),
            )
            client = DemoClient(f"http://127.0.0.1:{port}", self._asked_rows())
            try:
                deadline = time.monotonic() + START_SECONDS
                while not client.is_ready():
                    if server.poll() is not None or time.monotonic() > deadline:
                        raise ValueError(f"jobs.serve does not come up: {path} says why")
                    time.sleep(1)
                client.start()
                yield client
                client.stop()
            finally:
                server.terminate()
                server.wait()

    def _asked_rows(self) -> list[dict[str, Any]]:
        """Read the first raw rows of the second day whose users clicked on the first, and give them their histories."""
        log = self._raw_rows(FIRST_DAY)
        clicked = {row["user_id"] for row in log if row["click"] == "1"}
        rows = [row for row in self._raw_rows(PLAY[0].date) if row["user_id"] in clicked][:NUM_ASKED_ROWS]
        return with_histories(rows, log, load_config(list(CONFIGS)).features)

    def _raw_rows(self, date: str) -> list[dict[str, str]]:
        rows: list[dict[str, str]] = []
        for path in sorted((self.folder / "logs" / f"day={date}").glob("*.csv.gz")):
            with gzip.open(path, "rt", newline="") as log:
                rows += csv.DictReader(log)
        return rows

    def _histories_wrong(self, client: DemoClient | None) -> list[str]:
        """Hold the histories that the client sends against those that the first day's build left for later rows."""
        dataset, wrong = RetrainFiles(self.root).partition(FIRST_DAY.replace("-", "")), []
        for number, row in enumerate([] if client is None else client.rows):
            user, clicks = row["user_id"], len(row["clicks__time"])
            asked = ["--dataset", str(dataset), "--user", user, "--time", row["timestamp"]]
            shown = self._call("history", f"row-{number}", *asked)
            if f"clicks: {clicks} events of user_id {user!r}" not in shown:
                wrong.append(f"{user} was sent with {clicks} clicks, other than {dataset} has of him")
            elif not number:
                print(shown[shown.index("clicks:") :].rstrip(), flush=True)
        return wrong

    def _served_wrong(self, client: DemoClient | None) -> list[str]:
        """Check the client's answers by the registry's promotions and the champions' artifacts; list what is wrong."""
        if client is None:
            return ["nothing was ever served"]
        registry = Registry.open(None, RetrainFiles(self.root).registry_folder, must_exist=True)
        promoted = [(found.version, datetime.fromisoformat(found.at).timestamp()) for found in registry.history(MODEL)]
        expected = {
            version: Predictor.load(registry.fetch(f"models:/{MODEL}/{version}")).predict(client.rows).tolist()
            for version, _ in promoted
        }
        answers = [asdict(answer) for answer in client.answers]
        (self.folder / "answers.jsonl").write_text("".join(f"{json.dumps(a)}\n" for a in answers), encoding="utf-8")
        print(client.describe())
        return find_wrong(client.answers, promoted, expected)

    def _shown_wrong(self, summary: Sequence[Mapping[str, Any]]) -> list[str]:
        """Make the status page; list the days whose outcome it does not show."""
        page = self.folder / "status.html"
        output = self._call("status", "page", *self._resolved("play"), "--json", "--output", str(page))
        status = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        shown = {run["day"]: run for run in status["retrainings"]}
        wrong = [] if page.exists() else [f"{page} is not there"]
        for found in summary:
            on_page = shown.get(found["day"].replace("-", ""), {})
            if any(on_page.get(key) != found[key] for key in ("verdict", "stopped_by", "auc")):
                wrong.append(f"the page does not show that {found['day']} was {found['verdict']}")
        return wrong

    def _call(self, program: str, title: str, *arguments: str) -> str:
        """Run a program of the project with its output in a file; return the output.

        Raises:
            ValueError: it failed; names the file.
        """
        path = self.folder / "output" / f"{program}-{title}.txt"
        path.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-m", f"jobs.{program}", *arguments]
        with path.open("w", encoding="utf-8") as output:
            output.write(f"$ {' '.join(command)}\n")
            output.flush()
            done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)  # noqa: S603
        if done.returncode:
            raise ValueError(f"jobs.{program} failed with exit code {done.returncode}: {path} says why")
        return path.read_text(encoding="utf-8")


def break_log(source: Path, target: Path) -> None:
    """Copy a raw log and break it: about three times the clicks, and no value in column ``EMPTIED``."""
    rng = random.Random(0)  # nosec B311
    with gzip.open(source, "rt", newline="") as log:
        rows = list(csv.DictReader(log))
    rate = sum(row["click"] == "1" for row in rows) / len(rows)
    added = min(1.0, 2 * rate / (1 - rate))
    with gzip.open(target, "wt", newline="") as log:
        writer = csv.DictWriter(log, rows[0], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            click = "1" if row["click"] == "1" or rng.random() < added else "0"
            writer.writerow({**row, "click": click, EMPTIED: ""})


def halve_log(source: Path, target: Path) -> None:
    """Copy the first half of a raw log's rows, as if its writer were not done."""
    with gzip.open(source, "rt") as log:
        header, *rows = log.readlines()
    with gzip.open(target, "wt") as log:
        log.writelines([header, *rows[: len(rows) // 2]])


def cut_log(source: Path, target: Path) -> None:
    """Copy the first half of a packed file's bytes, as if its copy had been cut off."""
    packed = source.read_bytes()
    target.write_bytes(packed[: len(packed) // 2])


def describe_day(found: Mapping[str, Any]) -> list[str]:
    """Describe the outcome of a day in the cells under ``HEADINGS``, but its seconds."""
    scores = ["-" if found[name] is None else METRICS[name].text(found[name]) for name in ("auc", "logloss")]
    return [found["day"], found["verdict"], found["stopped_by"] or "", str(found["champion_version"] or "-"), *scores]


def line(cells: Sequence[str]) -> str:
    """Lay out one line of the table of days, which is printed as the week goes on."""
    return text_table([cells], align="<<<>", least=11)


def compare_days(summary: Sequence[Mapping[str, Any]], play: Sequence[Day] = PLAY) -> list[str]:
    """List the differences between the expected outcomes of the days and theirs."""
    wrong = []
    for day, found in zip(play, summary, strict=True):
        wanted = {
            "day": day.date,
            "verdict": day.verdict,
            "stopped_by": day.stopped_by,
            "champion_version": day.champion,
        }
        wrong += [
            f"{day.date}: {name} is {found[name]}, not {value}"
            for name, value in wanted.items()
            if found[name] != value
        ]
    return wrong
