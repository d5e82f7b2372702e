"""What can happen to a training: ``jobs.train`` with two workers, disturbed, and compared with one that was not.

The data are small, so that most of a case's time is Ray's start, but every step is slowed down a little: what is done
to a run in the middle of an epoch or of a checkpoint is done there.
"""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from tests.chaos.data import MIB, expect, small_disk
from tests.chaos.driver import EPOCH_STEPS, EPOCHS, SAVE_STEPS, TOLERANCE, Driver, Training, is_worker
from tests.chaos.ledger import LEDGER, PAUSE, SLOW_SAVE, world_sizes
from tests.chaos.outcome import Outcome
from tests.stand_ins.running_cluster import running_cluster
from tests.stand_ins.tiny_dataset import tiny_sequences, write_tiny_dataset

SLOW = {SLOW_SAVE: str(2 * SAVE_STEPS)}
"""Settings with which the second checkpoint, in the first epoch, takes its time."""


def undisturbed(folder: Path, seed: int) -> Training:
    """A run to the end that nothing happens to; one a seed, for all cases."""
    shared = folder.parents[1] / "undisturbed" / f"seed={seed}"
    shared.mkdir(parents=True, exist_ok=True)
    training = Training(shared, seed)
    if not (training.path / "metrics.json").exists():
        training.start(environment={PAUSE: "0"}).expect(0)
    return training


def kill_worker(folder: Path, seed: int) -> Outcome:
    """kill -9 of one of the two, in the middle of an epoch: the run ends by itself."""
    training, rng = Training(folder, seed), random.Random(seed)
    driver = training.start()
    driver.wait_for_step(rng.randrange(SAVE_STEPS + 1, EPOCH_STEPS - 10))
    rng.choice(driver.workers()).kill()
    driver.expect(0)
    return training.outcome(undisturbed(folder, seed))


def kill_node(folder: Path, seed: int) -> Outcome:
    """kill -9 of Ray's node: the program ends and says how to go on."""
    training = Training(folder, seed)
    driver = training.start(environment={PAUSE: "0.5"})  # Ray's processes live on for some seconds
    driver.wait_for_step(SAVE_STEPS + 3 + seed % 10)
    driver.node().kill()
    driver.expect(1, "error: Ray ended under the training", "--resume goes on")
    training.resume()
    return training.outcome(undisturbed(folder, seed))


def kill_driver(folder: Path, seed: int) -> Outcome:
    """kill -9 of the program, in the middle of an epoch or of a checkpoint; another goes on at once.

    The workers of the first are still at work then.
    """
    training = Training(folder, seed)
    if seed % 2:
        driver = training.start(environment=SLOW)
        driver.wait_for(training.half_checkpoint.exists, "checkpoint")
    else:
        driver = training.start(environment={PAUSE: "0.2"})
        driver.wait_for_step(SAVE_STEPS + 5)
    orphans = driver.workers()
    driver.process.kill()
    driver.process.wait()
    expect(any(is_worker(worker) for worker in orphans), "no worker outlives the program: nothing is tested")
    training.resume()
    expect(not any(is_worker(worker) for worker in orphans), "workers of the killed program are still there")
    return training.outcome(undisturbed(folder, seed))


def terminate_in_checkpoint(folder: Path, seed: int) -> Outcome:
    """SIGTERM to the program in the middle of a checkpoint, which is then none."""
    training = Training(folder, seed)
    driver = training.start(environment=SLOW)
    driver.wait_for(training.half_checkpoint.exists, "checkpoint")
    time.sleep(0.5 * (seed % 3))
    workers = driver.workers()
    driver.process.terminate()
    driver.expect(128 + signal.SIGTERM, "terminated: --resume goes on")
    expect(not any(is_worker(worker) for worker in workers), "workers outlive the program")
    expect(training.saved_steps() == [SAVE_STEPS], f"there are checkpoints of {training.saved_steps()}")
    training.resume()
    expect(not training.half_checkpoint.exists(), "half a checkpoint is left")
    return training.outcome(undisturbed(folder, seed))


def fill_disk(folder: Path, seed: int) -> Outcome:
    """The disk is full when a checkpoint is written: a word, and the checkpoint before is what it was."""
    with small_disk(folder / "disk", 64 * MIB) as disk:
        training = Training(folder, seed, disk / "run")
        driver = training.start()
        driver.wait_for_step(SAVE_STEPS + 2)
        before = _contents(training.path / "checkpoints")
        size = shutil.disk_usage(disk).used + random.Random(seed).choice((0, 16_384, 65_536))
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
        driver.expect(1, "error: ", "No space left on device", "make room", "--resume")
        expect(_contents(training.path / "checkpoints") == before, "checkpoints have changed")
        subprocess.run(["mount", "-o", f"remount,size={64 * MIB}", disk], check=True)
        training.resume()
        return training.outcome(undisturbed(folder, seed))


def hang_worker(folder: Path, seed: int) -> Outcome:
    """One of two workers stands still (SIGSTOP): it is noticed, and the run ends by itself."""
    training, rng = Training(folder, seed), random.Random(seed)
    driver = training.start("training.stall_seconds=20")
    driver.wait_for_step(SAVE_STEPS + 5)
    worker = rng.choice(driver.workers())
    worker.suspend()
    driver.expect(0)
    expect(not is_worker(worker), "the worker is still there")
    return training.outcome(undisturbed(folder, seed))


def train_twice_at_once(folder: Path, seed: int) -> Outcome:
    """Another training on a run that is being trained is refused, and the first takes no notice."""
    training = Training(folder, seed)
    driver = training.start(environment={PAUSE: "0.2"})
    driver.wait_for_step(5)
    for more in ((), ("--resume",)):
        training.start(*more).expect(1, "error: another training is using", "choose another --run")
    expect(driver.process.poll() is None, "the first training was over too early")
    driver.expect(0)
    return training.outcome(undisturbed(folder, seed))


def change_world_size(folder: Path, seed: int) -> Outcome:
    """A run goes on from the middle of an epoch with one worker instead of two, or with two instead of one."""
    training, sizes = Training(folder, seed), (2, 1) if seed % 2 == 0 else (1, 2)
    driver = training.start(f"training.num_workers={sizes[0]}")
    driver.wait_for_step(SAVE_STEPS + 5)
    driver.process.terminate()
    driver.expect(128 + signal.SIGTERM)
    training.resume(f"training.num_workers={sizes[1]}")
    return training.outcome(undisturbed(folder, seed), TOLERANCE)


def lose_and_add_node(folder: Path, seed: int) -> Outcome:
    """An elastic training loses one of two nodes and goes on with one worker; the node comes back, and so do two."""
    training, slow = Training(folder, seed), {LEDGER: str(folder / "ledger"), PAUSE: "0.8"}
    with running_cluster(1, settings=slow) as cluster:
        cluster.add_node()
        elastic = ("training.num_workers=[1, 2]", "training.resize_seconds=5", "training.stall_seconds=60")
        ray = {**cluster.environment, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20"}
        driver = training.start(*elastic, environment=ray)
        driver.wait_for_step(SAVE_STEPS + 3 + seed % 5)
        expect(world_sizes(training.ledger) == [2], "did not begin with two workers")
        cluster.lose_node()
        driver.wait_for(lambda: world_sizes(training.ledger)[-1] == 1, "group of one worker")
        cluster.add_node()
        driver.wait_for(lambda: world_sizes(training.ledger)[-1] == 2, "group of two workers again")
        driver.expect(0)
    return training.outcome(undisturbed(folder, seed), TOLERANCE)


def change_schema(folder: Path, seed: int) -> Outcome:
    """A run does not go on on a dataset of another schema, and goes on on its own."""
    training = _unfinished(folder, seed)
    other, changed = folder / "other", folder / "other.toml"
    write_tiny_dataset(other, seed=seed, schema=replace(tiny_sequences(), weight=None))
    config = training.config.read_text(encoding="utf-8")
    changed.write_text(config.replace('weight = "importance"', ""), encoding="utf-8")
    dataset = f"training.dataset={other}"
    training.start("--resume", dataset).expect(1, "was built from another feature schema")
    own, training.config = training.config, changed
    training.start("--resume", dataset).expect(1, "was trained on another dataset")
    training.config = own
    training.resume()
    return training.outcome(undisturbed(folder, seed))


def meet_newer_format(folder: Path, seed: int) -> Outcome:
    """A checkpoint of a later version of the program is refused with a word on what to do, and that is done."""
    training = _unfinished(folder, seed)
    newest = training.path / "checkpoints" / f"step={training.saved_steps()[-1]:09d}"
    newer = newest.with_name(f"step={EPOCHS * EPOCH_STEPS:09d}")
    shutil.copytree(newest, newer)
    meta = json.loads((newer / "checkpoint.json").read_text(encoding="utf-8"))
    (newer / "checkpoint.json").write_text(json.dumps({**meta, "version": 2}), encoding="utf-8")
    training.start("--resume").expect(1, f"{newer} was made by a newer version", "delete the folder to go on")
    shutil.rmtree(newer)
    training.resume()
    return training.outcome(undisturbed(folder, seed))


def _unfinished(folder: Path, seed: int) -> Training:
    """A copy of an undisturbed run as it was before its last checkpoint."""
    done, training = undisturbed(folder, seed), Training(folder, seed)
    shutil.copytree(done.path, training.path)
    shutil.copytree(done.ledger, training.ledger)
    shutil.rmtree(training.path / "checkpoints" / f"step={EPOCHS * EPOCH_STEPS:09d}")
    return training


def _alone(case: Callable[[Path, int], Outcome], folder: Path, seed: int) -> Outcome:
    """The case, and nothing of it left running."""
    try:
        return case(folder, seed)
    finally:
        Driver.end_all()


def _contents(folder: Path) -> dict[str, bytes]:
    """Files of complete checkpoints."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("step=*/*")}


CASES: dict[str, Callable[[Path, int], Outcome]] = {
    "worker-killed": partial(_alone, kill_worker),
    "node-killed": partial(_alone, kill_node),
    "driver-killed": partial(_alone, kill_driver),
    "sigterm-in-checkpoint": partial(_alone, terminate_in_checkpoint),
    "disk-full-in-checkpoint": partial(_alone, fill_disk),
    "worker-hung": partial(_alone, hang_worker),
    "two-trainings": partial(_alone, train_twice_at_once),
    "other-world-size": partial(_alone, change_world_size),
    "node-lost-and-back": partial(_alone, lose_and_add_node),
    "other-schema": partial(_alone, change_schema),
    "newer-format": partial(_alone, meet_newer_format),
}
"""Name -> the case: does its damage in the given folder, with the given seed, and says what came of it."""
