"""infra/ray/submit.sh: a training on three nodes equals that on one, two clusters at once, and nothing is left."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch

from training.fit.run import Run
from training.ship.export import load_best

ROOT = Path(__file__).resolve().parents[2]
SUBMIT = str(ROOT / "infra" / "ray" / "submit.sh")


@dataclass(frozen=True)
class Submitted:
    """What a cluster printed, its logs (one folder a node) and the run its job wrote."""

    returncode: int
    output: str
    listened: set[str]
    """Addresses that the cluster's processes listened at when it was up."""
    without_token: int
    """HTTP status of a list of the jobs, asked for without the cluster's token."""
    logs: Path
    run: Path


@pytest.fixture(scope="module")
def clusters(built, find_one, tmp_path_factory: pytest.TempPathFactory):
    """Number of nodes -> the same training with three workers on a cluster of so many nodes, both at once.

    The job on one node then fails: it says which Python it was given.
    """
    folder = tmp_path_factory.mktemp("runs")
    runs = {nodes: folder / f"nodes={nodes}" for nodes in (3, 1)}
    train = [
        "python", "-m", "jobs.train", "--config", str(built.config), "training.num_workers=3",
        "training.reader.num_streams=3", "training.global_batch_size=48", "training.evaluation_batch_size=48", "--run",
    ]  # fmt: skip
    then_fail = """python -c "import sys; print('interpreter', sys.executable); sys.exit(3)" """
    commands = {3: [*train, str(runs[3])], 1: ["sh", "-c", f"{shlex.join([*train, str(runs[1])])} && {then_fail}"]}
    jobs, starts, listened, statuses = {}, {}, {}, {}
    for nodes, command in commands.items():
        environment = {
            **os.environ, "NODES": str(nodes), "RAY_NUM_CPUS": str(3 // nodes), "KEEP_LOGS": "1",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # left over from a program with a local cluster
        }  # fmt: skip
        jobs[nodes] = subprocess.Popen(
            [SUBMIT, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        # A line comes when the cluster is up: to start is the most work, and Ray gives a node 30 s for it.
        starts[nodes] = jobs[nodes].stdout.readline()
        url = find_one(r"jobs at (\S+)", starts[nodes])
        listened[nodes] = listening(url)
        statuses[nodes] = status(f"{url}/api/jobs/")
    submitted = {}
    for nodes, job in jobs.items():
        output = starts[nodes] + job.communicate(timeout=400)[0]
        logs = Path(find_one(r"Ray's logs are in (\S+)", output))
        submitted[nodes] = Submitted(job.returncode, output, listened[nodes], statuses[nodes], logs, runs[nodes])
    yield submitted
    for cluster in submitted.values():
        shutil.rmtree(cluster.logs)


def listening(url: str) -> set[str]:
    """Where the head with this dashboard and the processes of its group listen."""
    option = f"--dashboard-port={url.rpartition(':')[2]}"
    [head] = {os.getpgid(p.pid) for p in psutil.process_iter(["cmdline"]) if option in (p.info["cmdline"] or [])}
    return {
        c.laddr.ip
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.pid and _is_of_group(c.pid, head)
    }


def _is_of_group(process: int, group: int) -> bool:
    try:
        return os.getpgid(process) == group
    except ProcessLookupError:  # it has ended since it was listed
        return False


def status(url: str) -> int:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_three_nodes_train_what_one_node_trains(clusters, built):
    three, one = clusters[3], clusters[1]
    assert three.returncode == 0, three.output
    metrics = [json.loads((c.run / "metrics.json").read_text()) for c in (three, one)]
    assert metrics[0]["train"]["rows"] == len(built.rows["train"])
    assert metrics[0]["valid"] == metrics[1]["valid"]
    assert metrics[0]["valid"]["rows"] == len(built.rows["valid"])
    losses = [
        [e["train_loss"] for e in map(json.loads, (c.run / "history.jsonl").open()) if e["event"] == "evaluation"]
        for c in (three, one)
    ]
    assert len(losses[0]) == 1
    assert losses[0] == losses[1]
    weights = [load_best(Run(c.run))[0].state_dict() for c in (three, one)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())


def test_each_node_had_one_worker(clusters):
    """By Ray's own logs, of which every node has a folder of its own."""
    assert count_workers(clusters[3]) == {"node0": 1, "node1": 1, "node2": 1}
    assert count_workers(clusters[1]) == {"node0": 3}


def count_workers(cluster: Submitted) -> dict[str, int]:
    return {
        node.name: sum(
            re.search(r"^:actor_name:RayTrainWorker", log.read_text(), re.MULTILINE) is not None
            for log in node.glob("session_latest/logs/worker-*.out")
        )
        for node in sorted(cluster.logs.glob("node*"))
    }


def test_strangers_stay_outside(clusters):
    assert [c.without_token for c in clusters.values()] == [401, 401]
    assert clusters[1].listened
    assert all(ip.removeprefix("::ffff:") == "127.0.0.1" for ip in clusters[1].listened)


def test_a_failed_job_fails_the_script(clusters, find_one):
    assert clusters[1].returncode != 0
    assert Path(find_one(r"\ninterpreter (\S+)", clusters[1].output)).samefile(sys.executable)
    assert (clusters[1].logs / "node0/session_latest/logs/gcs_server.out").is_file()


def test_nothing_is_left_running(clusters, find_one, listens):
    addresses = [find_one(r"Ray cluster of \d at (\S+),", c.output) for c in clusters.values()]
    addresses += [find_one(r"jobs at http://(\S+)", c.output) for c in clusters.values()]
    assert len(set(addresses)) == 4
    assert not any(listens(address) for address in addresses)
    commands = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    traces = [*addresses, *(str(c.logs) for c in clusters.values())]
    assert not [c for c in commands if any(t in c for t in traces)]
