"""A Ray cluster of this machine that is running already, as others start it with ``ray start``."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import sys
import ray
from ray.cluster_utils import Cluster
num_cpus, is_busy = int(sys.argv[1]), sys.argv[2] == "busy"
head = {"num_cpus": num_cpus, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head, connect=is_busy)
if is_busy:
    taken = [ray.remote(num_cpus=1)(type("Taken", (), {"hold": lambda self: None})).remote() for _ in range(num_cpus)]
    ray.get([actor.hold.remote() for actor in taken])
print("address", cluster.address, flush=True)
nodes = []
for line in sys.stdin:
    if line == "add\\n":
        nodes.append(cluster.add_node(num_cpus=num_cpus))
    elif line == "lose\\n":
        cluster.remove_node(nodes.pop(), allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
"""Environment of the cluster's clients."""


class RunningCluster:
    """A cluster in another process.

    Attributes:
        environment: variables with which programs use the cluster.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.environment = {"RAY_ADDRESS": self._answer("address").split()[1], **TOKEN}

    def add_node(self) -> None:
        """Add a node with as many cores as the head has."""
        self._do("add")

    def lose_node(self) -> None:
        """Kill the node that was added last, with everything on it."""
        self._do("lose")

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def _do(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        self._answer("done")

    def _answer(self, word: str) -> str:
        assert self._process.stdout is not None
        return next(line for line in self._process.stdout if line.startswith(word))


@contextmanager
def running_cluster(
    num_cpus: int, *, is_busy: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[RunningCluster]:
    """A cluster of one node.

    Args:
        num_cpus: cores of each node.
        is_busy: whether the cores are taken by somebody else.
        settings: more of its processes' environment, which a training's workers inherit.
    """
    words = [sys.executable, "-c", _PROGRAM, str(num_cpus), "busy" if is_busy else "idle"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | TOKEN
    environment |= {"PYTHONPATH": str(_ROOT), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", **(settings or {})}
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=nowhere, text=True) as process:
        try:
            yield RunningCluster(process)
        finally:
            process.communicate("", timeout=60)
