"""Training and Driver: a run folder, and the ``jobs.train`` processes that train in it and are watched and counted."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import psutil

from tests.chaos.data import expect
from tests.chaos.ledger import LEDGER, PAUSE, rows_of, steps_done
from tests.chaos.outcome import Outcome, Unexpected
from tests.stand_ins.tiny_dataset import TINY_SEQUENCES, tiny_sequences, write_tiny_dataset

ROOT = Path(__file__).parents[2]
TRAIN_ROWS, EPOCHS, EPOCH_STEPS, SAVE_STEPS = 1_600, 2, 50, 20
CONFIG = """
[pipeline]
output = "unused"
[training]
from_data = []
dataset = "{dataset}"
seed = {seed}
num_workers = 2
threads_per_worker = 1
max_epochs = 2
global_batch_size = 32
evaluation_batch_size = 256
reader.num_streams = 4
checkpoint.every_steps = 20
optimizer.embedding_learning_rate = 0.05
optimizer.epsilon = 1e-4
clip_gradient_norm = 0.1
sharding.features = {{ user = "row_wise" }}
[training.model]
embedding_dim = 8
easy = {{ kind = "mlp", hidden_units = [8], dropout = 0.0 }}
hard = {{ kind = "mlp", hidden_units = [16, 8], dropout = 0.0 }}
sequences.clicks = {{ kind = "din", hidden_units = [8] }}
sequences.views = {{ kind = "sdim", num_hashes = 8, bits = 2, short = {{ kind = "transformer", length = 4 }} }}
"""
"""No dropout: its masks are a rank's own, and so others at another world size.

And nothing that makes much of rounding, which is another at another world size too: Adam's default epsilon scales the
gradient of a bias before a batch norm, which is nothing but rounding, to full steps. Clipping needs all ranks.
"""
TOLERANCE = 1e-5
"""Of a weight, where a part of the run was at another world size; the run moves weights by 0.1."""
END_SECONDS, STEP_PAUSE = 300.0, 0.03


class Training:
    """One run folder and the programs that train in it."""

    def __init__(self, folder: Path, seed: int, path: Path | None = None) -> None:
        self.folder, self.path = folder, path or folder / "run"
        self.ledger, self.config = folder / "ledger", _config(folder, seed)
        self.half_checkpoint = self.path / "checkpoints" / f".step={2 * SAVE_STEPS:09d}.tmp"
        self.num_starts = 0

    def start(self, *more: str, environment: Mapping[str, str] | None = None) -> "Driver":
        self.num_starts += 1
        arguments = ["--config", str(self.config), "--run", str(self.path), *more]
        settings = {LEDGER: str(self.ledger), PAUSE: str(STEP_PAUSE), **(environment or {})}
        return Driver(arguments, settings, self.folder / f"{self.num_starts}.log", self.ledger)

    def resume(self, *more: str) -> None:
        """Go on to the end.

        Raises:
            Unexpected: it does not just work.
        """
        self.start("--resume", *more, environment={PAUSE: "0"}).expect(0)

    def saved_steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step=")) for path in (self.path / "checkpoints").glob("step=*"))

    def outcome(self, reference: "Training", tolerance: float = 0.0) -> Outcome:
        """Compare the newest checkpoint with what it should hold.

        Args:
            reference: trained in the same way without a disturbance.
            tolerance: of each weight, absolute and relative; 0: they must be the same numbers.

        Raises:
            Unexpected: the run's own account of its rows and steps is another one.
        """
        metrics = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))["train"]
        expect(metrics["rows"] == EPOCHS * TRAIN_ROWS, f"metrics.json counts {metrics['rows']} rows")
        expect(self.saved_steps()[-1] == metrics["steps"] == EPOCHS * EPOCH_STEPS, "not all steps were done")
        counts = rows_of(self.ledger, EPOCHS * EPOCH_STEPS)
        expect(set(counts) <= set(range(TRAIN_ROWS)), "there are rows from nowhere")
        surplus = [counts[row] - EPOCHS for row in range(TRAIN_ROWS)]
        return Outcome(
            rows_lost=sum(max(0, -number) for number in surplus),
            rows_doubled=sum(max(0, number) for number in surplus),
            weights_equal=self.equals(reference, tolerance),
        )

    def equals(self, other: "Training", tolerance: float) -> bool:
        """Whether the weights of both runs' newest checkpoints are the same; see ``outcome``."""
        import torch

        ours, theirs = self._weights(), other._weights()
        return ours.keys() == theirs.keys() and all(
            torch.allclose(ours[name], theirs[name], rtol=tolerance, atol=tolerance) for name in theirs
        )

    def _weights(self) -> dict[str, Any]:
        import torch

        from jobs.cli.config import parse_config
        from training.data.opened_dataset import Dataset
        from training.fit.run import Run, build_model
        from training.sharding import checkpoint

        run = Run(self.path)
        config = parse_config(run.read("config.json")).training
        model = build_model(Dataset.open(config.dataset), config, torch.device("cpu"))
        found = checkpoint.newest(run.checkpoints)
        assert found is not None
        checkpoint.restore_model(found, model)
        return model.state_dict()


class Driver:
    """A ``jobs.train`` process."""

    started: ClassVar[list["Driver"]] = []

    def __init__(self, arguments: list[str], settings: Mapping[str, str], log: Path, ledger: Path) -> None:
        self.log, self.ledger = log, ledger
        with log.open("w", encoding="utf-8") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.train", *arguments],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.started.append(self)

    @classmethod
    def end_all(cls) -> None:
        """Kill what a case that failed has left running."""
        while cls.started:
            driver = cls.started.pop()
            if driver.process.poll() is None:
                driver.kill_all()

    def wait_for_step(self, step: int) -> None:
        """Wait until the newest group of workers has begun so many steps; raises as ``wait_for``."""
        self.wait_for(lambda: steps_done(self.ledger) >= step, f"step {step}")

    def wait_for(self, is_reached: Callable[[], bool], what: str) -> None:
        """Wait until something is so, while the program runs.

        Raises:
            Unexpected: the program ends first, or it takes too long.
        """
        deadline = time.monotonic() + END_SECONDS
        while not is_reached():
            expect(self.process.poll() is None, f"ended with {self.process.poll()} before {what}: {self.said()}")
            self._check_time(deadline, f"no {what}")
            time.sleep(0.01)

    def expect(self, code: int, *words: str) -> None:
        """Wait for the end.

        Raises:
            Unexpected: it ends with another exit code, or its words are others, or it does not end.
        """
        deadline = time.monotonic() + END_SECONDS
        while self.process.poll() is None:
            self._check_time(deadline, "no end")
            time.sleep(0.05)
        said = self.said()
        expect(self.process.returncode == code, f"ended with {self.process.returncode}, not {code}: {said}")
        for word in words:
            expect(word in self.log.read_text(encoding="utf-8"), f"does not say {word!r}: {said}")

    def _check_time(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            self.kill_all()
            raise Unexpected(f"{what} within {END_SECONDS:.0f} s: {self.said()}")

    def said(self) -> str:
        """Its last words."""
        return self.log.read_text(encoding="utf-8")[-2_000:]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def workers(self) -> list[psutil.Process]:
        """The two Ray Train workers, in any order."""
        found = [process for process in self.children() if is_worker(process)]
        expect(len(found) == 2, f"{len(found)} workers instead of 2")
        return found

    def node(self) -> psutil.Process:
        (found,) = [process for process in self.children() if process.name() == "raylet"]
        return found

    def kill_all(self) -> None:
        for process in [*self.children(), self.process]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


def is_worker(process: psutil.Process) -> bool:
    try:
        return any("RayTrainWorker" in word for word in process.cmdline())
    except psutil.NoSuchProcess:  # also a zombie
        return False


def _config(folder: Path, seed: int) -> Path:
    """The config of a seed over the dataset of a seed, for all cases."""
    shared = folder.parents[1] / "datasets"
    dataset, path = shared / f"seed={seed}", shared / f"seed={seed}.toml"
    if not path.exists():
        schema = tiny_sequences()
        write_tiny_dataset(dataset, ((400,),) * 4, ((512,),), (), seed=seed, number_rows=True, schema=schema)
        path.write_text(TINY_SEQUENCES + CONFIG.format(dataset=dataset, seed=seed), encoding="utf-8")
    return path
