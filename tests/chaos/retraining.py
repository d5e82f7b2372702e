"""What can happen to a retraining: a kill at every step, a locked registry, a full disk, a wrong clock, a late day."""

import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from jobs.registry.store import DATABASE_NAME
from tests.chaos.data import MIB, expect, small_disk
from tests.chaos.outcome import Outcome
from tests.chaos.retraining_state import DAYS, END_SECONDS, Program, Retraining

LATE_DAY = DAYS[2]
STEPS = ("build", "check", "window", "train", "judge", "export", "report", "register", "promote")


def kill_at_every_step(folder: Path, seed: int) -> Outcome:
    """kill -9 before, in or after each step in turn, each time of the next start; the last start ends well."""
    retraining, rng = Retraining.begin(folder, seed, "base"), random.Random(seed)
    for number, step in enumerate(STEPS):
        moment = ("before", "in", "after")[(seed + number) % 3]
        program = retraining.start(stand=f"{step}:done" if moment == "after" else step)
        program.wait_until_it_stands()
        if moment == "in":
            program.go_on()
            # Ray alone takes some seconds to start; the short steps are over after that, or are not.
            time.sleep(rng.uniform(0.1, {"build": 8.0, "train": 15.0}.get(step, 0.4)))
        program.kill()
        if (step, moment) != ("promote", "after"):
            expect(retraining.champion() in ((1, 2) if step == "promote" else (1,)), f"{moment} {step}: a new champion")
    return retraining.heal()


def interrupt_at_every_step(folder: Path, seed: int) -> Outcome:
    """SIGINT or SIGTERM before or in each step in turn, each time of the next start; the last start ends well."""
    retraining, rng = Retraining.begin(folder, seed, "base"), random.Random(seed)
    for number, step in enumerate(STEPS):
        program = retraining.start(stand=step)
        program.wait_until_it_stands()
        if (seed + number) % 2 or step in ("build", "train"):
            program.go_on()
            time.sleep(rng.uniform(0.5, {"build": 6.0, "train": 15.0}.get(step, 0.4)))
        if program.process.poll() is not None or "version 2 promoted" in program.said():
            program.expect(0)  # a short step, and the rest, were over: nothing is left to interrupt
            break
        program.interrupt((signal.SIGINT, signal.SIGTERM)[(seed + number) % 2])
        last = retraining.last()
        expect(last["verdict"] == "interrupted" and last["step"] == last["stopped_by"], f"last.json says {last}")
        expect("the next retraining goes on there" in last["error"], f"last.json says {last}")
    return retraining.heal()


def spoil_a_day(folder: Path, seed: int) -> Outcome:
    """A day cannot be read: it is stopped, the champion stays, and once its file is mended all is as ever."""
    retraining = Retraining.begin(folder, seed, "base")
    with _instead_of(retraining, LATE_DAY) as path:
        whole = path.with_name("away").read_text(encoding="utf-8")
        bad = [whole.splitlines()[0] + "\n", whole.replace(",u", "\n,u"), "", whole.replace("user,", "person,")]
        path.write_text(bad[seed % len(bad)], encoding="utf-8")
        for _ in range(2):  # the second time, nothing is tried again
            retraining.start(LATE_DAY).expect(0, "20240103 cannot be read", "20240103 is not trained on")
        last = retraining.last()
        expect((last["verdict"], last["day"], last["stopped_by"]) == ("stopped", "20240103", "unreadable"), f"{last}")
        retraining.expect_the_old()
    return retraining.heal()


def let_a_day_grow(folder: Path, seed: int) -> Outcome:
    """A day's file grows after it was built: that is told, and with retrain.changed = "rebuild" it is built again."""
    retraining = Retraining.begin(folder, seed, "base")
    with _instead_of(retraining, LATE_DAY) as path:
        lines = path.with_name("away").read_text(encoding="utf-8").splitlines(keepends=True)
        path.write_text("".join(lines[: random.Random(seed).randrange(2, len(lines))]), encoding="utf-8")
        program = retraining.start(stand="window")
        program.wait_until_it_stands()
        program.kill()
    retraining.start(DAYS[0]).expect(0, "20240103: ", "when it was built")
    expect([*retraining.last()["changed_files"]] == ["20240103"], f"last.json says {retraining.last()}")
    return retraining.heal("retrain.changed=rebuild")


@contextlib.contextmanager
def _instead_of(retraining: Retraining, day: str) -> Iterator[Path]:
    """The path of a day's file, which is away (beside it) for now."""
    path = retraining.home / "logs" / f"day={day}" / "part.csv"
    away = path.with_name("away")
    path.rename(away)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        away.rename(path)


def lock_registry(folder: Path, seed: int) -> Outcome:
    """Another program holds the registry's database, for a while or longer than a retraining waits for it."""
    retraining, is_short = Retraining.begin(folder, seed, "trained"), seed % 2 == 0
    retries = ["retrain.retries=9", "retrain.retry_seconds=1"] if is_short else []
    program = retraining.start(DAYS[-1], *retries, stand=None if is_short else "register")
    if not is_short:
        program.wait_until_it_stands()
    with _locked(retraining.state / "registry" / DATABASE_NAME):
        if is_short:
            _wait_for_words(program, "another try")
        else:
            program.go_on()
            program.expect(1, "error: ", "is locked by another program")
            last = retraining.last()
            expect((last["verdict"], last["step"]) == ("failed", "register"), f"last.json says {last}")
    if is_short:
        program.expect(0, "look failed: ", "version 2 promoted")
        return retraining.outcome()
    retraining.expect_the_old()
    return retraining.heal()


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def _wait_for_words(program: Program, words: str) -> None:
    deadline = time.monotonic() + END_SECONDS
    while words not in program.said():
        expect(
            program.process.poll() is None and time.monotonic() < deadline, f"never said {words!r}: {program.said()}"
        )
        time.sleep(0.05)


def fill_disk(folder: Path, seed: int) -> Outcome:
    """The disk is full when the artifact is written."""
    with small_disk(folder / "disk", 64 * MIB) as disk:
        retraining = Retraining.begin(folder, seed, "trained", disk)
        program = retraining.start(stand="export")
        program.wait_until_it_stands()
        size = shutil.disk_usage(disk).used + random.Random(seed).choice((0, 4_096, 16_384))
        subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)
        program.go_on()
        program.expect(1, "No space left on device")
        subprocess.run(["mount", "-o", f"remount,size={64 * MIB}", disk], check=True)
        retraining.expect_the_old()
        return retraining.heal()


def turn_clock_back(folder: Path, seed: int) -> Outcome:
    """The clock is a year behind while a candidate is judged; then somebody retrains as of an earlier day."""
    retraining = Retraining.begin(folder, seed, "trained")
    retraining.start(clock=-400 * 86_400.0).expect(0, "version 2 promoted")
    outcome = retraining.outcome()
    retraining.start(DAYS[seed % 3], clock=-500 * 86_400.0).expect(0, "nothing is new")
    expect(retraining.champion() == 2, "the champion has changed")
    retraining.start().expect(0, "done before")
    return outcome


def deliver_late(folder: Path, seed: int) -> Outcome:
    """A day arrives when a candidate is being trained without it; another retraining is killed and finds both."""
    retraining = Retraining.begin(folder, seed, "base")
    day, away = retraining.home / "logs" / f"day={LATE_DAY}", retraining.home / "away"
    day.rename(away)
    try:
        program = retraining.start(stand="train")
        program.wait_until_it_stands()
    finally:
        away.rename(day)
    if seed % 2:
        program.go_on()
        time.sleep(random.Random(seed).uniform(1, 15))
    program.kill()
    retraining.expect_the_old()
    return retraining.heal()


def _alone(case: Callable[[Path, int], Outcome], folder: Path, seed: int) -> Outcome:
    """The case, and nothing of it left running."""
    try:
        return case(folder, seed)
    finally:
        Program.end_all()


CASES: dict[str, Callable[[Path, int], Outcome]] = {
    "retrain-killed-at-each-step": partial(_alone, kill_at_every_step),
    "retrain-interrupted-at-each-step": partial(_alone, interrupt_at_every_step),
    "retrain-day-unreadable": partial(_alone, spoil_a_day),
    "retrain-day-grows": partial(_alone, let_a_day_grow),
    "retrain-registry-locked": partial(_alone, lock_registry),
    "retrain-disk-full-in-export": partial(_alone, fill_disk),
    "retrain-clock-turned-back": partial(_alone, turn_clock_back),
    "retrain-late-partition": partial(_alone, deliver_late),
}
