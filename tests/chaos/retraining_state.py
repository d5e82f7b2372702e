"""Retraining and Program: a folder of retraining at work, and the ``jobs.retrain`` processes that are disturbed in it.

Four days of a log. A retraining as of the second has made a champion; one as of the fourth, to which nothing happened,
is what every case must come to in the end: the same partitions, the same champion's weights, the same verdict. All
states of a seed have one path, a link, as paths are part of what is kept.
"""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil

from jobs.registry.registry import Registry
from tests.chaos.data import count_rows, expect
from tests.chaos.outcome import Outcome, Unexpected
from tests.chaos.retrain import CLOCK, STAND, STANDING

ROOT = Path(__file__).parents[2]
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03", "2024-01-04")
NUM_ROWS = 600
CONFIG = """
[features]
label = "click"
carry = ["row"]
[[features.sparse]]
name = "user"
encoding = {{ kind = "hash", num_buckets = 200 }}
[[features.sparse]]
name = "device"
encoding = {{ kind = "vocabulary" }}
[pipeline]
output = "unused"
spark.master = "local[2]"
spark.driver_memory = "1g"
write.min_files = 2
[training]
from_data = []
dataset = "unused"
seed = {seed}
max_epochs = 1
global_batch_size = 32
evaluation_batch_size = 512
checkpoint.every_steps = 10
reader.num_streams = 2
optimizer.embedding_learning_rate = 0.1
[training.model]
embedding_dim = 4
easy = {{ kind = "mlp", hidden_units = [8], dropout = 0.0 }}
hard = {{ kind = "mlp", hidden_units = [8], dropout = 0.0 }}
[retrain]
root = "{folder}/root"
partitions = "{folder}/logs/day={{date}}/*.csv"
retries = 0
[retrain.gate]
max_auc_drop = 1
max_logloss_rise = 1
max_ne = 9
min_calibration = 0
max_calibration = 9
max_score_psi = 9
num_resamples = 10
"""
END_SECONDS = 600.0


class Program:
    """A ``jobs.retrain`` process, which may stand at a step."""

    started: ClassVar[list["Program"]] = []

    def __init__(self, arguments: list[str], log: Path, stand: str | None, environment: Mapping[str, str]) -> None:
        self.log, self.sign, self.stand = log, log.with_suffix(".stands"), stand
        settings = {STANDING: str(self.sign), **({STAND: stand} if stand else {}), **environment}
        with log.open("w", encoding="utf-8") as output:
            command = [sys.executable, "-m", "tests.chaos.retrain", *arguments]
            self.process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **settings}, stdout=output, stderr=subprocess.STDOUT
            )
        Program.started.append(self)

    def wait_until_it_stands(self) -> None:
        """
        Raises:
            Unexpected: it ends before, or does not get there.
        """
        deadline = time.monotonic() + END_SECONDS
        while not self.sign.exists():
            expect(
                self.process.poll() is None, f"ended with {self.process.returncode} before {self.stand}: {self.said()}"
            )
            expect(time.monotonic() < deadline, f"did not come to {self.stand}: {self.said()}")
            time.sleep(0.02)

    def go_on(self) -> None:
        self.sign.unlink()

    def kill(self) -> None:
        """kill -9 of the program alone, if it is not done; the programs that it started must not outlive it."""
        if self.process.poll() is not None:
            return self.expect(0)
        children = [child for child in psutil.Process(self.process.pid).children() if "java" not in child.name()]
        self.process.kill()
        self.process.wait()
        self.sign.unlink(missing_ok=True)
        _, alive = psutil.wait_procs(children, timeout=5)
        expect(not alive, f"{alive} outlive the program")

    def expect(self, code: int, *words: str) -> None:
        """Wait for the end.

        Raises:
            Unexpected: it ends with another exit code, or its words are others, or it does not end.
        """
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise Unexpected(f"no end within {END_SECONDS:.0f} s: {self.said()}") from None
        expect(self.process.returncode == code, f"ended with {self.process.returncode}, not {code}: {self.said()}")
        for word in words:
            expect(word in self.log.read_text(encoding="utf-8"), f"does not say {word!r}: {self.said()}")

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")[-2_000:]

    @classmethod
    def end_all(cls) -> None:
        for program in cls.started:
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*psutil.Process(program.process.pid).children(recursive=True), program.process]:
                    process.kill()
            program.process.wait()
        cls.started.clear()


class Retraining:
    """One state of a seed's retraining, at the one path that all have.

    Attributes:
        home: of the seed; ``root`` in it leads to the state that is at work.
        state: this state's folder.
        logs: folder for what the programs say.
    """

    def __init__(self, home: Path, state: Path, logs: Path) -> None:
        self.home, self.state, self.logs = home, state, logs
        self.num_starts = 0
        link = home / "root"
        link.unlink(missing_ok=True)
        link.symlink_to(state)

    @classmethod
    def begin(cls, folder: Path, seed: int, kind: str, disk: Path | None = None) -> "Retraining":
        """A copy of one of the seed's states, ``base`` or ``trained``, in a case's folder or on a disk of its own."""
        home, state = _states(folder.parents[1] / "retraining" / f"seed={seed}", seed), (disk or folder) / "root"
        shutil.copytree(home / kind, state)
        return cls(home, state, folder)

    def start(self, day: str = DAYS[-1], *more: str, stand: str | None = None, clock: float = 0.0) -> Program:
        self.num_starts += 1
        arguments = ["--config", str(self.home / "config.toml"), "--as-of", day, *more]
        log = self.logs / f"{self.state.name}-{self.num_starts}.log"
        return Program(arguments, log, stand, {CLOCK: str(clock)})

    def registry(self) -> Registry:
        """By the state's own path: MLflow keeps a connection to what it has once opened under a path."""
        return Registry.open(None, self.state / "registry")

    def champion(self) -> int:
        """The version that serves; its artifact is whole."""
        registry = self.registry()
        registry.fetch("models:/ctr@champion")  # which checks its files
        return registry.find("ctr").version

    def expect_the_old(self) -> None:
        """The champion is what it was before."""
        expect(self.champion() == 1, f"version {self.champion()} is champion")

    def last(self) -> dict[str, Any]:
        return json.loads((self.state / "last.json").read_text(encoding="utf-8"))

    def heal(self) -> Outcome:
        """The next run just works, the one after it has nothing to do, and all is as if nothing had happened."""
        self.start().expect(0)
        return self.outcome()

    def outcome(self) -> Outcome:
        """
        Raises:
            Unexpected: the verdict or the registry is another than that of an undisturbed retraining.
        """
        reference = self.home / "reference"
        ours, theirs = self._verdict(self.state), self._verdict(reference)
        differ = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        expect(not differ, f"the verdict is another in {', '.join(differ)}")
        expect({**self.last(), "seconds": 0} == ours, "last.json does not say so")
        registry = self.registry()
        versions = [version.version for version in registry.list("ctr")]
        expect((versions, self.champion()) == ([2, 1], 2), f"versions {versions}, champion {self.champion()}")
        promoted = [promotion.version for promotion in registry.history("ctr") if not promotion.undone]
        expect(promoted == [1, 2], f"promotions {promoted}")
        lost = doubled = 0
        for day in DAYS:
            log = self.home / "logs" / f"day={day}" / "part.csv"
            counts = count_rows(self.state / "partitions" / day.replace("-", ""), log)
            lost, doubled = lost + counts[0], doubled + counts[1]
        weights = registry.fetch("models:/ctr@champion") / "weights.safetensors"
        same = weights.read_bytes() == (reference / "runs" / "20240104" / "artifact" / weights.name).read_bytes()
        return Outcome(lost, doubled, same)

    def _verdict(self, state: Path) -> dict[str, Any]:
        """Of the last day, but for the time that it took."""
        verdict = json.loads((state / "verdicts" / "20240104.json").read_text(encoding="utf-8"))
        return {**verdict, "seconds": 0}


def _states(home: Path, seed: int) -> Path:
    """The log of a seed, and the states that nothing happened to: ``base``, ``trained``, ``reference``."""
    if (home / "trained").exists():
        return home
    shutil.rmtree(home, ignore_errors=True)  # of a case that did not get this far
    for day in DAYS:
        _write_day(home / "logs" / f"day={day}" / "part.csv", random.Random(f"{seed} {day}"))
    (home / "config.toml").write_text(CONFIG.format(folder=home, seed=seed), encoding="utf-8")
    (home / "base").mkdir()
    Retraining(home, home / "base", home).start(DAYS[1]).expect(0, "version 1 promoted, trained on 20240101")
    shutil.copytree(home / "base", home / "reference")
    program = Retraining(home, home / "reference", home).start(stand="judge")
    program.wait_until_it_stands()
    shutil.copytree(home / "reference", home / "before")
    program.go_on()
    program.expect(0, "version 2 promoted, trained on 20240102, 20240103")
    (home / "before").rename(home / "trained")
    return home


def _write_day(path: Path, rng: random.Random) -> None:
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="utf-8") as file:
        file.write("row,user,device,click\n")
        for row in range(NUM_ROWS):
            user, device = rng.randrange(150), ("phone", "tv")[row % 2]
            rate = (0.5 if user % 2 else 0.1) * (1.2 if device == "tv" else 1.0)
            file.write(f"{path.parent.name}-{row},u{user},{device},{int(rng.random() < rate)}\n")
