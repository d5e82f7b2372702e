"""Every config file that is shipped, layered as a user would."""

from pathlib import Path

import pytest

from jobs.cli.config import load_config, parse_config
from jobs.cli.errors import ConfigError
from training.model.ctr_model import CTRModel

CONFIGS = Path("jobs/configs")
DATASETS = sorted(CONFIGS.glob("*.toml"))
MODELS = sorted((CONFIGS / "models").glob("*.toml"))
TWIN_FOCUS = CONFIGS / "models" / "twin_focus"


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda p: p.stem)
def test_dataset_configs_load_and_say_what_they_cost(dataset: Path) -> None:
    load_config([str(dataset)])
    header = dataset.read_text().split("[features]")[0]
    assert f"jobs.build_dataset --config jobs/configs/{dataset.name}" in header
    assert "jobs.train" in header and "Cost" in header and "Expect" in header


@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.stem)
def test_models_lie_over_a_dataset_and_twin_focus_over_any_of_them(model: Path) -> None:
    layers = ["jobs/configs/frappe.toml", str(model)]
    alone = load_config(layers).training.model
    assert alone.objective.kind == "bce"
    streams = "one_stream" if alone.easy.kind == "none" else "two_streams"
    twin = load_config([*layers, str(TWIN_FOCUS / f"{streams}.toml")])
    assert twin.training.model.objective.kind == "twin_focus" and twin.training.model.hard == alone.hard
    rows = dict.fromkeys(twin.features.sparse_names, 10)
    for config in (alone, twin.training.model):
        assert CTRModel(twin.features, rows, config, device="meta").num_parameters > 0


@pytest.mark.parametrize("overlay", sorted((CONFIGS / "movielens_1m").glob("*.toml")), ids=lambda p: p.stem)
def test_overlays_of_a_dataset_change_it_and_say_how_to_run(overlay: Path) -> None:
    alone, laid = (load_config(["jobs/configs/movielens_1m.toml", *more]) for more in ([], [str(overlay)]))
    assert alone != laid
    header = [line for line in overlay.read_text().splitlines() if line.startswith("#")]
    assert any("jobs.train" in line and f"--config {overlay}" in line for line in header)
    assert any("Cost" in line for line in header)


@pytest.mark.parametrize("name", ["frappe", "movielens_1m"])
def test_the_papers_schedule_lies_over_the_dataset(name: str) -> None:
    training = load_config([f"jobs/configs/{name}.toml", "jobs/configs/schedules/paper.toml"]).training
    assert (training.precision, training.ema_decay, training.optimizer.learning_rate) == ("float32", 0.0, 1e-3)
    assert (training.schedule.factor, training.schedule.patience, training.clip_gradient_norm) == (0.1, 2, 10.0)
    assert training.optimizer.kind == "dense" and training.monitor == {"auc": 1.0, "gauc": 1.0}


def test_a_message_of_a_table_does_not_print_the_table() -> None:
    features = {"label": "behavior = buy", "sparse": [{"name": "u", "encoding": {"kind": "vocabulary"}}]}
    with pytest.raises(ConfigError) as error:
        parse_config({"features": features, "pipeline": {"output": "x"}, "training": {"dataset": "x"}})
    assert str(error.value).startswith("config key 'features': label must be")
    assert str(error.value).endswith("got 'behavior = buy'")


FEATURES = {"label": "click", "sparse": [{"name": "u", "encoding": {"kind": "vocabulary"}}]}


def test_what_is_built_is_trained_on_unless_the_config_names_a_dataset(tmp_path: Path) -> None:
    assert parse_config({"features": FEATURES, "pipeline": {"output": "built"}}).training.dataset == "built"
    others = {"features": FEATURES, "pipeline": {"output": "built"}, "training": {"dataset": "other", "seed": 7}}
    assert parse_config(others).training.dataset == "other"
    path = tmp_path / "c.toml"
    path.write_text('[features]\nlabel = "click"\nsparse = [{ name = "u", encoding = { kind = "vocabulary" } }]\n')
    config = load_config([str(path)], ["training.seed=7", "pipeline.output=elsewhere"])
    assert (config.training.dataset, config.training.seed) == ("elsewhere", 7)


@pytest.mark.parametrize(
    ("tree", "key"),
    [({}, "'pipeline.output' is required"), ({"pipeline": {"output": 3}}, "'pipeline.output': .*string")],
)
def test_a_config_without_an_output_is_refused_for_that_alone(tree: dict, key: str) -> None:
    with pytest.raises(ConfigError, match=f"^config key {key}[^;]*$"):
        parse_config({"features": FEATURES, **tree})
