"""infra/k8s/submit.py against a stand-in for the API of Kubernetes that holds one RayJob."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.k8s.submit import EXIT_UNREACHABLE, RayJobs, complete, submit
from jobs.cli.conventions import EXIT_DATA

ROOT = Path(__file__).resolve().parents[2]
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit code 1"}
GONE, BROKEN = 404, 500


class Kubernetes(ThreadingHTTPServer):
    """RayJobs by name; each question for the status is answered with the next of ``answers``: a status or a code."""

    def __init__(self) -> None:
        self.made: dict[str, dict[str, Any]] = {}
        self.answers: list[dict[str, Any] | int] = []
        self.alerts: list[dict[str, Any]] = []
        self.refuses = False
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/hook":
            self.server.alerts.append(body)
            return self.say(200, {})
        name = body["metadata"]["name"]
        assert self.path == "/apis/ray.io/v1/namespaces/clicks/rayjobs"
        assert self.headers["Authorization"] == "Bearer secret"
        if self.server.refuses:
            return self.say(403, {})
        if name in self.server.made:
            return self.say(409, {})
        self.server.made[name] = body
        return self.say(201, body)

    def do_GET(self) -> None:
        name, found = self.path.rsplit("/", 1)[1], self.server.answers.pop(0)
        if isinstance(found, int):
            return self.say(found, {})
        return self.say(200, {**self.server.made[name], **({"status": found} if found else {})})

    def say(self, code: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    server = Kubernetes()
    monkeypatch.setenv("TWINFOCUS_WEBHOOK", f"{server.address}/hook")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def jobs(kubernetes: Kubernetes, tmp_path: Path) -> RayJobs:
    for name, text in (("namespace", "clicks"), ("token", "secret")):
        (tmp_path / name).write_text(text)
    return RayJobs(kubernetes.address, tmp_path)


@pytest.fixture
def document() -> dict[str, Any]:
    manifest = yaml.safe_load((ROOT / "infra" / "k8s" / "rayjob-retrain.yaml").read_text())
    return complete(manifest, "twinfocus-retrain-29", "uid", "2014-10-28")


def test_a_rayjob_that_succeeds(kubernetes: Kubernetes, jobs: RayJobs, document: dict[str, Any]):
    kubernetes.answers = [{}, RUNNING, BROKEN, RUNNING, DONE]
    assert submit(jobs, document, 0) == 0
    made = kubernetes.made["twinfocus-retrain-29"]
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "twinfocus-retrain-29", "uid": "uid"}
    ]
    assert "jobs.retrain --as-of 2014-10-28 --config" in made["spec"]["entrypoint"]
    assert "$(" not in made["spec"]["entrypoint"]
    assert kubernetes.alerts == []


def test_a_second_pod_waits_for_the_rayjob_of_the_first(
    kubernetes: Kubernetes, jobs: RayJobs, document: dict[str, Any]
):
    kubernetes.made = {"twinfocus-retrain-29": {"made": "by the first"}}
    kubernetes.answers = [RUNNING, DONE]
    assert submit(jobs, document, 0) == 0
    assert kubernetes.made == {"twinfocus-retrain-29": {"made": "by the first"}}


@pytest.mark.parametrize(
    ("end", "word"),
    [(FAILED, "AppFailed exit code 1"), ({**DONE, "jobStatus": "STOPPED"}, "STOPPED"), (GONE, "deleted")],
)
def test_a_rayjob_that_fails_for_good(
    kubernetes: Kubernetes, jobs: RayJobs, document: dict[str, Any], end: dict[str, Any] | int, word: str
):
    kubernetes.answers = [RUNNING, {**FAILED, "jobDeploymentStatus": "Retrying"}, end]
    assert submit(jobs, document, 0) == EXIT_DATA
    [alert] = kubernetes.alerts
    assert (alert["verdict"], alert["stopped_by"]) == ("failed", "KubeRay")
    assert word in alert["error"]


def test_what_could_not_be_created_may_be_tried_again(kubernetes: Kubernetes, jobs: RayJobs, document: dict[str, Any]):
    kubernetes.refuses = True
    assert submit(jobs, document, 0) == EXIT_UNREACHABLE
    assert submit(RayJobs("http://127.0.0.1:9", jobs.account), document, 0) == EXIT_UNREACHABLE
