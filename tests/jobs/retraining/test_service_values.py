"""A service that is asked for its values: others that answer at its address, and its token, which only it gets."""

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from jobs.cli.conventions import TOKEN
from jobs.retraining.service_values import ServiceValues, read_values

VALUES = b'{"version": 3, "rows": 7, "values": {}, "warnings": []}'


class Redirecting(BaseHTTPRequestHandler):
    """Service that has moved to the host ``localhost``, which answers."""

    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        host, _, port = self.headers["Host"].partition(":")
        self.asked.append((host, self.headers["Authorization"]))
        self.send_response(302 if host == "127.0.0.1" else 200)
        self.send_header("Location", f"http://localhost:{port}{self.path}")
        self.end_headers()
        if host != "127.0.0.1":
            self.wfile.write(VALUES)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Redirecting.asked = []
    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_token_does_not_follow_to_another_host(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    assert read_values(address) == ServiceValues(3, 7, {}, ())
    assert Redirecting.asked == [("127.0.0.1", "Bearer secret"), ("localhost", None)]


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.6\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"])
def test_what_speaks_no_http_says_nothing(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(answer)

        thread = Thread(target=take, daemon=True)
        thread.start()
        found = read_values(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert isinstance(found, str) and " says nothing: " in found and "\n" not in found


def test_an_address_without_a_port_number_says_nothing() -> None:
    assert "says nothing: nonnumeric port: 'abc'" in str(read_values("http://host:abc"))
