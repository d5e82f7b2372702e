"""infra/k8s/spark-build-dataset.yaml run by the real spark-submit; only Kubernetes is a stand-in.

The stand-in answers the few calls that Spark makes and, being its own kubelet, starts each pod's container as a
process: the image's entry with the pod's arguments and environment.
"""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
import yaml

from features.disk.dataset import DatasetManifest

ROOT = Path(__file__).resolve().parents[2]
[SPARK_HOME] = importlib.util.find_spec("pyspark").submodule_search_locations
# What the image sets.
IMAGE = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "SPARK_HOME": SPARK_HOME,
}
DRIVER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "driver", "uid": "driver-uid", "namespace": "default"},
    "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
}


@dataclass
class Cluster:
    """Executor pods by name, as they were asked for, with their processes; and what was called."""

    folder: Path
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    called: set[tuple[str, str]] = field(default_factory=set)
    """Verb and resource."""

    def start(self, pod: dict[str, Any]) -> dict[str, Any]:
        name = pod["metadata"]["name"]
        [container] = pod["spec"]["containers"]
        fields = {"status.podIP": "127.0.0.1", "metadata.name": name}
        environment = {
            e["name"]: e["value"] if "value" in e else fields[e["valueFrom"]["fieldRef"]["fieldPath"]]
            for e in container["env"]
        }
        environment |= IMAGE | {"SPARK_LOCAL_DIRS": str(self.folder / name)}  # an emptyDir of the pod
        (self.folder / name).mkdir()
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [ROOT / "infra" / "docker" / "entrypoint.sh", *container["args"]],
                cwd=self.folder / name, env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.pods[name] = pod
        return self.describe(name)

    def describe(self, name: str) -> dict[str, Any]:
        code = self.processes[name].poll()
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        return {**self.pods[name], "status": {"phase": phase, "podIP": "127.0.0.1"}}

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
            process.wait(30)


def answer(cluster: Cluster, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The few calls that Spark makes: of pods, and of whatever else it has configured or cleans up."""
    url = urlsplit(path)
    *_, namespace, resource, name = [*url.path.removeprefix("/api/v1/namespaces/").split("/"), None][:3]
    assert namespace == "default"
    query = parse_qs(url.query)
    of_one = name or "fieldSelector" in query
    verb = {
        "POST": "create", "PUT": "update", "PATCH": "patch",
        "GET": "watch" if "watch" in query else "get" if name else "list",
        "DELETE": "delete" if name else "deletecollection",
    }[method]  # fmt: skip
    cluster.called.add((verb, resource))
    if verb == "create":
        return cluster.start(body) if resource == "pods" else body
    if verb in ("delete", "deletecollection"):
        if resource == "pods":
            cluster.stop()
        return {"apiVersion": "v1", "kind": "Status", "status": "Success"}
    if verb in ("update", "patch"):
        return cluster.describe(name)
    if verb == "get":
        return DRIVER if name == "driver" else cluster.describe(name)
    items = [DRIVER] if of_one else [cluster.describe(n) for n in cluster.pods]
    return {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": items}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, int]]:
    cluster = Cluster(tmp_path_factory.mktemp("kubernetes"))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found = answer(cluster, self.command, self.path, json.loads(body or b"{}"))
            content = json.dumps(found).encode()
            self.send_response(201 if self.command == "POST" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield cluster, server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()
    cluster.stop()


@dataclass(frozen=True)
class Run:
    cluster: Cluster
    documents: dict[str, dict[str, Any]]
    """Of the YAML file, by kind."""
    dataset: Path


@pytest.fixture(scope="module")
def run(built, server: tuple[Cluster, int]) -> Run:
    cluster, port = server
    text = (ROOT / "infra" / "k8s" / "spark-build-dataset.yaml").read_text()
    documents = {d["kind"]: d for d in yaml.safe_load_all(text)}
    [container] = documents["Job"]["spec"]["template"]["spec"]["containers"]
    dataset = cluster.folder / "dataset"
    here = {
        "k8s://https://kubernetes.default.svc": f"k8s://http://127.0.0.1:{port}",
        "$(NAMESPACE)": "default", "$(POD_NAME)": "driver", "$(POD_IP)": "127.0.0.1",
        "driver-memory=3g": "driver-memory=1g", "executor-memory=1g": "executor-memory=512m",
        "instances=4": "instances=2", "cores=4": "cores=1",
        "jobs/configs/demo.toml": str(built.config),
        "/data/logs": str(built.folder / "train.csv"), "/data/dataset": str(dataset),
    }  # fmt: skip
    command = "\n".join(container["command"])
    for there, with_us in here.items():
        assert there in command
        command = command.replace(there, with_us)
    submit, *arguments = command.split("\n")
    # A watch would need web sockets; polling is Spark's own other way, and is on beside it.
    arguments[:0] = ["--conf=spark.kubernetes.executor.enableApiWatcher=false"]
    subprocess.run([ROOT / "infra" / "package.sh"], check=True)
    done = subprocess.run(
        [submit, *arguments], cwd=ROOT, env={**os.environ, **IMAGE}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    logs = "".join(f"\n{p.name}:\n{p.read_text()[-3000:]}" for p in cluster.folder.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return Run(cluster, documents, dataset)


def test_the_files_are_those_of_a_standalone_cluster(run: Run, built):
    ours, theirs = DatasetManifest.load(run.dataset), DatasetManifest.load(built.folder / "dataset")
    for split in built.rows:
        digests = [[f.sha256 for f in manifest.split(split).files] for manifest in (ours, theirs)]
        assert digests[0]
        assert digests[0] == digests[1]


def test_executors_did_the_tasks_and_are_gone(run: Run):
    assert len(run.cluster.pods) == 2
    for name, process in run.cluster.processes.items():
        assert "Finished task" in (run.cluster.folder / f"{name}.log").read_text()
        assert process.poll() is not None


def test_executors_are_pods_of_kubernetes_that_see_the_data(run: Run):
    for pod in run.cluster.pods.values():
        kubernetes_validate.validate(pod, "1.37", strict=True)
        [container] = pod["spec"]["containers"]
        assert container["image"] == "twinfocus"
        [claim] = [v for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
        assert claim["persistentVolumeClaim"]["claimName"] == "twinfocus-data"
        assert {"name": claim["name"], "mountPath": "/data"}.items() <= {
            k: v for m in container["volumeMounts"] if m["name"] == claim["name"] for k, v in m.items()
        }.items()
        assert [owner["uid"] for owner in pod["metadata"]["ownerReferences"]] == ["driver-uid"]


def test_the_driver_may_do_what_it_does(run: Run):
    rules = run.documents["Role"]["rules"]
    allowed = {(verb, resource) for rule in rules for verb in rule["verbs"] for resource in rule["resources"]}
    assert ("create", "pods") in run.cluster.called
    assert run.cluster.called <= allowed
