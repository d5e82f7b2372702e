"""Optimizers of a sharded model: which weights have which optimizer, rate and decay, part by part.

A part is a set of weights with one rate. The first part is all tables that no other names, the last one the dense net.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchrec.optim
from torch import nn
from torchrec.distributed import DistributedModelParallel
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad as ReplicatedRowWiseAdagrad

from training.config import DenseOptimizer, FusedOptimizer, TableOptimizer
from training.model.ctr_model import CTRModel
from training.model.embedding import EmbeddingTable, table_of
from training.sharding.tables import fuse_optimizer, fused_optimizer_of

FUSED, TABLES, DENSE = "fused", "tables", "dense"
"""Names of FBGEMM's optimizer, of the replicated tables' and of the dense net's among the combined ones. One of another
kind beside them has its kind behind the name."""

PART_KEY = "part"
"""Key of a parameter group: index of its part."""

FUSED_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": torchrec.optim.RowWiseAdagrad,
    "adagrad": torchrec.optim.Adagrad,
    "sgd": torchrec.optim.SGD,
    "adam": torchrec.optim.Adam,
}
"""Optimizers of sharded tables; the classes are markers, as FBGEMM runs the update inside its backward."""

REPLICATED_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "rowwise_adagrad": ReplicatedRowWiseAdagrad,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}
"""Optimizers of data-parallel tables, whose gradient is dense: a row that was not looked up does not move."""

_MODULES = {"easy_encoder": "easy", "hard_encoder": "hard"}
"""Submodule of the model -> part of the dense net, where they differ."""


@dataclass(frozen=True)
class ModelPart:
    """Weights with one optimizer and one rate.

    Attributes:
        kind: optimizer.
        learning_rate: rate at the start.
        weight_decay: of its matrices; tables have none.
    """

    kind: str
    learning_rate: float
    weight_decay: float = 0.0


class ModelParts:
    """Parts of a model's weights, and which weight belongs to which."""

    def __init__(self, lane: FusedOptimizer | DenseOptimizer, model: CTRModel) -> None:
        """Share a model's weights out.

        Raises:
            ValueError: the lane names a feature or a part that the model has no weights of, or two optimizers for a
                table that features share.
        """
        self.lane = lane
        self.is_fused = isinstance(lane, FusedOptimizer)
        self._tables = {table.name: table for table in model.tables}
        kind = lane.embedding_optimizer if isinstance(lane, FusedOptimizer) else "adam"
        rate = lane.embedding_learning_rate or lane.learning_rate
        self.parts = [ModelPart(kind, rate)]
        self._of_table: dict[str, int] = {}
        for name, choice in _choices(lane, model.tables).items():
            self._of_table[name] = len(self.parts)
            self.parts.append(ModelPart(choice.optimizer or kind, choice.learning_rate or rate))
        self._of_module: dict[str, int] = {}
        present = {_module_of(name) for name, p in model.named_parameters() if not table_of(name) and p.requires_grad}
        for name, part in lane.parts.items():
            if name not in present:
                raise ValueError(f"training.optimizer.parts.{name}: the model has no weights there; leave it out")
            decay = lane.weight_decay if part.weight_decay is None else part.weight_decay
            self._of_module[name] = len(self.parts)
            self.parts.append(ModelPart(part.optimizer, part.learning_rate or lane.learning_rate, decay))
        self.parts.append(ModelPart("adam", lane.learning_rate, lane.weight_decay))

    def index_of(self, name: str) -> int:
        """Find the part of a parameter by its name, under whatever wraps the model's tables."""
        table = table_of(name)
        if table is not None:
            return self._of_table.get(self._tables[table].shared_name, 0)
        return self._of_module.get(_module_of(name), len(self.parts) - 1)

    def fuse(self, model: CTRModel, sharded: Collection[str]) -> None:
        """Have the sharded tables updated inside the backward of their kernels, each part as it says."""
        for index, part in enumerate(self.parts):
            names = {name for name in sharded if self._of_table.get(self._tables[name].shared_name, 0) == index}
            fuse_optimizer(model, names, FUSED_OPTIMIZERS[part.kind], self._arguments(part))

    def make_optimizer(
        self, wrapped: DistributedModelParallel, parameters: Mapping[str, nn.Parameter]
    ) -> CombinedOptimizer:
        """Combine the fused optimizer (if any), those of the fused lane's replicated tables, and the dense net's.

        Args:
            wrapped: the sharded model.
            parameters: those with gradients, by name.
        """
        optimizers: list[KeyedOptimizer | tuple[str, KeyedOptimizer]] = []
        if self.is_fused and (fused := fused_optimizer_of(wrapped)) is not None:
            names = {id(tensor): name for name, tensor in fused.params.items()}
            groups: list[Any] = list(fused.param_groups)
            for group in groups:
                group[PART_KEY] = self.index_of(names[id(group["params"][0])])
            optimizers.append((FUSED, fused))
        by_name: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
        for name, parameter in parameters.items():
            by_name[self._optimizer_of(name)][name] = parameter
        for name in sorted(by_name, key=lambda name: not name.startswith(TABLES)):
            optimizers.append((name, self._make(name, by_name[name])))
        return CombinedOptimizer(optimizers)

    def _optimizer_of(self, name: str) -> str:
        kind = self.parts[self.index_of(name)].kind
        base, usual = (TABLES, self.parts[0].kind) if table_of(name) and self.is_fused else (DENSE, "adam")
        return base if kind == usual else f"{base} {kind}"

    def _make(self, optimizer: str, parameters: Mapping[str, nn.Parameter]) -> KeyedOptimizerWrapper:
        groups: dict[tuple[int, bool], dict[str, Any]] = {}
        for name, parameter in parameters.items():
            index = self.index_of(name)
            part = self.parts[index]
            decays = part.weight_decay > 0 and parameter.ndim > 1 and not table_of(name)
            decay = {"weight_decay": part.weight_decay} if decays else {}
            group = {"params": [], "lr": part.learning_rate, PART_KEY: index, **decay}
            groups.setdefault((index, decays), group)["params"].append(parameter)
        part = self.parts[next(iter(groups))[0]]
        if optimizer.startswith(TABLES):
            kind, arguments = REPLICATED_OPTIMIZERS[part.kind], self._arguments(part)
        else:
            adam = torch.optim.AdamW if any(decays for _, decays in groups) else torch.optim.Adam
            kind = {"adam": adam, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}[part.kind]
            arguments = {**self._arguments(part), "foreach": True}
            if kind is torch.optim.AdamW:
                arguments["weight_decay"] = 0.0
        return KeyedOptimizerWrapper(parameters, lambda _: kind([*groups.values()], **arguments))

    def _arguments(self, part: ModelPart) -> dict[str, Any]:
        return {"lr": part.learning_rate, **({} if part.kind == "sgd" else {"eps": self.lane.epsilon})}


def _choices(lane: FusedOptimizer | DenseOptimizer, tables: Sequence[EmbeddingTable]) -> dict[str, TableOptimizer]:
    """Map the shared names of the tables that have an optimizer of their own to it."""
    named = {feature: table.shared_name for table in tables for feature in table.features}
    unknown = sorted(set(lane.tables) - set(named))
    if unknown:
        raise ValueError(f"training.optimizer.tables names unknown features: {', '.join(unknown)}")
    found: dict[str, TableOptimizer] = {}
    for feature, choice in lane.tables.items():
        if found.setdefault(named[feature], choice) != choice:
            raise ValueError(
                f"training.optimizer.tables.{feature}: another feature of the same table ({named[feature]}) has "
                "another optimizer; name one of them"
            )
    return found


def _module_of(name: str) -> str:
    module = name.split(".")[0]
    return _MODULES.get(module, module)
