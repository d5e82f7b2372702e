"""Config: TOML files layered left to right, then ``section.key=value`` overrides, checked key by key."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from features.disk.dataset import DatasetManifest
from features.schema import STRICT, FeatureSchema, expand_names
from jobs.cli.errors import ConfigError
from jobs.cli.retrain_config import RetrainConfig
from pipeline.config import PipelineConfig
from training.config import TrainingConfig
from training.from_data import RULES, open_keys
from training.judge.metrics import METRICS
from training.plugins import PluginError, load_plugins, load_saved_plugins, plugin_keys

REPLACED_WHOLE = ("monitor",)
"""Tables that a later layer replaces instead of adding to."""

Texts = tuple[str, ...]
T = TypeVar("T")


@dataclass(frozen=True, config=STRICT)
class Config:
    """Config root: one section for each package."""

    features: FeatureSchema
    pipeline: PipelineConfig
    training: TrainingConfig
    retrain: RetrainConfig | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved config as plain JSON values; one without encoders of sequences has no key for them."""
        tree = json.loads(json.dumps(asdict(self)))
        if not self.training.model.sequences:
            del tree["training"]["model"]["sequences"]
        return tree


@dataclass(frozen=True, config=STRICT)
class Entry:
    """Entry of a leaderboard or a search: a name, config files laid over each other, then overrides."""

    name: str
    configs: Texts = ()
    overrides: Texts = ()

    @property
    def folder(self) -> str:
        """Name as part of a path."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")


def check_names(kind: str, entries: Sequence[Entry]) -> None:
    """Refuse entries that would share a folder.

    Raises:
        ValueError: names the folders.
    """
    folders = [entry.folder for entry in entries]
    if len(set(folders)) < len(folders) or not all(folders):
        raise ValueError(f"{kind} need names that differ in letters or digits: {', '.join(folders)}")


def load_config(paths: list[str], overrides: list[str] = ()) -> Config:  # pyright: ignore[reportArgumentType]
    """Load config files, lay them over each other, apply overrides, and check the result.

    Args:
        paths: TOML files; later ones win.
        overrides: ``section.key=value``; the value is TOML if it parses as TOML, else text.

    Raises:
        ConfigError: names the file or the key, and for an unknown key the nearest known one.
    """
    tree: dict[str, Any] = {}
    for path in paths:
        _merge(tree, read_toml(path))
    for override in overrides:
        _override(tree, override)
    return parse_config(tree)


def read_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Read ``section.key=value`` words as a tree.

    Raises:
        ConfigError: a word is none.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        _override(tree, override)
    return tree


def read_resolved(path: str) -> Config:
    """Read and check a resolved config: JSON, as ``Config.to_dict`` gives it; nothing is laid over it.

    Raises:
        ConfigError: the file is absent or no JSON object; or as ``load_config``.
        PluginError: the file needs a plugin that the user has not named.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path} cannot be read: it is no JSON object")
    return parse_config(tree, path)


def read_toml(path: str) -> dict[str, Any]:
    """Read one TOML file.

    Raises:
        ConfigError: it is absent or no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error


def read_checked(path: str, type_: type[T]) -> T:
    """Read one TOML file into a checked dataclass.

    Raises:
        ConfigError: names the file and the key.
    """
    try:
        return TypeAdapter(type_).validate_python(read_toml(path))
    except ValidationError as error:
        lines = []
        for detail in error.errors():
            key, words = ".".join(map(str, detail["loc"])), detail["msg"].removeprefix("Value error, ")
            lines.append(f"{key}: {words}" if key else words)
        raise ConfigError(f"{path}: {'; '.join(lines)}") from error


def parse_config(tree: dict[str, Any], source: object = None) -> Config:
    """Check a config tree, as read from TOML or from a saved resolved config; its plugins are imported.

    Args:
        tree: the sections.
        source: file or folder of a saved config; None: the user gives the config now.

    Raises:
        ConfigError: as ``load_config``.
        PluginError: ``source`` needs a plugin that the user has not named.
    """
    if source is not None:
        load_saved_plugins(tree.get("training"), source)
    else:
        try:
            load_plugins(tree.get("training"))
        except PluginError as error:
            raise ConfigError(f"training.plugins: {error}") from error
    try:
        features = tree.get("features")
        if isinstance(features, dict):
            tree = {**tree, "features": _expand_features(features)}
        if source is None:
            tree = _with_open_keys(tree)
        tree = _with_dataset(_merge(_defaults(), tree))
        config = TypeAdapter(Config).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error
    except RecursionError:
        raise ConfigError("the config is nested too deeply") from None
    _check_monitor(config.training.monitor, is_saved=source is not None)
    if unknown := sorted(set(config.training.from_data) - set(RULES)):
        raise ConfigError(f"config key 'training.from_data': {unknown[0]!r} is none of {', '.join(RULES)}")
    return config


def is_saved_config(tree: dict[str, Any], config: Config) -> bool:
    """Tell whether a saved resolved config equals this one; keys that it lacks count with their defaults."""
    try:
        return parse_config(tree, "a saved config") == config
    except (ConfigError, PluginError):  # a key or a value that is no more, or that the config does not name
        return False


def check_manifest(config: Config, manifest: DatasetManifest) -> None:
    """Refuse a dataset that the config cannot be trained on.

    Raises:
        ValueError: it was built from another feature schema.
        ConfigError: a monitored metric needs what the schema lacks.
    """
    if config.features.fingerprint != manifest.schema_fingerprint:
        raise ValueError(
            f"{config.training.dataset} was built from another feature schema (fingerprint "
            f"{manifest.schema_fingerprint[:12]}) than the config's ({config.features.fingerprint[:12]}): build it "
            "again or use its own config"
        )
    grouped = [name for name in config.training.monitor if METRICS[name].needs_groups]
    if grouped and not manifest.schema.group_id:
        raise ConfigError(f"training.monitor uses {', '.join(grouped)}, which needs features.group_id")


def check_many_runs(configs: Iterable[Config]) -> None:
    """Refuse a checkpoint folder that several runs would share.

    Raises:
        ConfigError: a config names one.
    """
    if any(config.training.checkpoint.folder is not None for config in configs):
        raise ConfigError("training.checkpoint.folder is for a single run, and here are many: leave it out")


def _defaults() -> dict[str, Any]:
    """Return the default config as a tree, so that a file may change one key of a variant without naming its kind."""
    tree = {"pipeline": asdict(PipelineConfig(output="")), "training": asdict(TrainingConfig(dataset=""))}
    del tree["pipeline"]["output"], tree["training"]["dataset"]
    return tree


def _with_open_keys(tree: dict[str, Any]) -> dict[str, Any]:
    """List the training keys that the user leaves to the data, unless the config lists them itself."""
    training = tree.get("training", {})
    if not isinstance(training, dict) or "from_data" in training:
        return tree
    return {**tree, "training": {**training, "from_data": open_keys(training)}}


def _with_dataset(tree: dict[str, Any]) -> dict[str, Any]:
    """Train on what is built, unless the config names a dataset; a build needs no word of training."""
    pipeline, training = tree["pipeline"], tree["training"]
    if not isinstance(pipeline, dict) or not isinstance(training, dict) or "dataset" in training:
        return tree
    output = pipeline.get("output")  # without one the config is refused, for that key alone
    return {**tree, "training": {**training, "dataset": output if isinstance(output, str) else ""}}


def _merge(base: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """Lay ``layer`` over ``base``, in place."""
    for key, value in layer.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(key), dict) and key not in REPLACED_WHOLE
        # A table of another kind replaces the old one: its keys belong to another class.
        if both_tables and value.get("kind", base[key].get("kind")) == base[key].get("kind"):
            _merge(base[key], value)
        else:
            base[key] = value
    return base


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    if last == "kind" and isinstance(value, str) and tree.get("kind", value) != value:
        tree.clear()
    if isinstance(value, dict):
        _merge(tree, {last: value})
    else:
        tree[last] = value


def _check_monitor(monitor: Mapping[str, float], is_saved: bool) -> None:
    """Refuse a metric that is unknown or has no direction, and in a config of now a weight against its direction."""
    known = [name for name, metric in METRICS.items() if metric.better != "one"]
    for name in monitor:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ConfigError(f"config key 'training.monitor': {name!r} is none of {', '.join(known)}{hint}")
        if not is_saved and monitor[name] * METRICS[name].sign < 0:
            metric = METRICS[name]
            raise ConfigError(
                f"config key 'training.monitor': {name} = {monitor[name]:g} would look for a worse model, since a "
                f"{metric.better} {name} is better: set {name} = {-monitor[name]:g}"
            )


def _expand_features(features: dict[str, Any]) -> dict[str, Any]:
    """Turn ``names = ["C{1..26}"]`` into one feature a name, with the same settings."""
    expanded = dict(features)
    for group in ("sparse", "dense"):
        entries = features.get(group)
        if not isinstance(entries, list | tuple):
            continue
        result: list[Any] = []
        for entry in entries:
            names = entry.get("names") if isinstance(entry, dict) else None
            if names is None:
                result.append(entry)
                continue
            rest = {k: v for k, v in entry.items() if k != "names"}
            result += [{"name": name, **rest} for name in _expand(f"features.{group}.names", names)]
        expanded[group] = result
    if isinstance(features.get("carry"), list):
        expanded["carry"] = list(_expand("features.carry", features["carry"]))
    return expanded


def _expand(key: str, names: Any) -> Texts:
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"config key {key!r} must be a list of names (got {names!r:.80})")
    try:
        return expand_names(names)
    except ValueError as error:
        raise ConfigError(f"config key {key!r}: {error}") from error


def _explain(error: ValidationError) -> str:
    lines = []
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        if detail["type"] == "unexpected_keyword_argument":
            nearest = difflib.get_close_matches(str(detail["loc"][-1]), _known_keys(), n=1, cutoff=0.5)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            lines.append(f"unknown config key {key!r}{hint}")
        elif detail["type"] in ("missing", "missing_argument"):
            lines.append(f"config key {key!r} is required")
        else:
            message, value = detail["msg"].removeprefix("Value error, "), detail["input"]
            # A message of our own says what is wrong of a table; the table says nothing more.
            is_told = message != detail["msg"] and isinstance(value, dict)
            lines.append(f"config key {key!r}: {message}" + ("" if is_told else f" (got {value!r:.80})"))
    return "; ".join(lines)


def _known_keys() -> list[str]:
    """List the keys of all config dataclasses."""
    import features.log_format
    import features.schema
    import jobs.cli.data_checks_config
    import jobs.cli.retrain_config
    import pipeline.config
    import training.config
    import training.judge.gate

    keys = {field.name for field in fields(Config)}  # pyright: ignore[reportArgumentType]
    modules = (features.schema, features.log_format, pipeline.config, training.config)
    for module in (*modules, training.judge.gate, jobs.cli.data_checks_config, jobs.cli.retrain_config):
        for item in vars(module).values():
            if isinstance(item, type) and hasattr(item, "__dataclass_fields__"):
                keys |= set(item.__dataclass_fields__)
    return sorted(keys | plugin_keys())
