"""Ray's address and temporary folder: real dead addresses, a living cluster, long and odd folders."""

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.launch import connection
from jobs.launch.connection import ADDRESS
from tests.stand_ins.running_cluster import running_cluster

ROOT = Path(__file__).parents[3]
CONNECT = """
import os, sys
from jobs.cli.conventions import run_program
from jobs.launch import connection
from jobs.launch.connection import check_room, connect
connection.CLUSTER_SECONDS = float(os.environ.get("PATIENCE", connection.CLUSTER_SECONDS))
def main():
    connect(2)
    import ray
    assert ray.get(ray.remote(lambda: 7).remote()) == 7
    print("folder", ray._private.worker._global_node.get_session_dir_path())
    check_room(int(sys.argv[1]), "cuda" in sys.argv)
    return 0
run_program(main)
"""


def connected(
    *arguments: str, num_workers: int = 1, **environment: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a program that connects, does a task and asks for room; its end and its seconds."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    words = [sys.executable, "-c", CONNECT, str(num_workers), *arguments]
    started = time.monotonic()
    done = subprocess.run(
        words, cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    return done, time.monotonic() - started


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Address where somebody takes connections and answers with these bytes, or never."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def take() -> None:
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                held.append(peer)
                if answer is not None:
                    peer.sendall(answer)
                    peer.close()

        threading.Thread(target=take, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        for peer in held:
            peer.close()


def check_refused(monkeypatch: pytest.MonkeyPatch, address: str, reason: str) -> None:
    monkeypatch.setenv(ADDRESS, address)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="Unset RAY_ADDRESS to use this machine alone") as refused:
        connection.check_address()
    assert time.monotonic() - started < 30
    assert str(refused.value).startswith(f"RAY_ADDRESS={address}: {reason}")


@pytest.mark.parametrize("address", ["", "local"])
def test_no_address_is_this_machine(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv(ADDRESS, address)
    connection.check_address()
    assert connection.has_own_cluster()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001", "127.0.0.1", ":6379", "head:x", "127.0.0.1:99999"]
)
def test_an_address_of_another_form(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    check_refused(monkeypatch, address, "that is no HOST:PORT of a head node")


def test_a_closed_port_and_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    check_refused(monkeypatch, f"127.0.0.1:{port}", "nothing answers there (Connection refused)")
    check_refused(monkeypatch, "no-such-host.invalid:6379", "nothing answers there (")


def test_an_address_that_swallows_packets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose queue is full takes no more connections, as a machine that is gone."""
    monkeypatch.setattr(connection, "ADDRESS_SECONDS", 2.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        held = []
        for _ in range(4):
            peer = socket.socket()
            peer.setblocking(False)
            peer.connect_ex(server.getsockname())
            held.append(peer)
        check_refused(monkeypatch, f"127.0.0.1:{server.getsockname()[1]}", "nothing answers there (timed out)")
        for peer in held:
            peer.close()


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b""])
def test_a_port_where_something_else_answers(monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    monkeypatch.setattr(connection, "CLUSTER_SECONDS", 3.0)
    with listening(answer) as address:
        check_refused(monkeypatch, address, "what answers there is no Ray cluster")


SLOW_PIPE = """#!/bin/sh
answer=$({python} "$@")
printf '%s\\n' "$answer"
"""
"""Python whose lines arrive all at once, as they do for a reader that a busy machine delays."""


def test_a_running_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_cluster(2) as cluster:
        environment = {**cluster.environment, "PATIENCE": "90"}  # other tests share the cores
        with monkeypatch.context() as patch:
            patch.setattr(connection, "CLUSTER_SECONDS", 90.0)  # other tests share the cores
            (tmp_path / "python").write_text(SLOW_PIPE.format(python=sys.executable))
            (tmp_path / "python").chmod(0o755)
            patch.setattr(sys, "executable", str(tmp_path / "python"))
            for name, value in environment.items():
                patch.setenv(name, value)
            connection.check_address()
        done, _ = connected(num_workers=2, **environment)
        assert done.returncode == 0, done.stderr
        done, _ = connected(RAY_ADDRESS=environment[ADDRESS])
        assert done.returncode == 1 and "another token: set RAY_AUTH_MODE=token" in done.stderr, done.stderr
        for arguments, num_workers, words in (
            (("cuda",), 1, "has no GPU that Ray sees: set training.device"),
            ((), 3, "3 workers need one each, and the Ray cluster at RAY_ADDRESS="),
        ):
            done, seconds = connected(*arguments, num_workers=num_workers, **environment)
            assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
            assert seconds < connection.ROOM_SECONDS + 60


@pytest.mark.parametrize(
    ("name", "is_used"),
    [("a" * 90, False), ("a b", True), ("ü", False), ("not-there", False), ("file", False)],
)
def test_a_temporary_folder_of_any_kind(name: str, is_used: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as parent:
        folder = Path(parent) / name
        if name == "file":
            folder.write_text("no folder")
        elif name != "not-there":
            folder.mkdir()
        done, _ = connected(TMPDIR=str(folder))
        assert done.returncode == 0, done.stderr
        (word,) = (line for line in done.stdout.splitlines() if line.startswith("folder"))
        session = Path(word.partition(" ")[2])
        assert session.is_relative_to(folder) == is_used
        if "a" * 90 in name or "ü" in name:
            private = session.parents[1]
            assert private.name == f"twinfocus-{os.getuid()}" and private.stat().st_mode & 0o077 == 0


def test_a_folder_that_the_user_chose_for_ray_is_not_replaced(tmp_path: Path) -> None:
    done, _ = connected(RAY_TMPDIR=str(tmp_path / ("a" * 90)))
    assert done.returncode == 2 and "is no folder for Ray: set RAY_TMPDIR to one of" in done.stderr
