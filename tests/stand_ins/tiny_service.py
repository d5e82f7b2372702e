"""A service of small models, in a process of its own, as a user starts it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
START_SECONDS = 240.0
"""That a service may take to answer on a busy machine."""


@dataclass(frozen=True)
class TinyService:
    """A service that answers; ``url`` has no slash at its end."""

    process: subprocess.Popen[bytes]
    url: str
    output: Path
    """What it prints."""
    token: str | None = None

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        """Status and text of an answer; POST, if there is a body."""
        if self.token is not None:
            headers.setdefault("Authorization", f"Bearer {self.token}")
        headers = {"Content-Type": "application/json", **headers}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def score(self, rows: Any) -> dict[str, Any]:
        """The answer to a request that must be answered."""
        status, text = self.ask("/v1/score", json.dumps({"rows": rows}).encode())
        assert status == 200, text
        return json.loads(text)

    def health(self) -> dict[str, Any]:
        return json.loads(self.ask("/healthz")[1])

    def replicas(self) -> list[psutil.Process]:
        """The processes that score."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child for child in children if "ServeReplica" in " ".join(child.cmdline())]
        return self.replicas()

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextlib.contextmanager
def started(folder: Path, *arguments: object, token: str | None = None) -> Iterator[TinyService]:
    """Start ``jobs.serve`` at a free port and wait until it answers."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"TWINFOCUS_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "jobs.serve", "--port", "0", *map(str, arguments)]
    output = folder / "serve.txt"
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_SECONDS
        while (match := re.search(r"\bat (http://\S+)", output.read_text())) is None:
            assert process.poll() is None and time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
        yield TinyService(process, match[1], output, token)
    finally:
        process.terminate()
        process.wait(60)
