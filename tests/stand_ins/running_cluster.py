"""A Ray cluster of this machine that is running already, as others start it with ``ray start``."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
sys.stdin.read()
cluster.shutdown()
"""
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
"""Environment of the cluster's clients."""


@contextmanager
def running_cluster(num_cpus: int, *, is_busy: bool = False) -> Iterator[dict[str, str]]:
    """Environment variables with which programs use the cluster; its cores are taken if it is busy."""
    words = [sys.executable, "-c", _PROGRAM, str(num_cpus), "busy" if is_busy else "idle"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | TOKEN
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, stderr=nowhere, text=True) as process:
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
        try:
            yield {"RAY_ADDRESS": address, **TOKEN}
        finally:
            process.communicate("", timeout=60)
