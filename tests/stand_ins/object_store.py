"""A real S3-compatible server on loopback, and a real proxy in front of it that goes wrong when it is told to."""

import http.client
import http.server
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from pyarrow import fs

KEY, SECRET = "AKIATESTTESTTESTTEST", "a+secret/that/nobody/may+print"

Fault = int | str | None
"""A number: that HTTP status instead of the server's answer. "cut": the connection is reset in the middle of the
request's body, "cut answer": of the answer's. "deaf": nothing is ever answered. None: all is well."""


class Proxy:
    """Hands requests on to the server; ``decide(method, path)`` says what goes wrong with one.

    Attributes:
        faults: what went wrong so far: (method, path, fault).
    """

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.decide: Callable[[str, str], Fault] = lambda method, path: None
        self.faults: list[tuple[str, str, Fault]] = []
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda request, address: None  # clients hang up on what goes wrong
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail(self, fault: Fault, times: float, when: Callable[[str, str], bool] = lambda method, path: True) -> None:
        """Let the next ``times`` requests that ``when`` holds for go wrong."""
        left, lock = times, threading.Lock()

        def decide(method: str, path: str) -> Fault:
            nonlocal left
            with lock:
                if left <= 0 or not when(method, path):
                    return None
                left -= 1
            return fault

        self.decide = decide

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def relay(self) -> None:
        fault = self.proxy.decide(self.command, self.path)
        if fault is not None:
            self.proxy.faults.append((self.command, self.path, fault))
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "deaf":
            self.proxy.closing.wait()
        if fault in ("cut", "deaf"):
            self.rfile.read(length // 2)
            self._reset()
            return
        body = self.rfile.read(length)
        if isinstance(fault, int):
            self.send_response_only(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        server = http.client.HTTPConnection(*self.proxy.upstream)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "expect":
                    server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            content = answer.read()
        finally:
            server.close()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        size = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size)
        self.end_headers()
        if fault == "cut answer":
            self.wfile.write(content[: len(content) // 2])
            self._reset()
        else:
            self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = relay

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class Bucket:
    """A bucket of the test's own, which the environment's endpoint leads to by way of ``proxy``."""

    name: str
    proxy: Proxy
    direct: fs.S3FileSystem
    """Past the proxy."""

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def read(self, key: str) -> bytes:
        with self.direct.open_input_stream(f"{self.name}/{key}", compression=None) as stream:
            return stream.read()

    def write(self, key: str, content: bytes) -> None:
        with self.direct.open_output_stream(f"{self.name}/{key}", compression=None) as stream:
            stream.write(content)

    def keys(self, prefix: str = "") -> list[str]:
        """Of the files below ``prefix``, without it."""
        base = f"{self.name}/{prefix}".rstrip("/")
        found = self.direct.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        return sorted(info.path[len(base) + 1 :] for info in found if info.is_file)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[tuple[str, int]]:
    """Host and port of the server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def bucket(s3_server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket, and an environment that leads to it."""
    host, port = s3_server
    direct = fs.S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        region="us-east-1",
        scheme="http",
        endpoint_override=f"{host}:{port}",
        allow_bucket_creation=True,
    )
    name = f"bucket-{uuid4().hex[:12]}"
    direct.create_dir(name)
    proxy = Proxy(host, port)
    environment = {"AWS_ENDPOINT_URL": proxy.url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    yield Bucket(name, proxy, direct)
    proxy.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing requests are given up soon."""
    monkeypatch.setattr("features.disk.object_store.TRANSFER_PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr("features.disk.object_store.ANSWER_SECONDS", 1.0)
