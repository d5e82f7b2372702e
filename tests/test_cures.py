"""Errors that tell a user to set something: what they say is done, and then the thing works.

Most cures are tested beside their errors; here are those that no other test does.
"""

import re
from pathlib import Path

import pytest

from jobs.cli.config import Config, check_many_runs, load_config, parse_config
from jobs.cli.errors import ConfigError
from tests.jobs.test_train import write_config
from training.sharding.table_planner import check_lane

SETTING = re.compile(r"([a-z][\w.]*) = (\"[^\"]*\"|\{[^}]*\}|[\w.+-]+)")
"""A setting in an error's text, as a config file has it."""


def settings_in(text: str) -> list[str]:
    """The overrides that a text tells to make."""
    return [f"{key}={value}" for key, value in SETTING.findall(text)]


def load(folder: Path, *overrides: str) -> Config:
    return load_config([str(write_config(folder, folder / "dataset"))], list(overrides))


@pytest.mark.parametrize(
    ("wrong", "prefix"),
    [
        (["training.precision=tf32"], ""),
        (["pipeline.input.format.separator=|", 'pipeline.input.format.quote="|"'], "pipeline.input.format."),
        (["training.monitor={ logloss = 1.0 }"], "training.monitor."),
    ],
)
def test_a_setting_that_a_config_error_tells_to_make(tmp_path: Path, wrong: list[str], prefix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, *wrong)
    cure = settings_in(str(refused.value))[-1]
    load(tmp_path, *wrong, f"{prefix}{cure}")


@pytest.mark.parametrize("num_workers", ["3", "[2, 3]", "[1, 4]"])
def test_a_number_of_streams_that_suits_the_workers(tmp_path: Path, num_workers: str) -> None:
    wrong = [f"training.num_workers={num_workers}", "training.reader.num_streams=2"]
    with pytest.raises(ConfigError, match="must be a multiple of") as refused:
        load(tmp_path, *wrong)
    (number,) = re.findall(r": (\d+) is one", str(refused.value))
    sizes = [f"training.{name}_batch_size={number}" for name in ("global", "evaluation")]
    config = load(tmp_path, *wrong, f"training.reader.num_streams={number}", *sizes)
    least, *_, most = (*re.findall(r"\d", num_workers), *re.findall(r"\d", num_workers))
    assert parse_config(config.to_dict()).training.worker_counts == range(int(least), int(most) + 1)


def test_a_checkpoint_folder_that_many_runs_would_share_is_left_out(tmp_path: Path) -> None:
    shared = load(tmp_path, f"training.checkpoint.folder={tmp_path}")
    with pytest.raises(ConfigError, match="leave it out"):
        check_many_runs([shared])
    check_many_runs([load(tmp_path)])


@pytest.mark.parametrize(
    "wrong",
    [
        ['training.optimizer={ kind = "dense" }', "training.sharding.default=row_wise"],
        ["training.sharding.device_memory=1.0"],
        ["training.optimizer.embedding_optimizer=adam"],
    ],
)
def test_settings_that_a_lane_tells_to_make(tmp_path: Path, wrong: list[str]) -> None:
    with pytest.raises(ValueError, match=r"set |, or ") as refused:
        check_lane(load(tmp_path, *wrong).training, "cpu")
    (*_, kind) = re.findall(r'training\.optimizer\.kind = "(\w+)"', str(refused.value))
    config = load(
        tmp_path, *(word for word in wrong if "optimizer" not in word), f'training.optimizer={{ kind = "{kind}" }}'
    )
    check_lane(config.training, "cuda" if 'device = "cuda"' in str(refused.value) else "cpu")
    if "use rowwise_adagrad, adagrad or sgd" in str(refused.value):
        for name in ("rowwise_adagrad", "adagrad", "sgd"):
            check_lane(load(tmp_path, f"training.optimizer.embedding_optimizer={name}").training, "cpu")
