"""Fixtures of the whole suite."""

import os

import pytest

pytest_plugins = ("tests.tiny_dataset", "tests.object_store")

# Tests run small jobs in young JVMs: the optimising compiler costs more than it saves.
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")

# What a rank, a process of its own, was doing when it crashes; pytest sees to its own process alone.
os.environ.setdefault("PYTHONFAULTHANDLER", "1")


@pytest.fixture(scope="session")
def spark():
    """One local Spark session with the job's settings for all tests of a process."""
    from pipeline.config import SparkConfig
    from pipeline.session import size_shuffles, start_spark

    session = start_spark(SparkConfig(master="local[2]", driver_memory="2g"))
    size_shuffles(session, 0)
    yield session
    session.stop()
