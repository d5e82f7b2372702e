"""A summary reaches the webhook that wants it; one that is not there costs a warning, which keeps its address."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from jobs.retraining.alert import VARIABLE, alert

SUMMARY = {"day": "20240105", "verdict": "failed", "step": "train"}


class Webhook(BaseHTTPRequestHandler):
    """Keeps what it is sent; a path of /500 is answered so."""

    received: list[tuple[str, str, object]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.received.append((self.path, self.headers["Content-Type"], body))
        self.send_response(500 if self.path.startswith("/500") else 200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Webhook.received = []
    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_who_wants_to_know_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not alert(SUMMARY, ["failed"])  # nobody does
    monkeypatch.setenv(VARIABLE, f"{address}/secret")
    assert not alert(SUMMARY, ["refused"])
    assert alert(SUMMARY, ["failed", "refused"])
    assert Webhook.received == [("/secret", "application/json", SUMMARY)]


def test_nobody_there_is_a_warning_without_the_address(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for url in (f"{address}/500/secret", "http://127.0.0.1:9/secret", "http://[secret", "file:///secret", "secret"):
        monkeypatch.setenv(VARIABLE, url)
        assert not alert(SUMMARY, ["failed"])
        [record] = caplog.records
        assert record.levelname == "WARNING" and "nobody was alerted" in caplog.text and "secret" not in caplog.text
        caplog.clear()
