"""Submit a RayJob to Kubernetes and wait for its end; a CronJob, which can make pods alone, makes one that does so.

The RayJob has the name of the Job that the pod is of. A second pod of that Job, because the first was lost, finds the
RayJob there and waits for it.
"""

import datetime
import json
import os
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import yaml

from jobs.cli.conventions import EXIT_DATA, plain_parser, run_program
from jobs.retraining.alert import alert

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes puts a pod's token, namespace and the certificate of its API."""
EXIT_UNREACHABLE = 3
"""Another pod may have better luck; with EXIT_DATA it has not."""
TIMEOUT_SECONDS = 30.0
CONFLICT, NOT_FOUND = 409, 404


@dataclass(frozen=True)
class RayJobs:
    """The RayJobs of a namespace, by the API of Kubernetes."""

    address: str
    """Such as https://10.0.0.1:443."""
    account: Path

    def create(self, document: dict[str, Any]) -> None:
        """Create one; that it is there already is as good.

        Raises:
            OSError: the API was not reached, or refused.
        """
        try:
            self._ask("POST", "", json.dumps(document).encode())
        except HTTPError as error:
            if error.code != CONFLICT:
                raise

    def status(self, name: str) -> dict[str, Any]:
        """What the operator says of one; empty before it has seen it.

        Raises:
            OSError: as ``create``.
        """
        return self._ask("GET", f"/{name}").get("status") or {}

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        # Both files are read for each request: Kubernetes changes the token while the pod waits.
        namespace, token = ((self.account / name).read_text(encoding="utf-8") for name in ("namespace", "token"))
        url = f"{self.address}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}"
        trusted = ssl.create_default_context(cafile=self.account / "ca.crt") if url.startswith("https:") else None
        request = Request(url, body, {"Content-Type": "application/json"}, method=method)
        request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urlopen(request, timeout=TIMEOUT_SECONDS, context=trusted) as answer:  # nosec B310
            return json.load(answer)


def main() -> int:
    parser = plain_parser(
        "infra.k8s.submit",
        "Create a RayJob with the name JOB_NAME, owned by the Job JOB_UID, and wait for its end.",
        "python -m infra.k8s.submit /manifest/rayjob-retrain.yaml",
    )
    parser.add_argument("manifest", help="YAML file of the RayJob; $(AS_OF) in its entrypoint becomes the date")
    parser.add_argument("--as-of", metavar="DATE", help="default: yesterday in UTC")
    parser.add_argument("--poll-seconds", type=float, default=15.0, metavar="S", help="default: %(default)s")
    arguments = parser.parse_args()
    as_of = arguments.as_of or str(datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1))
    name, uid = os.environ["JOB_NAME"], os.environ["JOB_UID"]
    text = Path(arguments.manifest).read_text(encoding="utf-8")
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT_HTTPS"]
    jobs = RayJobs(f"https://{f'[{host}]' if ':' in host else host}:{port}", ACCOUNT)
    return submit(jobs, complete(yaml.safe_load(text), name, uid, as_of), arguments.poll_seconds)


def complete(document: dict[str, Any], name: str, uid: str, as_of: str) -> dict[str, Any]:
    """The RayJob with its name, its owner and its date."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
    spec = {**document["spec"], "entrypoint": document["spec"]["entrypoint"].replace("$(AS_OF)", as_of)}
    return {**document, "metadata": {**document["metadata"], "name": name, "ownerReferences": [owner]}, "spec": spec}


def submit(jobs: RayJobs, document: dict[str, Any], poll_seconds: float) -> int:
    """Create a RayJob and follow it; returns the exit code."""
    name, said = document["metadata"]["name"], ""
    try:
        jobs.create(document)
    except OSError as error:
        print(f"error: the RayJob {name} was not created: {error}", file=sys.stderr)
        return EXIT_UNREACHABLE
    while True:
        try:
            status = jobs.status(name)
        except OSError as error:
            if isinstance(error, HTTPError) and error.code == NOT_FOUND:
                return _give_up(name, "it was deleted")
            # It goes on without us; the Job's deadline ends the waiting.
            status = {"jobDeploymentStatus": f"unknown: {error}"}
        ends = [status.get(key, "") for key in ("jobDeploymentStatus", "jobStatus")]
        if said != (said := " ".join(ends).strip()):
            print(f"{name}: {said or 'not seen by the operator'}", flush=True)
        if ends == ["Complete", "SUCCEEDED"]:
            return 0
        if ends[0] in ("Complete", "Failed"):
            return _give_up(name, " ".join([said, status.get("reason", ""), status.get("message", "")]).strip())
        time.sleep(poll_seconds)


def _give_up(name: str, why: str) -> int:
    """KubeRay has tried again already, and what went wrong before jobs.retrain began nobody else tells."""
    print(f"error: the RayJob {name} failed: {why}", file=sys.stderr)
    alert({"verdict": "failed", "stopped_by": "KubeRay", "error": f"{name}: {why}"}, ["failed"])
    return EXIT_DATA


if __name__ == "__main__":
    run_program(main)
