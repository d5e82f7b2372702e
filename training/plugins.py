"""Plugins: blocks of a model and metrics from modules of the user's own, which register them when they are imported.

A config names the modules (``training.plugins``); docs/extending.md shows some. No engine is imported here.
"""

import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, WrapValidator

PLUGINS_VARIABLE = "TWINFOCUS_PLUGINS"
"""Environment variable: modules, with commas between them, that a saved config may ask for."""
MODULE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$"
"""Names that a plugin's module may have."""


class PluginError(ValueError):
    """A plugin cannot be imported, or what it registers cannot be used; the message names the module."""


class BlockKinds:
    """Kinds of one block of a model: those of the tree and those that plugins have registered.

    Attributes:
        block: name of the block, for messages.
        classes: kind of a plugin -> the class that is built from a config of that kind.
    """

    def __init__(self, block: str) -> None:
        self.block = block
        self.classes: dict[str, Any] = {}
        self._configs: dict[str, type] = {}
        self._own: set[str] = set()

    def opened(self, union: Any) -> WrapValidator:
        """Annotation that lets a discriminated union take the kinds of plugins too.

        Args:
            union: config dataclasses of the tree, each with its ``kind``.
        """
        own = [config.kind for config in get_args(union)]
        self._own.update(own)

        def validate(value: Any, validate_own: Callable[[Any], Any]) -> Any:
            kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
            if not isinstance(kind, str) or kind in own:
                return validate_own(value)
            if kind not in self._configs:
                known = ", ".join((*own, *self._configs))
                raise ValueError(
                    f"no {self.block} is of kind {kind!r}; there are {known}, and those of the modules that "
                    "training.plugins names"
                )
            return TypeAdapter(self._configs[kind]).validate_python(value)

        return WrapValidator(validate)

    def add(self, config: type, class_: Any) -> None:
        """Register a kind.

        Raises:
            PluginError: the config is no dataclass of the form that configs have, or its kind is taken.
        """
        kind, origin = _kind(config), f"{config.__module__}.{config.__qualname__}"
        if kind in self._own:
            raise PluginError(f"{origin} registers the {self.block} kind {kind!r}, which is twinfocus's own: rename it")
        if kind in self._configs:
            other = self._configs[kind]
            raise PluginError(
                f"{origin} registers the {self.block} kind {kind!r}, which {other.__module__}.{other.__qualname__} has "
                "registered: rename one of them"
            )
        if not callable(class_):
            raise PluginError(f"{origin} is registered with {class_!r:.80}, which cannot be called to make a {kind!r}")
        self._configs[kind], self.classes[kind] = config, class_

    def keys(self) -> set[str]:
        """Config keys of all plugins' kinds."""
        return {field.name for config in self._configs.values() for field in fields(config)}

    @property
    def registries(self) -> tuple[dict[str, Any], ...]:
        """Return the dicts that ``add`` adds to."""
        return self._configs, self.classes


ENCODER_KINDS = BlockKinds("encoder")
HISTORY_KINDS = BlockKinds("history encoder")
SELECTION_KINDS = BlockKinds("selection")
FUSION_KINDS = BlockKinds("fusion")
OBJECTIVE_KINDS = BlockKinds("objective")
_ALL_KINDS = (ENCODER_KINDS, HISTORY_KINDS, SELECTION_KINDS, FUSION_KINDS, OBJECTIVE_KINDS)

PLUGIN_METRICS: dict[str, Any] = {}
"""Metrics that plugins have registered, by name (``training.judge.metrics.register_metric``)."""
_REGISTRIES = (*(registry for kinds in _ALL_KINDS for registry in kinds.registries), PLUGIN_METRICS)


def register_encoder(config: type, encoder: Any) -> None:
    """Add an encoder.

    Args:
        config: frozen ``pydantic.dataclasses.dataclass`` with ``config=STRICT`` and a ``kind``.
        encoder: subclass of ``training.model.encoders.Encoder``.

    Raises:
        PluginError: the config is not of that form, or its kind is taken.
    """
    ENCODER_KINDS.add(config, encoder)


def register_history_encoder(config: type, encoder: Any) -> None:
    """Add an encoder of a sequence's events, a subclass of ``training.model.histories.HistoryEncoder``.

    Args and errors as of ``register_encoder``.
    """
    HISTORY_KINDS.add(config, encoder)


def register_selection(config: type, selection: Any) -> None:
    """Add a selection, a subclass of ``training.model.selection.Selection`` that reads the shared stream.

    Args and errors as of ``register_encoder``.
    """
    SELECTION_KINDS.add(config, selection)


def register_fusion(config: type, fusion: Any) -> None:
    """Add a fusion, a subclass of ``training.model.fusion.Fusion``.

    Args and errors as of ``register_encoder``.
    """
    FUSION_KINDS.add(config, fusion)


def register_objective(config: type, objective: Any) -> None:
    """Add an objective: a class that is built from its config and called as ``training.model.objective.Objective``.

    Args:
        config: config like that of ``register_encoder``, with ``reads_branch_logits: ClassVar[bool]``. False: the loss
            is of the fused logit alone, so a model of one stream may have it, and heads that feed no loss are not
            trained.
        objective: the class.

    Raises:
        PluginError: as ``register_encoder``.
    """
    if not isinstance(getattr(config, "reads_branch_logits", None), bool):
        raise PluginError(
            f"{config.__module__}.{config.__qualname__} needs reads_branch_logits: ClassVar[bool], which says whether "
            "the loss reads the logits of the easy and the hard branch"
        )
    OBJECTIVE_KINDS.add(config, objective)


def _kind(config: type) -> str:
    """Return the kind of a config dataclass.

    Raises:
        PluginError: it would take unknown keys, can be changed, or does not say its kind.
    """
    settings: dict[str, Any] = getattr(config, "__pydantic_config__", {})
    frozen = getattr(getattr(config, "__dataclass_params__", None), "frozen", False)
    kind = getattr(config, "kind", None)
    annotation = get_type_hints(config).get("kind") if kind is not None else None
    if not (
        settings.get("extra") == "forbid"
        and frozen
        and get_origin(annotation) is Literal
        and get_args(annotation) == (kind,)
        and isinstance(kind, str)
    ):
        raise PluginError(
            f"{getattr(config, '__module__', '')}.{getattr(config, '__qualname__', config)} is no config of a plugin: "
            "it must be a pydantic.dataclasses.dataclass(frozen=True, config=features.schema.STRICT) with a field "
            'kind: Literal["..."] = "..."'
        )
    return kind


def plugin_keys() -> set[str]:
    """Config keys of everything that plugins have registered."""
    return set().union(*(kinds.keys() for kinds in _ALL_KINDS))


def registered() -> list[dict[str, Any]]:
    """Copy all that plugins have registered, for ``restore``."""
    return [dict(registry) for registry in _REGISTRIES]


def restore(before: list[dict[str, Any]]) -> None:
    """Go back to what was registered before."""
    for registry, then in zip(_REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(then)


# ----------------------------------------------------------------------------------------------------------- importing


def load_plugins(training: Any) -> None:
    """Import the plugins of the user's own config; programs that this one starts may then import them too.

    Args:
        training: the config's training section, not yet checked; where its ``plugins`` is no list of names, nothing is
            imported, and the check of the config says so.

    Raises:
        PluginError: a plugin cannot be imported or used.
    """
    names = _plugins_of(training)
    for name in names:
        _import(name)
    if names:
        os.environ[PLUGINS_VARIABLE] = ",".join(dict.fromkeys([*_allowed(), *names]))


def load_saved_plugins(training: Any, source: object) -> None:
    """Import the plugins of a saved config if the user has named them as well: no file chooses which code runs.

    Those are the modules that are imported already, by the user's own config or code, and those in the environment
    variable TWINFOCUS_PLUGINS.

    Args:
        training: the saved training section, not yet checked.
        source: file or folder of the section, for messages.

    Raises:
        PluginError: the user has not named a plugin, or it cannot be imported or used.
    """
    for name in _plugins_of(training):
        if name not in sys.modules and name not in _allowed():
            raise PluginError(
                f"{source} needs the plugin {name!r:.80}, and no file may choose which code runs here: if you trust "
                f"that module, set {PLUGINS_VARIABLE}={name:.80}"
            )
        _import(name)


def _plugins_of(training: Any) -> list[str]:
    names = training.get("plugins") if isinstance(training, dict) else None
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return []
    return list(names)


def _allowed() -> list[str]:
    return [name.strip() for name in os.environ.get(PLUGINS_VARIABLE, "").split(",") if name.strip()]


def _import(name: str) -> None:
    """Import one plugin; of one that fails nothing stays registered."""
    if not re.fullmatch(MODULE_PATTERN, name):
        raise PluginError(f"plugin {name!r:.80} is not the name of a module, as my_package.encoders is one")
    before = registered()
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        restore(before)
        raise PluginError(_explain(name, error)) from error


def _explain(name: str, error: BaseException) -> str:
    if isinstance(error, PluginError):
        return f"plugin {name}: {error}"
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return (
            f"plugin {name} is not found: no module {error.name!r} can be imported here; its folder must be in "
            "PYTHONPATH of this program and of its workers"
        )
    return f"plugin {name} cannot be imported: {type(error).__name__}: {error}"
