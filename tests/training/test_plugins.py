"""Plugins from outside the tree: their configs are checked as all are, and models with them train, ship and score."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.disk.artifact import ArtifactError
from features.disk.trained_on import TrainedOn
from jobs.cli.config import Config, load_config, parse_config
from jobs.cli.errors import ConfigError
from jobs.pages.report_files import read_run
from jobs.pages.report_page import render_report
from tests.stand_ins.plugin import page_files
from tests.stand_ins.tiny_dataset import TINY_FEATURES, TinyDataset
from tests.stand_ins.tiny_model import COLUMNS, raw_rows
from training import plugins
from training.fit.run import Run, train_rank
from training.judge.metrics import METRICS, evaluate
from training.judge.scores import Scores
from training.model.encoders import ENCODERS
from training.model.objective import OBJECTIVES
from training.plugins import PluginError
from training.ship.export import export, load_best
from training.ship.predict import Predictor

UserModules = Callable[[dict[str, str]], Path]

PAGE = page_files()
MINE = tomllib.loads(PAGE["mine.toml"])["training"]
HEADER = """\
from typing import ClassVar, Literal
from pydantic.dataclasses import dataclass
from features.schema import STRICT
from training import plugins
"""
BLOCK = """
@dataclass(frozen=True, config=STRICT)
class {name}:
    width: int = 4
    kind: Literal["{kind}"] = "{kind}"
plugins.register_encoder({name}, lambda *arguments: None)
"""


def tree(training: dict[str, Any], **model: Any) -> dict[str, Any]:
    features = tomllib.loads(TINY_FEATURES)["features"]
    section = {"dataset": "unused", **training, "model": {**training.get("model", {}), **model}}
    return {"features": features, "pipeline": {"output": "unused"}, "training": section}


def write_run(folder: Path, dataset: TinyDataset, config: Config) -> Run:
    """The files of a run that ``jobs.train`` writes before it trains."""
    run = Run(folder / "run")
    run.write("config.json", config.to_dict())
    run.write_dataset(TrainedOn.of(dataset.path, dataset.manifest).to_json())
    return run


def check_brier(run: Run, metrics: dict[str, Any]) -> None:
    """The page's metric is in every file and on the page of a run that monitors it, and is what a naive one gives."""
    scores = load_best(run).score("valid")
    p = 1 / (1 + np.exp(-scores.logits.astype(float)))
    assert metrics["valid"]["brier"] == pytest.approx(
        float(np.average((p - scores.labels) ** 2, weights=scores.weights)), rel=1e-6
    )
    assert json.loads((run.path / "evaluation" / "valid.json").read_text())["metrics"] == metrics["valid"]
    checks = [e for e in map(json.loads, run.history.read_text().splitlines()) if e["event"] == "evaluation"]
    assert [e["monitor"] for e in checks] == [e["auc"] - e["brier"] for e in checks] and len(checks) > 1
    [best] = [e for e in checks if e["step"] == metrics["best_step"]]
    assert best["monitor"] == max(e["monitor"] for e in checks)
    before = plugins.registered()
    plugins.restore([{} for _ in before])
    assert "brier" not in METRICS, "the report imports no plugin"
    assert render_report(read_run(run.path)).count(">brier</th>") == 2
    plugins.restore(before)


def forget(name: str) -> None:
    """Make this process one that never imported the user's plugins."""
    plugins.restore([{} for _ in plugins.registered()])
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


# ------------------------------------------------------------------------------------------------------------- configs


def test_a_plugins_kinds_are_configured_as_our_own(user_modules: UserModules) -> None:
    folder = user_modules(PAGE)
    (folder / "base.toml").write_text(TINY_FEATURES + '[pipeline]\noutput = "o"\n[training]\ndataset = "d"\n')
    paths = [str(folder / "base.toml"), str(folder / "mine.toml")]
    config = load_config(paths, ["training.model.hard.dropout=0.5", "training.model.embedding_dim=4"])
    hard, objective = config.training.model.hard, config.training.model.objective
    assert type(hard).__name__ == "InnerProductEncoder" and type(objective).__name__ == "FocalObjective"
    assert vars(hard).items() >= {"hidden_units": (16, 8), "dropout": 0.5, "batch_norm": False}.items()
    assert config.training.plugins == ("my_package.encoders", "my_package.objectives", "my_package.metrics")
    assert config.training.monitor == {"auc": 1.0, "brier": -1.0}
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    other = load_config(paths, ["training.model.hard.kind=cin"]).training.model.hard
    assert other.kind == "cin", "another kind replaces a plugin's, keys and all"
    default = load_config(paths, ['training.model.objective={kind="twin_focus"}']).training.model.objective
    assert default.kind == "twin_focus"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"hard": {"kind": "inner_product", "droput": 0.5}},
            r"unknown config key 'training\.model\.hard\.droput'; did you mean 'dropout'\?",
        ),
        ({"hard": {"kind": "inner_product", "dropout": 1.5}}, r"training\.model\.hard\.dropout': .* less than 1"),
        ({"objective": {"kind": "focal", "gama": 1.0}}, r"training\.model\.objective\.gama'; did you mean 'gamma'\?"),
        (
            {"hard": {"kind": "inner_produkt"}},
            r"training\.model\.hard': no encoder is of kind 'inner_produkt'; there are mlp, .*linear, inner_product, "
            r"and those of the modules that training\.plugins names",
        ),
        ({"hard": {"kind": "none"}}, r"no encoder is of kind 'none'"),
        ({"objective": {"kind": "hinge"}}, r"no objective is of kind 'hinge'; there are twin_focus, bce, focal, and"),
        ({"easy": {"kind": 3}}, r"config key 'training\.model\.easy'"),
        ({"easy": {"kind": "none"}, "fusion": {"kind": "single"}, "objective": {"kind": "twin_focus"}}, "one stream"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(user_modules: UserModules, model: dict[str, Any], message: str) -> None:
    user_modules(PAGE)
    with pytest.raises(ConfigError, match=message):
        parse_config(tree(MINE, **model))


def test_without_the_plugin_its_kind_is_unknown_and_the_cure_is_told() -> None:
    with pytest.raises(ConfigError, match=r"'focal'; there are twin_focus, bce, and .* training\.plugins names"):
        parse_config(tree({}, objective={"kind": "focal"}))


@pytest.mark.parametrize("names", ["my_package.encoders", 3, [3], {"a": 1}])
def test_plugins_must_be_a_list_of_names(user_modules: UserModules, names: Any) -> None:
    user_modules(PAGE)
    with pytest.raises(ConfigError, match=r"config key 'training\.plugins"):
        parse_config(tree({"plugins": names}))
    assert "my_package" not in sys.modules


@pytest.mark.parametrize("name", ["", "..os", "os; import x", "a/b", "a.", "1a", "a\n", "a b"])
def test_a_plugin_has_the_name_of_a_module(name: str) -> None:
    with pytest.raises(ConfigError, match="is not the name of a module"):
        parse_config(tree({"plugins": [name]}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no licence')", r"cannot be imported: RuntimeError: no licence"),
        ("import numpyy", r"cannot be imported: ModuleNotFoundError: No module named 'numpyy'"),
        ("def", r"cannot be imported: SyntaxError"),
        (BLOCK.format(name="A", kind="mlp"), r"mine\.A registers the encoder kind 'mlp', which is twinfocus's own"),
        (BLOCK.format(name="A", kind="none"), r"'none', which is twinfocus's own"),
        (
            BLOCK.format(name="A", kind="x") + BLOCK.format(name="B", kind="x"),
            r"mine\.B registers the encoder kind 'x', which mine\.A has registered: rename one",
        ),
        (
            BLOCK.format(name="A", kind="x").replace(", config=STRICT", ""),
            r"mine\.A is no config of a plugin: it must be a pydantic\.dataclasses\.dataclass\(frozen=True, config=",
        ),
        (BLOCK.format(name="A", kind="x").replace("frozen=True, ", ""), r"mine\.A is no config"),
        (BLOCK.format(name="A", kind="x").replace('Literal["x"]', "str"), r"mine\.A is no config"),
        (BLOCK.format(name="A", kind="x").replace(' = "x"', ""), r"cannot be imported: TypeError|mine\.A is no config"),
        ("plugins.register_encoder(int, print)", r"builtins\.int is no config"),
        (BLOCK.format(name="A", kind="x").replace("lambda *arguments: None", "3"), r"registered with 3, which cannot"),
        (BLOCK.format(name="A", kind="x").replace("encoder(", "objective("), r"mine\.A needs reads_branch_logits"),
    ],
)
def test_a_plugin_that_cannot_be_used(user_modules: UserModules, text: str, message: str) -> None:
    user_modules({"mine.py": HEADER + BLOCK.format(name="First", kind="first") + text})
    for _ in range(2):  # the second time it is as the first: nothing of it stays
        with pytest.raises(ConfigError, match=r"training\.plugins: plugin mine.*" + message):
            parse_config(tree({"plugins": ["mine"]}))
        assert "first" not in ENCODERS


METRIC = """
from training.judge.metrics import Metric, register_metric
register_metric("first", Metric(lambda scores: 0.5, "lower", "half"))
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise RuntimeError('no licence')", r"cannot be imported: RuntimeError: no licence"),
        ("raise SystemExit(3)", r"cannot be imported: SystemExit: 3"),
        ("register_metric('auc', Metric(len, 'lower', ''))", r"metric 'auc' cannot be registered: the name is taken"),
        ("register_metric('first', Metric(len, 'lower', ''))", r"'first' cannot be registered: the name is taken"),
        ("register_metric('epochs', Metric(len, 'lower', ''))", r"'epochs' cannot be registered: the name is taken"),
        ("register_metric('a b', Metric(len, 'lower', ''))", r"'a b' cannot be registered: its name must be small"),
        ("register_metric('half', 0.5)", r"'half' cannot be registered: it must be a training\.judge\.metrics\.Metric"),
        ("register_metric('half', Metric(0.5, 'lower', ''))", r"'half' cannot be registered: it must be a"),
        ("register_metric('half', Metric(len, 'less', ''))", r"better must be 'higher', 'lower' or 'one', not 'less'"),
        ("register_metric('half', Metric(len, 'one', '', '.3s'))", r"no number can be printed in the format '\.3s'"),
    ],
)
def test_a_plugin_with_a_metric_that_cannot_be_used(user_modules: UserModules, text: str, message: str) -> None:
    user_modules({"mine.py": METRIC + text})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"^training\.plugins: plugin mine.*" + message):
            parse_config(tree({"plugins": ["mine"]}))
        assert "first" not in METRICS


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("float('nan')", r"metric 'first' is nan: it must be a finite number, or None"),
        ("'high'", r"metric 'first' cannot be computed: ValueError: could not convert"),
        ("scores.nothing", r"metric 'first' cannot be computed: AttributeError: .* 'nothing'"),
    ],
)
def test_a_metric_that_fails_is_named(user_modules: UserModules, returned: str, message: str) -> None:
    user_modules({"mine.py": METRIC.replace("0.5", returned)})
    parse_config(tree({"plugins": ["mine"]}))
    with pytest.raises(ValueError, match=message):
        evaluate(Scores.of([0.0, 1.0], [0, 1]))


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ({"first": 2.0}, r"'training\.monitor': first = 2 would look for a worse model, since a lower first .* = -2"),
        ({"auc": -1.0}, r"auc = -1 would look for a worse model, since a higher auc is better: set auc = 1"),
        ({"frist": -1.0}, r"'frist' is none of auc, .*, first; did you mean 'first'\?"),
    ],
)
def test_a_monitored_metric_has_its_direction(
    user_modules: UserModules, monitor: dict[str, float], message: str
) -> None:
    user_modules({"mine.py": METRIC})
    with pytest.raises(ConfigError, match=message):
        parse_config(tree({"plugins": ["mine"], "monitor": monitor}))
    assert parse_config(tree({"plugins": ["mine"], "monitor": {"first": -2.0}})).training.monitor == {"first": -2.0}


def test_a_plugin_that_is_not_there(user_modules: UserModules) -> None:
    user_modules({"package/__init__.py": ""})
    for name, missing in (("nowhere.encoders", "nowhere"), ("package.encoders", "package.encoders")):
        with pytest.raises(ConfigError, match=rf"plugin {name} is not found: no module '{missing}' .* PYTHONPATH"):
            parse_config(tree({"plugins": [name]}))


def test_kinds_of_two_plugins_may_not_have_one_name(user_modules: UserModules) -> None:
    user_modules({f"{name}.py": HEADER + BLOCK.format(name="A", kind="x") for name in ("one", "two")})
    with pytest.raises(ConfigError, match=r"plugin two: two\.A registers the encoder kind 'x', which one\.A has"):
        parse_config(tree({"plugins": ["one", "two"]}))
    assert "x" in ENCODERS, "the first one stays"


def test_configs_need_no_engine() -> None:
    program = (
        "import sys, jobs.cli.config, training.plugins\n"
        "assert not {'torch', 'ray', 'pyspark'} & set(sys.modules), 'an engine was imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# -------------------------------------------------------------------------------------------------------------- models


def test_the_pages_encoder_and_objective_against_naive_ones(user_modules: UserModules) -> None:
    user_modules(PAGE)
    model = parse_config(tree(MINE)).training.model
    torch.manual_seed(0)
    encoder = ENCODERS["inner_product"](model.hard, 3, 4)
    x_BFD = torch.randn(5, 3, 4)
    pairs = [(x_BFD[:, f] * x_BFD[:, g]).sum(1, keepdim=True) for f in range(3) for g in range(f + 1, 3)]
    expected = encoder.get_submodule("layers")(torch.cat([*x_BFD.unbind(1), *pairs], dim=1))
    torch.testing.assert_close(encoder(x_BFD, torch.empty(5, 3, 0)), expected)
    assert encoder.output_dim == expected.shape[1] == 8

    from training.model.fusion import TwinLogits

    logits, labels, weights = torch.randn(6), torch.tensor([0.0, 1, 1, 0, 1, 0]), torch.rand(6)
    p = torch.where(labels == 1, torch.sigmoid(logits), 1 - torch.sigmoid(logits))
    found = OBJECTIVES["focal"](model.objective)(TwinLogits(logits, logits, logits), labels, weights, 7.0)
    torch.testing.assert_close(found, (weights * (1 - p) ** 1.5 * -p.log()).sum() / 7)


def test_the_pages_history_encoder_against_a_naive_one(user_modules: UserModules) -> None:
    user_modules(PAGE)
    mine = {"plugins": ["my_package.histories"]}
    config = parse_config(tree(mine, sequences={"clicks": {"kind": "fading", "keep": 0.5, "length": 3}}))
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    from training.model.histories import HISTORY_ENCODERS

    encoder = HISTORY_ENCODERS["fading"](config.training.model.sequences["clicks"], 2, 0, 0)
    events, lengths = torch.randn(5, 2), torch.tensor([4, 0, 1])
    found = encoder(torch.randn(3, 2), events, lengths)
    mean = (events[0] + events[1] / 2 + events[2] / 4) / 1.75
    torch.testing.assert_close(found, torch.stack([mean, torch.zeros(2), events[4]]))


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ({"kind": "fading", "kep": 0.5}, r"unknown config key 'training\.model\.sequences\.clicks\.kep'.*'keep'"),
        ({"kind": "fading", "keep": 2}, r"sequences\.clicks\.keep': .*less than or equal to 1"),
        ({"kind": "sdim", "num_hashes": 50}, r"num_hashes \(50\) must be a multiple of bits \(3\)"),
        ({"kind": "sdim", "short": {"kind": "sdim"}}, r"no history encoder is of kind 'sdim'; there are mean, din, "),
        ({"kind": "transformer", "num_heads": 5}, r"attention_dim \(32\) must be a multiple of num_heads \(5\)"),
        ({"kind": "din", "scale": True}, r"set softmax = true, or leave out scale"),
        ({"kind": "mlp"}, r"no history encoder is of kind 'mlp'; there are mean, din, asta, transformer, sdim, fading"),
    ],
)
def test_what_is_wrong_with_a_history_encoder_is_said(
    user_modules: UserModules, history: dict[str, Any], message: str
) -> None:
    user_modules(PAGE)
    with pytest.raises(ConfigError, match=message):
        parse_config(tree({"plugins": ["my_package.histories"]}, sequences={"clicks": history}))


def test_a_model_without_sequences_says_nothing_of_them() -> None:
    assert "sequences" not in parse_config(tree({})).to_dict()["training"]["model"]
    with_one = parse_config(tree({}, sequences={"clicks": {"kind": "din"}})).to_dict()
    assert with_one["training"]["model"]["sequences"]["clicks"]["hidden_units"]


def test_an_encoder_must_say_how_wide_its_output_is(user_modules: UserModules) -> None:
    lines = PAGE["my_package/encoders.py"].replace("        self.output_dim = config.hidden_units[-1]\n", "")
    user_modules({**PAGE, "my_package/encoders.py": lines})
    from training.model.ctr_model import CTRModel
    from training.model.embedding import ModelError

    config = parse_config(tree(MINE))
    rows = dict.fromkeys(config.features.sparse_names, 10)
    with pytest.raises(ModelError, match=r"hard encoder \(InnerProduct\) does not say .* must set output_dim"):
        CTRModel(config.features, rows, config.training.model)


@pytest.mark.usefixtures("one_rank")
def test_a_model_of_plugins_trains_ships_and_scores(
    user_modules: UserModules, make_dataset: Callable[..., TinyDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = user_modules(PAGE)
    dataset = make_dataset()
    training = {**MINE, "dataset": str(dataset.path), "max_epochs": 4, "global_batch_size": 16}
    training["optimizer"] = {"kind": "fused", "embedding_learning_rate": 0.1}
    config = parse_config(tree(training, embedding_dim=8, embedding_init_std=0.1))
    run = write_run(tmp_path, dataset, config)
    metrics = train_rank(run, config.training)
    assert metrics["valid"]["auc"] > 0.6
    check_brier(run, metrics)
    golden = tmp_path / "golden.csv"
    golden.write_text(",".join(COLUMNS) + "\n" + "\n".join(",".join(map(str, r.values())) for r in raw_rows(20)))
    export(run, tmp_path / "artifact", str(golden))
    expected = Predictor.load(tmp_path / "artifact").predict(raw_rows(50, seed=1))
    assert len(np.unique(expected)) > 10

    # Another process, whose user names no plugin, one who names it, and one who has another version of it.
    forget("my_package")
    monkeypatch.setenv(plugins.PLUGINS_VARIABLE, "")
    with pytest.raises(ArtifactError, match=r"artifact needs the plugin 'my_package\.encoders'.* set TWINFOCUS"):
        Predictor.load(tmp_path / "artifact")
    with pytest.raises(PluginError, match=r"run needs the plugin 'my_package\.encoders'"):
        load_best(run)
    assert "my_package" not in sys.modules
    monkeypatch.setenv(plugins.PLUGINS_VARIABLE, "my_package.encoders, my_package.objectives,my_package.metrics")
    assert (Predictor.load(tmp_path / "artifact").predict(raw_rows(50, seed=1)) == expected).all()
    assert load_best(run).config.model.hard.kind == "inner_product"

    forget("my_package")
    (folder / "my_package" / "encoders.py").write_text(
        PAGE["my_package/encoders.py"].replace("torch.cat([x_BFD.flatten(1)", "torch.cat([-x_BFD.flatten(1)")
    )
    with pytest.raises(ArtifactError, match="this installation would serve other probabilities"):
        Predictor.load(tmp_path / "artifact")


BLOCKS = """
from training.model.fusion import TwinFusion
from training.model.selection import Shared

@dataclass(frozen=True, config=STRICT)
class HalfSelection:
    kind: Literal["half"] = "half"

class Half(Shared):
    def forward(self, streams):
        return streams["shared"] / 2, streams["shared"]

@dataclass(frozen=True, config=STRICT)
class MeanFusion:
    kind: Literal["mean"] = "mean"

class Mean(TwinFusion):
    def fuse(self, easy_BH, hard_BH, easy_B, hard_B):
        return (easy_B + hard_B) / 2

plugins.register_selection(HalfSelection, Half)
plugins.register_fusion(MeanFusion, Mean)
"""


@pytest.mark.usefixtures("one_rank")
def test_selections_and_fusions_are_registered_too(
    user_modules: UserModules, make_dataset: Callable[..., TinyDataset], tmp_path: Path
) -> None:
    user_modules({"blocks.py": HEADER + BLOCKS})
    dataset = make_dataset()
    training = {"plugins": ["blocks"], "dataset": str(dataset.path), "max_epochs": 1, "global_batch_size": 32}
    config = parse_config(tree(training, selection={"kind": "half"}, fusion={"kind": "mean"}, embedding_dim=8))
    run = write_run(tmp_path, dataset, config)
    train_rank(run, config.training)
    model = load_best(run).model
    assert (type(model.selection).__name__, type(model.fusion).__name__) == ("Half", "Mean")
