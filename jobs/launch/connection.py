"""connect: the one way to Ray, to the cluster of RAY_ADDRESS or to one that is started on this machine alone.

Import it before ray, which reads some environment variables when it is imported.
"""

import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from features.disk.place import private_folder
from jobs.cli.errors import ConfigError
from jobs.cli.socket_paths import LONGEST_FOLDER, fits_ray
from jobs.launch.loopback import LOOPBACK, loopback_settings

ADDRESS = "RAY_ADDRESS"
"""Environment variable with the address of a running cluster."""
ADDRESS_SECONDS, CLUSTER_SECONDS = 6.0, 22.0
"""Seconds to wait for a connection to an address, and then for a cluster's answer."""
ROOM_SECONDS = 10.0
"""Seconds to wait for nodes of a cluster that is just starting."""
_SHORT = Path("/tmp")  # nosec B108: a folder of its own is made in it, for this user alone


def has_own_cluster() -> bool:
    """Tell whether this program's Ray is its own, on this machine alone: RAY_ADDRESS names no cluster."""
    return os.environ.get(ADDRESS, "") in ("", "local")


def ray_settings() -> dict[str, str]:
    """Return the environment variables that Ray reads when it is imported; set them before that."""
    if has_own_cluster():
        return loopback_settings()
    wait = "RAY_raylet_start_wait_time_s"  # seconds that a driver looks for the node of its machine
    return {wait: os.environ.get(wait, "10")}


def connect(num_cpus: int) -> None:
    """Connect to the cluster of RAY_ADDRESS; where that is not set, start a cluster on this machine's loopback address.

    Args:
        num_cpus: number of workers that the own cluster takes at a time.

    Raises:
        ConnectionError: no cluster of this version of Ray answers at RAY_ADDRESS, which is told within half a minute;
            or the own one does not start.
        ConfigError: Ray can use no temporary folder.
    """
    check_address()
    os.environ.update(ray_settings())
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if has_own_cluster():
        quiet |= {"include_dashboard": False, "_node_ip_address": LOOPBACK, "_temp_dir": str(ray_folder())}
        try:
            ray.init(address="local", num_cpus=num_cpus, **quiet)
        except Exception as error:  # Ray raises no other class
            raise ConnectionError(f"Ray cannot start here: {error} Try again when this machine is less busy") from error
        return
    try:
        ray.init(**quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise _refusal(str(error).partition("\n")[0].rstrip(" .:")) from error


def check_address() -> None:
    """Check that a Ray cluster answers at RAY_ADDRESS, if that is set.

    Raises:
        ConnectionError: none does; names the variable, its value and the cure.
    """
    address = os.environ.get(ADDRESS, "")
    if has_own_cluster():
        return
    if address != "auto":  # the cluster that was started last on this machine
        _reach(address)
    reason = _ask(address)
    if reason is not None:
        raise _refusal(reason)


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if "://" in address or not host or not port.isdecimal() or int(port) > 65_535:
        raise _refusal("that is no HOST:PORT of a head node, as HOST:6379")
    try:
        socket.create_connection((host, int(port)), ADDRESS_SECONDS).close()
    except OSError as error:
        raise _refusal(f"nothing answers there ({error.strerror or error})") from error


def _ask(address: str) -> str | None:
    """Ask for a cluster's nodes, in a process that can be ended: Ray itself would wait for minutes.

    Returns:
        Why there is no answer; None if there is one.
    """
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "jobs.launch.cluster_answer", address],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,  # a buffer would keep an answer that came with the first line
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()  # importing Ray takes as long as it does
        try:
            answer = child.communicate(timeout=CLUSTER_SECONDS)[0].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            child.kill()
            return f"what answers there is no Ray cluster, or one that takes longer than {CLUSTER_SECONDS:.0f} s"
    kind, _, words = answer.partition(" ")
    if kind == "ok":
        return None
    if kind == "AuthenticationError":
        return "the cluster there has another token: set RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
    return "what answers there is no Ray cluster" + (f" ({words})" if words else "")


def _refusal(reason: str) -> ConnectionError:
    return ConnectionError(
        f"{ADDRESS}={os.environ.get(ADDRESS)}: {reason}. Unset {ADDRESS} to use this machine alone, or start that "
        "cluster (ray start --head)"
    )


def ray_folder() -> Path:
    """Return the folder for an own cluster's sessions: ``ray`` in TMPDIR, or a short one where Ray cannot work there.

    Raises:
        ConfigError: Ray cannot work there, and there is no other.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    folder = Path(chosen or tempfile.gettempdir()).absolute()
    if fits_ray(folder):
        return folder / "ray"
    name = "RAY_TMPDIR" if chosen else "TMPDIR"
    cure = f"{name}={folder} is no folder for Ray: set {name} to one of {LONGEST_FOLDER} ASCII characters at most"
    if chosen:
        raise ConfigError(cure)
    try:
        return private_folder(_SHORT) / "ray"
    except OSError as error:
        raise ConfigError(f"{cure} ({_SHORT} cannot be used: {error.strerror})") from error


def check_room(num_workers: int, use_gpu: bool) -> None:
    """Check that the connected cluster has a core, or a GPU, for each worker: Ray would wait for them for ever.

    Raises:
        ConfigError: it has not, and no nodes that are still starting bring them.
    """
    import ray

    kind, end = "GPU" if use_gpu else "CPU", time.monotonic() + (0 if has_own_cluster() else ROOM_SECONDS)
    while (room := _room(ray.nodes(), kind)) < num_workers:
        if time.monotonic() >= end:
            raise ConfigError(_too_few(num_workers, room, use_gpu))
        time.sleep(0.5)


def _room(nodes: Sequence[Mapping[str, Any]], kind: str) -> int:
    """Count the workers of one core or GPU each that the living nodes can take."""
    return sum(int(node["Resources"].get(kind, 0)) for node in nodes if node["Alive"])


def _too_few(num_workers: int, room: int, use_gpu: bool) -> str:
    where = "this machine" if has_own_cluster() else f"the Ray cluster at {ADDRESS}={os.environ.get(ADDRESS)}"
    if use_gpu and not room:
        return f"config key 'training.device': {where} has no GPU that Ray sees: set training.device = \"cpu\""
    has = f"{room} {'GPU' if use_gpu else 'core'}{'' if room == 1 else 's'}"
    return f"config key 'training.num_workers': {num_workers} workers need one each, and {where} has {has}: lower it"
