"""infra/k8s/*.yaml against the schemas of Kubernetes itself, and against the project that they start.

The schema of a RayJob is in no package: of it, what is checked is the pod templates, the Ray version and the command.
"""

import importlib
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from jobs.config import load_config

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "infra" / "k8s").glob("*.yaml"))
IMAGE_ROOT = "/opt/twinfocus/"
VERSIONS = ("1.29", "1.37")
"""Of Kubernetes: the oldest and the newest looked at."""

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def pod_templates(document: Document) -> list[Document]:
    if document["kind"] == "RayJob":
        cluster = document["spec"]["rayClusterSpec"]
        return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    return [document["spec"]["template"]] if document["kind"] == "Job" else []


def validate(document: Document, version: str) -> None:
    """A resource of Kubernetes against its schema; of one of KubeRay the pod templates."""
    resources = [document]
    if document["apiVersion"].startswith("ray.io/"):
        resources = [
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "template"}, "template": template}
            for template in pod_templates(document)
        ]
    for resource in resources:
        kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_schema(path: Path, version: str):
    for document in documents(path):
        validate(document, version)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_misspelt_field_is_found(path: Path):
    """In the last document of each file, which is the one that runs something."""
    document = documents(path)[-1]
    [container, *_] = pod_templates(document)[0]["spec"]["containers"]
    container["volumeMount"] = container.pop("volumeMounts")
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        validate(document, VERSIONS[-1])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_pods_mount_what_they_declare(path: Path):
    templates = [t for document in documents(path) for t in pod_templates(document)]
    assert templates
    for spec in (template["spec"] for template in templates):
        mounted = {m["name"] for container in spec["containers"] for m in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
        assert {container["image"] for container in spec["containers"]} == {"twinfocus"}


def commands(path: Path) -> Iterator[list[str]]:
    for document in documents(path):
        if document["kind"] == "RayJob":
            yield shlex.split(document["spec"]["entrypoint"])
        elif document["kind"] == "Job":
            yield from (c["command"] for c in document["spec"]["template"]["spec"]["containers"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_are_understood(path: Path):
    """The program exists, and its config with the overrides of the command is one that it accepts."""
    for command in commands(path):
        program = command[command.index("-m") + 1] if "-m" in command else None
        [script] = [program.replace(".", "/") + ".py"] if program else [w for w in command if w.endswith(".py")]
        assert callable(importlib.import_module(script.removesuffix(".py").replace("/", ".")).main)
        words = iter(command[command.index(program or script) + 1 :])
        configs, overrides = [], []
        for word in words:
            if word == "--config" or word.startswith("--config="):
                configs.append(word.partition("=")[2] or next(words))
            elif word == "--run":
                assert next(words).startswith("/data/")
            elif not word.startswith("--"):
                overrides.append(word)
        load_config([ROOT / config.removeprefix(IMAGE_ROOT) for config in configs], overrides)


def test_ray_version_is_the_locked_one():
    [document] = documents(ROOT / "infra" / "k8s" / "train.yaml")
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [pin] = [d.partition("==")[2] for d in dependencies if d.startswith("ray[")]
    assert document["spec"]["rayClusterSpec"]["rayVersion"] == pin


def test_roles_are_bound():
    """The account of the driver is the one that may make pods."""
    found = {d["kind"]: d for d in documents(ROOT / "infra" / "k8s" / "spark-build-dataset.yaml")}
    account = found["ServiceAccount"]["metadata"]["name"]
    assert found["Job"]["spec"]["template"]["spec"]["serviceAccountName"] == account
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": account}]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
