"""infra/k8s/*.yaml against the schemas of Kubernetes itself, and against the project that they start.

The schema of a RayJob is in no package: of it, what is checked is the pod templates, the Ray version and the command.
"""

import importlib
import shlex
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.k8s.submit import EXIT_UNREACHABLE
from jobs.cli.config import load_config
from jobs.cli.conventions import EXIT_DATA

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
    if document["kind"] == "CronJob":
        return [document["spec"]["jobTemplate"]["spec"]["template"]]
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
        else:
            yield from (c["command"] for t in pod_templates(document) for c in t["spec"]["containers"])


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
            elif word == "--as-of":
                assert next(words) == "$(AS_OF)"
            elif word.startswith("/manifest/"):
                assert (ROOT / "infra" / "k8s" / word.removeprefix("/manifest/")) in FILES
            elif not word.startswith("--"):
                overrides.append(word)
        if configs:
            load_config([ROOT / config.removeprefix(IMAGE_ROOT) for config in configs], overrides)


@pytest.mark.parametrize("name", ["train.yaml", "rayjob-retrain.yaml"])
def test_ray_version_is_the_locked_one(name: str):
    [document] = documents(ROOT / "infra" / "k8s" / name)
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [pin] = [d.partition("==")[2] for d in dependencies if d.startswith("ray[")]
    assert document["spec"]["rayClusterSpec"]["rayVersion"] == pin


def accounts(name: str) -> dict[str, Document]:
    """The rules of each account of a file, which has a role and a binding of the same name."""
    found = {(d["kind"], d["metadata"]["name"]): d for d in documents(ROOT / "infra" / "k8s" / name)}
    rules = {}
    for account in (n for kind, n in found if kind == "ServiceAccount"):
        binding = found["RoleBinding", account]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account}]
        assert binding["roleRef"]["name"] == account
        rules[account] = found["Role", account]["rules"]
    return rules


def test_roles_are_bound():
    """The accounts of the drivers are those that may make pods; who submits may make RayJobs and no more."""
    driver = accounts("spark-build-dataset.yaml")
    retrain = accounts("retrain.yaml")
    assert retrain["twinfocus-retrain"] == driver["twinfocus-spark"]
    assert retrain["twinfocus-submit"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}
    ]
    for name, account in (
        ("spark-build-dataset.yaml", "twinfocus-spark"),
        ("retrain.yaml", "twinfocus-submit"),
        ("rayjob-retrain.yaml", "twinfocus-retrain"),
    ):
        assert pod_templates(documents(ROOT / "infra" / "k8s" / name)[-1])[0]["spec"]["serviceAccountName"] == account


def test_one_retraining_at_a_time_ends_before_the_next():
    cron = documents(ROOT / "infra" / "k8s" / "retrain.yaml")[-1]["spec"]
    job, [ray_job] = cron["jobTemplate"]["spec"], documents(ROOT / "infra" / "k8s" / "rayjob-retrain.yaml")
    assert cron["concurrencyPolicy"] == "Forbid"
    assert ray_job["spec"]["activeDeadlineSeconds"] < job["activeDeadlineSeconds"] < 86_400
    # Only what the submitter says of a RayJob that failed ends the Job at once.
    [rule] = job["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [EXIT_DATA])
    assert rule["onExitCodes"]["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert EXIT_UNREACHABLE != EXIT_DATA


def test_spark_of_a_retraining_is_that_of_a_build():
    """The same settings, but for those that start_spark makes itself."""
    [build] = [c for c in commands(ROOT / "infra" / "k8s" / "spark-build-dataset.yaml")]
    head = pod_templates(documents(ROOT / "infra" / "k8s" / "rayjob-retrain.yaml")[0])[0]["spec"]["containers"][0]
    [words] = [shlex.split(e["value"]) for e in head["env"] if e["name"] == "PYSPARK_SUBMIT_ARGS"]
    ours = {value for flag, value in pairwise(words) if flag == "--conf"}
    theirs = {word.removeprefix("--conf=") for word in build if word.startswith("--conf=")}
    assert words[-1] == "pyspark-shell"
    assert ours - theirs == {"spark.executor.memory=1g"}
    assert theirs - ours == {"spark.ui.enabled=false"}
