"""Fixtures of the whole suite."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ("tests.stand_ins.tiny_dataset", "tests.stand_ins.object_store", "tests.stand_ins.plugin")

# Tests run small jobs in young JVMs: the optimising compiler costs more than it saves.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")

# What a rank, a process of its own, was doing when it crashes; pytest sees to its own process alone.
os.environ.setdefault("PYTHONFAULTHANDLER", "1")

# The tests' tensors are small, and other tests run beside: a second thread would mostly wait for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LONG = ("tests/chaos/", "tests/infra/", "tests/jobs/", "tests/test_spine.py")
"""Where clusters are started: begun first, so that short modules are left to share out at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With ``-n``: a module's tests stay together, for what they share is made once; so do those of clusters."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False

    class Modules(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "tests/infra" if module.startswith("tests/infra/") else module

    return Modules(config, log)


@pytest.fixture(autouse=True)
def no_handler_is_left():
    """Programs that run in the tests' process set logging up; the next test begins without it."""
    yield
    root = logging.getLogger()
    for handler in [one for one in root.handlers if type(one).__module__ == "jobs.cli.logging"]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def spark():
    """One local Spark session with the job's settings for all tests of a process."""
    from pipeline.config import SparkConfig
    from pipeline.session import size_shuffles, start_spark

    session = start_spark(SparkConfig(master="local[2]", driver_memory="2g"))
    size_shuffles(session, 0)
    yield session
    session.stop()


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``run_here(main, *arguments) -> (exit code, stdout, stderr)``: a program in this process.

    A process of its own takes seconds to load Torch; programs that need one (Ray, a signal, the command line) get it.
    """
    from jobs.cli.conventions import run_program

    def run(main: Callable[[], int], *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            run_program(main)
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/one-rank-store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
