"""TrainingConfig: model, optimizer, sharding, reader and schedule. No engine is imported here."""

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from features.schema import STRICT

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]

# ----------------------------------------------------------------------------------------------------------- selection


@dataclass(frozen=True, config=STRICT)
class SeparateSelection:
    """SSEM "SER": the easy stream has tables of its own, narrower by ``easy_ratio``."""

    easy_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    kind: Literal["separate"] = "separate"


@dataclass(frozen=True, config=STRICT)
class GateSelection:
    """SSEM "GM": one scalar gate a row shares the embedding out between the streams."""

    dropout: Rate = 0.2
    batch_norm: bool = True
    kind: Literal["gate"] = "gate"


@dataclass(frozen=True, config=STRICT)
class MoESelection:
    """SSEM "MoE": two experts and one softmax gate a stream."""

    dropout: Rate = 0.2
    batch_norm: bool = True
    kind: Literal["moe"] = "moe"


@dataclass(frozen=True, config=STRICT)
class SharedSelection:
    """No selection: both streams see the same embedding."""

    kind: Literal["shared"] = "shared"


Selection = Annotated[SeparateSelection | GateSelection | MoESelection | SharedSelection, Field(discriminator="kind")]

# ------------------------------------------------------------------------------------------------------------ encoders


@dataclass(frozen=True, config=STRICT)
class MLPEncoder:
    """Layers of Linear, BatchNorm, ReLU, Dropout."""

    hidden_units: Annotated[tuple[Positive, ...], Field(min_length=1)] = (400, 400, 400)
    dropout: Rate = 0.2
    batch_norm: bool = True
    kind: Literal["mlp"] = "mlp"


@dataclass(frozen=True, config=STRICT)
class CrossNetEncoder:
    """DCN-V2's cross network; ``low_rank`` None: full matrices."""

    num_layers: Positive = 3
    low_rank: Positive | None = None
    kind: Literal["cross_net"] = "cross_net"


@dataclass(frozen=True, config=STRICT)
class FMEncoder:
    """Factorisation machine: first-order weights (tables of width 1), a bias, and pairwise dot products; width 1."""

    kind: Literal["fm"] = "fm"


@dataclass(frozen=True, config=STRICT)
class LinearEncoder:
    """Logistic regression's logit: first-order weights (tables of width 1) without a bias; width 1."""

    kind: Literal["linear"] = "linear"


Encoder = Annotated[MLPEncoder | CrossNetEncoder | FMEncoder | LinearEncoder, Field(discriminator="kind")]

# -------------------------------------------------------------------------------------------------------------- fusion


@dataclass(frozen=True, config=STRICT)
class WeightedSumFusion:
    """DFM "WSF": two learnt scalars, started at one half each."""

    kind: Literal["weighted_sum"] = "weighted_sum"


@dataclass(frozen=True, config=STRICT)
class VotingFusion:
    """DFM "VF": a softmax over two votes, with Gumbel noise in training only."""

    temperature: Annotated[float, Field(gt=0)] = 0.8
    kind: Literal["voting"] = "voting"


@dataclass(frozen=True, config=STRICT)
class ConcatFusion:
    """DFM "CF": a third head on both encoders' outputs."""

    kind: Literal["concat"] = "concat"


@dataclass(frozen=True, config=STRICT)
class MoEFusion:
    """DFM "MoEF": two heads on both encoders' outputs and a softmax gate."""

    kind: Literal["moe"] = "moe"


@dataclass(frozen=True, config=STRICT)
class SumFusion:
    """The sum of the two branch logits."""

    kind: Literal["sum"] = "sum"


Fusion = Annotated[WeightedSumFusion | VotingFusion | ConcatFusion | MoEFusion | SumFusion, Field(discriminator="kind")]

# ----------------------------------------------------------------------------------------------------------- objective


@dataclass(frozen=True, config=STRICT)
class TwinFocusObjective:
    """BCE of the fused logit plus the twin focus loss of the branches (TF4CTR, arXiv 2405.03167)."""

    c: Annotated[float, Field(ge=0, le=1)] = 0.7
    gamma: Annotated[float, Field(ge=0)] = 1.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.25
    detach_focus: bool = False
    """True: no gradient through the modulating factors."""
    kind: Literal["twin_focus"] = "twin_focus"


@dataclass(frozen=True, config=STRICT)
class BCEObjective:
    """Binary cross entropy of the fused logit alone."""

    kind: Literal["bce"] = "bce"


Objective = Annotated[TwinFocusObjective | BCEObjective, Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Two streams: embeddings -> selection -> (easy, hard) encoders -> fusion -> objective."""

    embedding_dim: Positive = 16
    embedding_init_std: Annotated[float, Field(ge=0)] = 1e-4
    selection: Selection = field(default_factory=SeparateSelection)
    easy: Encoder = field(default_factory=lambda: MLPEncoder(hidden_units=(400, 400)))
    hard: Encoder = field(default_factory=MLPEncoder)
    fusion: Fusion = field(default_factory=WeightedSumFusion)
    objective: Objective = field(default_factory=TwinFocusObjective)

    @property
    def easy_dim(self) -> int:
        """Width of one field in the easy stream."""
        if isinstance(self.selection, SeparateSelection):
            return max(1, int(self.embedding_dim * self.selection.easy_ratio))
        return self.embedding_dim


# ----------------------------------------------------------------------------------------------------------- optimizer


@dataclass(frozen=True, config=STRICT)
class FusedOptimizer:
    """Tables are updated inside FBGEMM's backward, only the looked-up rows; the dense net uses Adam."""

    embedding_optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    embedding_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    kind: Literal["fused"] = "fused"


@dataclass(frozen=True, config=STRICT)
class DenseOptimizer:
    """Adam over everything, every table row at every step, with (embedding_l2 / 2) * |tables|^2 in the loss."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    embedding_l2: Annotated[float, Field(ge=0)] = 0.0
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    kind: Literal["dense"] = "dense"


Optimizer = Annotated[FusedOptimizer | DenseOptimizer, Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """Plateau rule: at each evaluation without improvement the learning rates fall; enough in a row end the run."""

    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    min_delta: float = 1e-6
    patience: Positive = 2
    """Evaluations in a row without improvement after which training stops."""


ShardingKind = Literal["auto", "data_parallel", "table_wise", "row_wise", "column_wise"]


@dataclass(frozen=True, config=STRICT)
class ShardingConfig:
    """Where tables live. ``auto`` leaves the choice to TorchRec's planner."""

    default: ShardingKind = "auto"
    features: dict[str, ShardingKind] = field(default_factory=dict)
    """Per-feature choice; holds for each table of the feature."""


@dataclass(frozen=True, config=STRICT)
class ReaderConfig:
    """How shards become batches."""

    num_streams: Positive = 4
    """Row streams an epoch is cut into; every rank reads num_streams / world_size of them, so the batches do not
    depend on the world size."""
    shuffle: bool = True
    shuffle_row_groups: Positive = 4
    """Row groups of one stream in its shuffle buffer."""
    prefetch_batches: Positive = 8


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """Checkpoints are also written at every evaluation."""

    every_steps: Positive = 1_000
    keep: Positive = 2
    """Newest checkpoints kept, besides the best."""


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """Everything ``jobs.train`` needs besides the dataset's own schema."""

    dataset: str
    """Folder of a built dataset."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: Optimizer = field(default_factory=FusedOptimizer)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 2023
    max_epochs: Positive = 100
    global_batch_size: Positive = 4096
    evaluation_batch_size: Positive = 16_384
    clip_gradient_norm: Annotated[float, Field(gt=0)] | None = 10.0
    """Norm over every gradient of the dense net, and of the tables in the dense lane; None: no clipping."""
    monitor: dict[Literal["auc", "gauc", "logloss", "ne"], float] = field(default_factory=lambda: {"auc": 1.0})
    """Weighted sum of validation metrics to maximise (a negative weight minimises)."""
    num_workers: Positive = 1
    threads_per_worker: Positive | None = None
    """Torch threads of a worker; None: the machine's cores shared out."""
    device: Literal["cpu", "cuda"] = "cpu"
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker crashes Ray Train recovers from before giving up."""

    def __post_init__(self) -> None:
        streams = self.reader.num_streams
        if streams % self.num_workers:
            raise ValueError(
                f"training.reader.num_streams ({streams}) must be a multiple of training.num_workers "
                f"({self.num_workers})"
            )
        for name in ("global_batch_size", "evaluation_batch_size"):
            if getattr(self, name) % streams:
                raise ValueError(
                    f"training.{name} ({getattr(self, name)}) must be a multiple of reader.num_streams ({streams})"
                )
        if not self.monitor:
            raise ValueError("training.monitor is empty: name at least one metric")
