"""The registry on real stores: SQLite, shared by several processes, locked, half changed; and an MLflow server."""

import contextlib
import fcntl
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from jobs.registry import store
from jobs.registry.model_versions import ModelVersion
from jobs.registry.registry import Registry
from jobs.registry.store import DATABASE_NAME, REGISTRY_LOCK_NAME, RegistryError
from tests.fuzz.targets import digests

ROOT = Path(__file__).resolve().parents[3]


@functools.cache
def template() -> tempfile.TemporaryDirectory[str]:
    """A registry with nothing in it, for this process: MLflow takes seconds to make its tables."""
    folder = tempfile.TemporaryDirectory(prefix="twinfocus-registry-")
    Registry.open(None, Path(folder.name))
    return folder


def make_registry(folder: Path) -> Registry:
    folder.mkdir(parents=True)
    shutil.copy(Path(template().name) / DATABASE_NAME, folder)
    return Registry.open(None, folder)


def make_artifact(folder: Path, content: str) -> Path:
    """A folder as ``training.ship.export`` writes it; the registry looks into artifact.json alone."""
    (folder / "learnt").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(content.encode() * 1000)
    (folder / "learnt" / "vocabularies.json").write_text("{}")
    (folder / "artifact.json").write_text(json.dumps({"version": 1, "files": digests(folder)}))
    return folder


def read_all(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return make_registry(tmp_path / "registry")


@pytest.fixture
def three(registry: Registry, tmp_path: Path) -> Registry:
    """Versions 1, 2 and 3 of ``ctr``."""
    for number in (1, 2, 3):
        assert registry.register("ctr", make_artifact(tmp_path / f"artifact-{number}", str(number))) == number
    return registry


def serving(registry: Registry) -> int | None:
    champion = registry.champion("ctr")
    return champion and champion.version


def roll_back(registry: Registry) -> list[int]:
    """Versions that rollbacks lead to, until there is none before."""
    found = []
    with pytest.raises(RegistryError, match="has no champion before it"):
        while True:
            found.append(registry.rollback("ctr").version)
            assert serving(registry) == found[-1]
    return found


# ---------------------------------------------------------------------------------------------------------- registering


def test_a_version_is_its_artifact_with_what_its_run_said(registry: Registry, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", "weights")
    (artifact / "left over").write_text("not the artifact's")
    report = tmp_path / "report.html"
    report.write_text("<p>good</p>")
    metrics = {"auc": 0.75, "gauc": None, **{f"m{i}": float(i) for i in range(1001)}}
    params = {"training": {"optimizer": {"kind": "fused"}}, **{f"p{i}": i for i in range(101)}}
    version = registry.register(
        "ctr", artifact, metrics=metrics, params=params, tags={"day": "2026-11-28"}, extra=[report]
    )
    (found,) = registry.list("ctr")
    assert (version, found.version, found.aliases) == (1, 1, ("candidate",))
    assert found == registry.find("models:/ctr@candidate") == registry.find("models:/ctr/1") == registry.find("ctr/1")
    assert found.tags["day"] == "2026-11-28" and not found.refusals
    logged = registry.logged(found)
    assert logged[0] == {name: value for name, value in metrics.items() if value is not None}
    assert logged[1] == {"training.optimizer.kind": "fused", **{f"p{i}": str(i) for i in range(101)}}
    fetched = registry.fetch("models:/ctr/1")
    (artifact / "left over").unlink()
    assert read_all(fetched) == read_all(artifact)
    assert fetched.is_relative_to(tmp_path / "registry"), "a folder's own files are not copied"
    assert [p.read_text() for p in (tmp_path / "registry" / "artifacts").rglob("report.html")] == ["<p>good</p>"]


def test_the_same_artifact_is_the_same_version(three: Registry, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "artifact-1", tmp_path / "elsewhere")
    three.promote("ctr", 3)
    before = three.list("ctr")
    assert three.register("ctr", tmp_path / "elsewhere", tags={"ignored": "yes"}) == 1
    assert three.register("ctr", tmp_path / "artifact-3") == 3
    assert three.list("ctr") == before
    assert three.register("other", tmp_path / "elsewhere") == 1, "of another model it is another one"


def test_a_registration_killed_before_its_alias_is_made_good(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = make_artifact(tmp_path / "artifact", "1")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(registry._client, "set_registered_model_alias", interrupt)
        registry.register("ctr", artifact)
    assert registry.list("ctr")[0].aliases == ()
    assert registry.register("ctr", artifact) == 1
    assert registry.list("ctr")[0].aliases == ("candidate",)


def test_a_registration_killed_among_its_files_makes_no_version(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, log = make_artifact(tmp_path / "artifact", "1"), registry._client.log_artifact

    def log_some(run_id: str, path: str, to: str) -> None:
        if path.endswith("artifact.json"):
            raise KeyboardInterrupt
        log(run_id, path, to)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(registry._client, "log_artifact", log_some)
        registry.register("ctr", artifact)
    assert registry.champion("ctr") is None
    with pytest.raises(RegistryError, match="has no model 'ctr'; it has none"):
        registry.list("ctr")
    assert registry.register("ctr", artifact) == 1


def test_a_damaged_artifact_is_not_registered(registry: Registry, tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path / "artifact", "1")
    (artifact / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(RegistryError, match=r"weights\.safetensors is missing or was changed after export"):
        registry.register("ctr", artifact)
    with pytest.raises(RegistryError, match=r"nothing is not a usable artifact: artifact\.json cannot be read"):
        registry.register("ctr", tmp_path / "nothing")
    secret = tmp_path / "secret"
    secret.write_text("the user's own")
    (artifact / "weights.safetensors").unlink()
    (artifact / "weights.safetensors").symlink_to(secret)
    (artifact / "artifact.json").write_text(json.dumps({"version": 1, "files": digests(artifact)}))
    with pytest.raises(RegistryError, match="leads out of its folder"):
        registry.register("ctr", artifact)
    with pytest.raises(RegistryError, match="is no name of a model"):
        registry.register("ctr' or name != '", artifact)
    assert not (tmp_path / "registry" / "artifacts").exists()


def test_a_fetched_artifact_is_the_one_that_was_registered(three: Registry, tmp_path: Path) -> None:
    found = three.fetch("ctr/2")
    (found / "artifact.json").write_text((tmp_path / "artifact-1" / "artifact.json").read_text())
    with pytest.raises(RegistryError, match="is not what was registered as ctr version 2"):
        three.fetch("ctr/2")
    shutil.rmtree(found)
    with pytest.raises(RegistryError, match="is not what was registered as ctr version 2"):
        three.fetch("ctr/2")


def test_a_moved_registry_serves_and_says_that_it_was_moved(three: Registry, tmp_path: Path) -> None:
    (tmp_path / "registry").rename(tmp_path / "moved")
    moved = Registry.open(None, tmp_path / "moved")
    moved.promote("ctr", 2)
    assert read_all(moved.fetch("ctr")) == read_all(tmp_path / "artifact-2")
    with pytest.raises(RegistryError, match=r"was moved from .*/registry/artifacts"):
        moved.register("ctr", make_artifact(tmp_path / "artifact-4", "4"))


# ------------------------------------------------------------------------------------------------------------ champions


def test_rollbacks_go_back_through_the_champions(three: Registry) -> None:
    assert three.champion("ctr") is None and three.champion("unheard-of") is None
    with pytest.raises(RegistryError, match="ctr has no champion to roll back"):
        three.rollback("ctr")
    for version in (1, 2, 3):
        promoted = three.promote("ctr", version)
        assert promoted == three.champion("ctr") == three.find("ctr")
        assert "champion" in promoted.aliases
    three.promote("ctr", 3)
    assert roll_back(three) == [2, 1]
    assert [(p.version, p.undone) for p in three.history("ctr")] == [(1, False), (2, True), (3, True)]
    three.promote("ctr", 3)
    assert roll_back(three) == [1], "2 was rolled back and is not gone back to"


def test_a_version_that_is_champion_twice_does_not_make_a_circle(three: Registry) -> None:
    for version in (1, 2, 1):
        three.promote("ctr", version)
    assert roll_back(three) == [2, 1]


def test_a_deleted_version_is_not_gone_back_to(three: Registry) -> None:
    for version in (1, 2, 3):
        three.promote("ctr", version)
    three._client.delete_model_version("ctr", "2")
    assert roll_back(three) == [1]


def test_an_alias_that_another_tool_set_is_gone_back_to(three: Registry) -> None:
    three._client.set_registered_model_alias("ctr", "champion", "1")
    three.promote("ctr", 2)
    three._client.set_registered_model_alias("ctr", "champion", "3")
    assert roll_back(three) == [2, 1]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["set_registered_model_tag", "set_registered_model_alias"])
def test_a_killed_promotion_changes_nothing(three: Registry, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    for version in (1, 2):
        three.promote("ctr", version)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(three._client, what, interrupt)
        three.promote("ctr", 1)
    assert serving(three) == 2
    three.promote("ctr", 3)
    assert roll_back(three) == [2, 1]


@pytest.mark.parametrize("then", ["rollback", "promote"])
def test_a_killed_rollback_is_carried_on(three: Registry, monkeypatch: pytest.MonkeyPatch, then: str) -> None:
    for version in (1, 2, 3):
        three.promote("ctr", version)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(three._client, "set_registered_model_tag", interrupt)
        three.rollback("ctr")
    assert serving(three) == 2
    if then == "promote":
        three.promote("ctr", 1)
        assert roll_back(three) == [2, 1]
    else:
        assert roll_back(three) == [1]


def test_a_refused_version_is_kept_and_does_not_serve(three: Registry, tmp_path: Path) -> None:
    three.promote("ctr", 1)
    refused = three.refuse("ctr", 3, ["auc fell by 0.02", "two features drifted"])
    assert refused.refusals == ["auc fell by 0.02", "two features drifted"] and refused.aliases == ()
    with pytest.raises(RegistryError, match=r"ctr version 3 was refused: auc fell by 0\.02; two features drifted"):
        three.promote("ctr", 3)
    assert three.register("ctr", tmp_path / "artifact-3") == 3
    assert three.list("ctr")[0] == refused, "registered again, it is no candidate"
    assert read_all(three.fetch("ctr/3")) == read_all(tmp_path / "artifact-3")
    with pytest.raises(RegistryError, match="ctr version 1 is the champion"):
        three.refuse("ctr", 1, ["late"])
    with pytest.raises(RegistryError, match="without a reason"):
        three.refuse("ctr", 2, [])
    assert three.promote("ctr", 3, despite_refusal=True).aliases == ("champion",)


def test_what_is_missing_is_said_with_what_is_there(three: Registry) -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: three.list("crt"), "has no model 'crt'; it has ctr"),
        (lambda: three.rollback("crt"), "has no model 'crt'; it has ctr"),
        (lambda: three.promote("ctr", 7), "ctr has no version 7; it has 3, 2, 1"),
        (lambda: three.refuse("ctr", 0, ["x"]), "ctr has no version 0; it has 3, 2, 1"),
        (lambda: three.fetch("models:/ctr/7"), "ctr has no version 7; it has 3, 2, 1"),
        (lambda: three.fetch("models:/ctr@champion"), "ctr has no champion; its aliases: candidate"),
        (lambda: three.fetch("ctr"), "ctr has no champion; its aliases: candidate"),
        (lambda: three.fetch("models:/ctr/../../etc"), "names no version: write models:/NAME@ALIAS or models:/NAME/3"),
        (lambda: three.fetch("runs:/0123/model"), "names no version: write"),
    ]
    for act, message in cases:
        with pytest.raises(RegistryError) as raised:
            act()
        assert message in str(raised.value)


def test_a_version_that_another_tool_made_is_not_fetched(three: Registry) -> None:
    run = three._client.create_run("0").info.run_id
    three._client.create_model_version("ctr", "/etc", run)
    with pytest.raises(RegistryError, match="ctr version 4 is no artifact of this project"):
        three.fetch("ctr/4")


# ---------------------------------------------------------------------------------------------- several at once, locked

TOGETHER = """
import sys, time
from pathlib import Path
from jobs.registry.registry import Registry
own, folder = int(sys.argv[1]), Path(sys.argv[2])
import mlflow, sqlalchemy, alembic.config
(folder / f"ready-{own}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
registry = Registry.open(None, folder / "registry")
print(registry.register("ctr", folder / "same"), end=" ")
version = registry.register("ctr", folder / f"own-{own}")
for _ in range(3):
    registry.promote("ctr", version)
    registry.promote("ctr", 1)
registry.promote("ctr", version)
print(version)
"""


def test_two_processes_open_register_and_promote_at_once(tmp_path: Path) -> None:
    """One makes the tables, the same artifact is one version, and rollbacks visit every promotion of both."""
    for name in ("same", "own-0", "own-1"):
        make_artifact(tmp_path / name, name)
    command = [sys.executable, "-c", TOGETHER]
    programs = [
        subprocess.Popen([*command, str(own), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for own in (0, 1)
    ]
    wait_until(lambda: all((tmp_path / f"ready-{own}").exists() for own in (0, 1)))
    (tmp_path / "go").touch()
    printed = [program.communicate(timeout=300)[0].split() for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert [same for same, _ in printed] == ["1", "1"]
    assert {int(version) for _, version in printed} == {2, 3}
    registry = Registry.open(None, tmp_path / "registry")
    assert len(registry.list("ctr")) == 3
    assert serving(registry) in (2, 3)
    champions = [promotion.version for promotion in registry.history("ctr")]
    assert not any(promotion.undone for promotion in registry.history("ctr"))
    assert {1, 2, 3} == set(champions) and len(champions) >= 8
    assert all(a != b for a, b in itertools.pairwise(champions))
    assert champions[-1] == serving(registry)
    assert roll_back(registry) == champions[-2::-1]


def wait_until(is_so: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def held(database: Path) -> Iterator[sqlite3.Connection]:
    """Another program keeps the database to itself."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield connection


def shorten(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Of this program's patience and MLflow's."""
    import mlflow.store.db.utils as utils
    import sqlalchemy

    def text(statement: str) -> Any:
        return sqlalchemy.sql.text(statement.replace("busy_timeout = 20000", f"busy_timeout = {int(seconds * 1000)}"))

    monkeypatch.setattr(store, "REGISTRY_PATIENCE_SECONDS", seconds)
    monkeypatch.setattr(utils, "sql", SimpleNamespace(text=text))


def test_a_locked_registry_is_waited_for_and_then_one_sentence(three: Registry, monkeypatch, tmp_path: Path) -> None:
    shorten(monkeypatch, 0.3)
    with held(tmp_path / "registry" / DATABASE_NAME):
        for act in (lambda: three.promote("ctr", 1), lambda: Registry.open(None, tmp_path / "registry")):
            with pytest.raises(RegistryError) as raised:
                act()
            assert str(raised.value) == (
                f"{tmp_path}/registry is locked by another program: try again when that has finished"
            )
    with (tmp_path / "registry" / REGISTRY_LOCK_NAME).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RegistryError, match="registry is locked by another program"):
            three.promote("ctr", 1)
    assert three.champion("ctr") is None
    assert three.promote("ctr", 1).version == 1


def test_a_lock_that_is_let_go_is_no_error(three: Registry, monkeypatch, tmp_path: Path) -> None:
    with held(tmp_path / "registry" / DATABASE_NAME) as connection:
        timer = threading.Timer(1.0, connection.rollback)
        timer.start()
        started = time.monotonic()
        Registry.open(None, tmp_path / "registry").promote("ctr", 2)
        assert time.monotonic() - started >= 0.9
        timer.join()
    assert serving(three) == 2


def test_what_is_no_registry(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"nothing is no registry: it has no registry\.db"):
        Registry.open(None, tmp_path / "nothing", must_exist=True)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(RegistryError, match="may have no"):
        Registry.open(None, tmp_path / "what?")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / DATABASE_NAME).write_bytes(b"no database, but as long as the header of one " * 10)
    with pytest.raises(RegistryError, match="broken: file is not a database"):
        Registry.open(None, tmp_path / "broken")
    for address in ("ftp://127.0.0.1", "http://user:secret@127.0.0.1:5000", "http://"):
        with pytest.raises(RegistryError, match="is no registry"):
            Registry.open(address, tmp_path)


def make_older(database: Path) -> str:
    """Make the database of the MLflow whose tables are one revision older; the revision."""
    import sqlalchemy
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base

    url = f"sqlite:///{database}"
    engine = sqlalchemy.create_engine(url)
    Base.metadata.create_all(engine)
    engine.dispose()
    config = _get_alembic_config(url)
    (newest,) = ScriptDirectory.from_config(config).get_revisions("heads")
    command.upgrade(config, newest.down_revision)
    return newest.down_revision


def with_schema(folder: Path, revision: str) -> Path:
    """A registry with the installed MLflow's tables and the name of another revision."""
    folder.mkdir()
    shutil.copy(Path(template().name) / DATABASE_NAME, folder)
    with contextlib.closing(sqlite3.connect(folder / DATABASE_NAME)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [revision])
    return folder


def test_a_registry_of_an_older_mlflow_is_upgraded_as_its_error_says(tmp_path: Path) -> None:
    """MLflow upgrades by itself where tables are missing; where only columns are, the error says how."""
    revision = make_older(tmp_path / DATABASE_NAME)
    folder = with_schema(tmp_path / "with a space", revision)
    with pytest.raises(RegistryError, match="was made by an older MLflow: python -m mlflow db upgrade") as refused:
        Registry.open(None, folder)
    (tmp_path / DATABASE_NAME).rename(folder / DATABASE_NAME)
    words = shlex.split(str(refused.value).partition(": ")[2].removesuffix(" brings it here"))
    done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    look = "import sys; from jobs.registry.registry import Path, Registry; Registry.open(None, Path(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", look, folder], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # in another process: this one's MLflow knows the file that was there


def test_a_registry_of_a_newer_mlflow_says_so(tmp_path: Path) -> None:
    import mlflow

    words = f"was made by a newer MLflow than {mlflow.__version__}, which is installed: install that version"
    with pytest.raises(RegistryError, match=re.escape(words)):
        Registry.open(None, with_schema(tmp_path / "newer", "0123456789ab"))


QUIET = """
import sys
asked = []
watched = ("socket.connect", "socket.getaddrinfo")
sys.addaudithook(lambda event, values: asked.append(values) if event in watched else None)
from pathlib import Path
from jobs.registry.registry import Registry
assert "mlflow" not in sys.modules
registry = Registry.open(None, Path(sys.argv[1]) / "registry")
registry.promote("ctr", registry.register("ctr", Path(sys.argv[1]) / "artifact"))
from mlflow.telemetry.client import get_telemetry_client
assert get_telemetry_client() is None and not asked, asked
"""


def test_nothing_is_sent_anywhere(registry: Registry, tmp_path: Path) -> None:
    """In a process that looks like no test: MLflow itself is silent in those. The working folder stays clean too."""
    make_artifact(tmp_path / "artifact", "1")
    (tmp_path / "here").mkdir()
    quiet = {"CI", "PYTEST_CURRENT_TEST", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    subprocess.run(
        [sys.executable, "-c", QUIET, str(tmp_path)],
        env={**environment, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path / "here",
        check=True,
    )
    assert list((tmp_path / "here").iterdir()) == []


# --------------------------------------------------------------------------------------------------------------- server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server on this machine's loopback interface."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(Path(template().name) / DATABASE_NAME, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    backend = ["--backend-store-uri", f"sqlite:///{folder}/{DATABASE_NAME}", "--artifacts-destination", str(folder)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, *backend], env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def is_up() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
        return False

    try:
        wait_until(is_up)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def test_a_server_does_what_a_folder_does(server: str, tmp_path: Path, no_proxy: None, capfd) -> None:
    registry = Registry.open(server, tmp_path / "copies")
    for number in (1, 2, 3):
        artifact = make_artifact(tmp_path / f"artifact-{number}", str(number))
        assert registry.register("ctr", artifact, metrics={"auc": 0.7}, params={"a": {"b": number}}) == number
    assert registry.register("ctr", tmp_path / "artifact-2") == 2
    assert [(v.version, v.aliases) for v in registry.list("ctr")] == [(3, ("candidate",)), (2, ()), (1, ())]
    assert registry.logged(registry.find("ctr/3")) == ({"auc": 0.7}, {"a.b": "3"})
    for number in (1, 2, 3):
        registry.promote("ctr", number)
    fetched = registry.fetch("ctr")
    assert read_all(fetched) == read_all(tmp_path / "artifact-3")
    before = fetched.stat().st_ino
    assert registry.fetch("ctr/3") == fetched and fetched.stat().st_ino == before, "it is not fetched twice"
    (fetched / "artifact.json").write_text("{}")
    assert read_all(registry.fetch("ctr/3")) == read_all(tmp_path / "artifact-3")
    assert sorted(p.name for p in (tmp_path / "copies" / "fetched").iterdir()) == [fetched.name]
    assert roll_back(registry) == [2, 1]
    assert registry.refuse("ctr", 3, ["worse"]).refusals == ["worse"]
    with pytest.raises(RegistryError, match="has no model 'crt'; it has ctr"):
        registry.find("crt")
    assert capfd.readouterr().out == "", "a program's output is its own"


def test_a_server_is_not_believed(server: str, tmp_path: Path, no_proxy: None, monkeypatch) -> None:
    registry = Registry.open(server, tmp_path / "copies")
    registry.register("victim", make_artifact(tmp_path / "artifact", "true"))
    download = registry._client.download_artifacts

    def forged(run_id: str, path: str, to: str) -> str:
        found = download(run_id, path, to)
        if path.endswith(".safetensors"):
            Path(found).write_bytes(b"other weights")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(registry._client, "download_artifacts", forged)
        with pytest.raises(RegistryError, match=r"weights\.safetensors is missing or was changed"):
            registry.fetch("victim@candidate")

    def climbing(run_id: str, path: str, to: str) -> str:
        found = download(run_id, path, to)
        if path.endswith("artifact.json"):
            Path(found).write_text(json.dumps({"files": {"../../../../climbed": "0" * 64}}))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(registry._client, "download_artifacts", climbing)
        with pytest.raises(RegistryError, match="leads out of its folder"):
            registry.fetch("victim@candidate")
    assert list((tmp_path / "copies" / "fetched").iterdir()) == []


def test_the_server_listens_on_loopback_alone(server: str) -> None:
    port = int(server.rpartition(":")[2])
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr]
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}


def test_a_server_that_is_not_there_is_given_up(tmp_path: Path, no_proxy: None, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(RegistryError) as raised:
            Registry.open(address, tmp_path)
    assert str(raised.value) == f"{address} cannot be reached: is the server running there?"


# --------------------------------------------------------------------------------------------------------- a real model


def test_a_real_model_scores_the_same_when_it_is_fetched(
    registry: Registry, tmp_path: Path, make_dataset, one_rank
) -> None:
    from jobs.cli.config import parse_config
    from jobs.launch.run_guard import prepare_run
    from tests.training.fit.test_run import make_config
    from training.data.opened_dataset import Dataset
    from training.fit.run import Run, train_rank
    from training.ship.export import export
    from training.ship.predict import Predictor

    config = make_config(make_dataset().path, max_epochs=1)
    schema = Dataset.open(config.dataset).manifest.schema
    run = Run(tmp_path / "run")
    run.path.mkdir()
    tree = {"features": schema, "pipeline": {"output": "unused"}, "training": config}
    prepare_run(run.path, parse_config(tree), resume=False)
    train_rank(run, config)
    log = tmp_path / "log.csv"
    log.write_text("user,genres,device,age,row,price\n1,g|h,mobile,20,0.5,1\n2,,tablet,40,0.1,2\n")
    exported = export(run, tmp_path / "artifact", str(log))
    metrics = run.read("metrics.json")["valid"]
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    registry.promote(
        "ctr", registry.register("ctr", tmp_path / "artifact", metrics=numbers, params=run.read("config.json"))
    )
    fetched = Predictor.load(registry.fetch("models:/ctr@champion"))
    rows = [
        {"user": str(u), "genres": "g", "device": "mobile", "age": "30", "row": "1", "price": "2"} for u in range(9)
    ]
    assert (fetched.predict(rows) == exported.predict(rows)).all()
    champion: ModelVersion | None = registry.champion("ctr")
    assert champion is not None
    logged, params = registry.logged(champion)
    assert logged == {name: float(value) for name, value in numbers.items()}
    assert params["training.optimizer.kind"] == "fused"
