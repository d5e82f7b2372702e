"""Every config file that is shipped, layered as a user would."""

from pathlib import Path

import pytest

from jobs.config import ConfigError, load_config
from training.model.ctr_model import CTRModel

CONFIGS = Path("jobs/configs")
DATASETS = sorted(CONFIGS.glob("*.toml"))
MODELS = sorted((CONFIGS / "models").glob("*.toml"))
TWIN_FOCUS = 'training.model.objective={kind="twin_focus"}'


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda p: p.stem)
def test_dataset_configs_load_and_say_what_they_cost(dataset: Path) -> None:
    load_config([str(dataset)])
    header = dataset.read_text().split("[features]")[0]
    assert f"jobs.build_dataset --config jobs/configs/{dataset.name}" in header
    assert "jobs.train" in header and "Cost" in header and "Expect" in header


@pytest.mark.parametrize("model", MODELS, ids=lambda p: p.stem)
def test_models_lie_over_a_dataset_and_take_twin_focus_in_one_line(model: Path) -> None:
    layers = ["jobs/configs/frappe.toml", str(model)]
    config = load_config(layers)
    assert config.training.model.objective.kind == "bce"
    rows = dict.fromkeys(config.features.sparse_names, 10)
    assert CTRModel(config.features, rows, config.training.model, device="meta").num_parameters > 0
    if config.training.model.easy.kind == "none":
        with pytest.raises(ConfigError, match="a model of one stream takes"):
            load_config(layers, [TWIN_FOCUS])
    else:
        assert load_config(layers, [TWIN_FOCUS]).training.model.objective.kind == "twin_focus"
