"""TrainingConfig: model, optimizer, sharding, reader and schedule. No engine is imported here."""

import math
from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from features.schema import STRICT
from features.vector_source import VectorSource
from training.plugins import (
    ENCODER_KINDS,
    FUSION_KINDS,
    HISTORY_KINDS,
    MODULE_PATTERN,
    OBJECTIVE_KINDS,
    SELECTION_KINDS,
    load_saved_plugins,
)

Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Layers = Annotated[int, Field(ge=1, le=100)]
Rate = Annotated[float, Field(ge=0, lt=1)]
TablePrecision = Literal["float32", "float16", "int8"]
"""Precision of the tables that are served; see ``training.ship.quantization``."""
GIB = 1 << 30
"""Bytes of a GiB, in which a config gives memory."""

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


@dataclass(frozen=True, config=STRICT)
class StreamGatesSelection:
    """FinalMLP's gates: 2 sigmoid(MLP(context)) scales each coordinate of the shared embedding, stream by stream."""

    easy_context: tuple[str, ...] = ()
    """Sparse features whose own context tables feed the easy stream's gate; none: one learnt vector."""
    hard_context: tuple[str, ...] = ()
    hidden_units: tuple[Positive, ...] = (400,)
    kind: Literal["stream_gates"] = "stream_gates"


_Selections = SeparateSelection | GateSelection | MoESelection | StreamGatesSelection | SharedSelection
SelectionConfig = Annotated[_Selections, Field(discriminator="kind"), SELECTION_KINDS.opened(_Selections)]

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

    num_layers: Layers = 3
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


@dataclass(frozen=True, config=STRICT)
class GatedCrossNetEncoder:
    """GDCN's cross network with a gate a layer."""

    num_layers: Layers = 3
    kind: Literal["gated_cross_net"] = "gated_cross_net"


@dataclass(frozen=True, config=STRICT)
class QNNEncoder:
    """QIN's quadratic network (arXiv 2504.17699): layers that multiply their input by linear maps of itself."""

    num_layers: Layers = 4
    num_maps: Positive = 4
    """Linear maps a layer, which are added up: more of them change the start and the noise of dropout, not what the
    layer can learn. A trained layer has the cost of one."""
    dropout: Rate = 0.1
    """Dropout rate of the maps' results."""
    batch_norm: bool = True
    kind: Literal["qnn"] = "qnn"


@dataclass(frozen=True, config=STRICT)
class CINEncoder:
    """xDeepFM's compressed interaction network."""

    layer_units: Annotated[tuple[Positive, ...], Field(min_length=1)] = (64, 64)
    first_order: bool = False
    """True: the sum of first-order weights (tables of width 1) stands beside the maps' sums."""
    kind: Literal["cin"] = "cin"


@dataclass(frozen=True, config=STRICT)
class AutoIntEncoder:
    """AutoInt's self-attention over the fields."""

    num_layers: Layers = 3
    num_heads: Positive = 2
    attention_dim: Positive = 64
    """Width of all heads together."""
    dropout: Rate = 0.0
    """Dropout rate of the attention weights."""
    scale: bool = False
    """Whether to divide the scores by the root of a head's width."""
    layer_norm: bool = False
    """Whether to normalise before each layer's ReLU."""
    always_project_residual: bool = False
    """Whether every residual is projected; False: only where a layer changes the width."""
    kind: Literal["autoint"] = "autoint"

    def __post_init__(self) -> None:
        if self.attention_dim % self.num_heads:
            raise ValueError(
                f"autoint: attention_dim ({self.attention_dim}) must be a multiple of num_heads ({self.num_heads})"
            )


@dataclass(frozen=True, config=STRICT)
class FGCNNEncoder:
    """FGCNN: fields generated by convolutions, then all pairwise products and an MLP."""

    channels: Annotated[tuple[Positive, ...], Field(min_length=1)] = (14, 16, 18, 20)
    """Number of channels of each convolution."""
    kernel_height: Positive = 7
    """Fields a convolution sees at once; odd."""
    pool_height: Positive = 2
    new_channels: Positive = 3
    """New fields for each field that is left after pooling."""
    share_embedding: bool = False
    """False: the generator has tables of its own."""
    hidden_units: Annotated[tuple[Positive, ...], Field(min_length=1)] = (400, 400, 400)
    dropout: Rate = 0.0
    batch_norm: bool = True
    kind: Literal["fgcnn"] = "fgcnn"

    def __post_init__(self) -> None:
        if self.kernel_height % 2 == 0:
            raise ValueError(f"fgcnn: kernel_height ({self.kernel_height}) must be odd")


@dataclass(frozen=True, config=STRICT)
class NoEncoder:
    """No easy stream: the hard one is the whole model; goes with fusion "single" and objective "bce"."""

    kind: Literal["none"] = "none"


DeepEncoder = (
    MLPEncoder
    | CrossNetEncoder
    | GatedCrossNetEncoder
    | QNNEncoder
    | CINEncoder
    | AutoIntEncoder
    | FGCNNEncoder
    | FMEncoder
    | LinearEncoder
)
_EasyEncoders = DeepEncoder | NoEncoder
EncoderConfig = Annotated[DeepEncoder, Field(discriminator="kind"), ENCODER_KINDS.opened(DeepEncoder)]
EasyEncoderConfig = Annotated[_EasyEncoders, Field(discriminator="kind"), ENCODER_KINDS.opened(_EasyEncoders)]

# ----------------------------------------------------------------------------------------------------------- histories


@dataclass(frozen=True, config=STRICT)
class MeanHistory:
    """The events' mean, whatever the target."""

    length: Positive | None = None
    """Newest events that are read; None: all."""
    kind: Literal["mean"] = "mean"


@dataclass(frozen=True, config=STRICT)
class DINHistory:
    """DIN's sum of the events, each weighted by an MLP of it and the target (arXiv 1706.06978)."""

    hidden_units: tuple[Positive, ...] = (40,)
    """Hidden units of that MLP; none: it is linear. The paper's code has 80 and 40, at more than twice the cost."""
    activation: Literal["dice", "prelu", "relu", "sigmoid"] = "dice"
    """Activation of the MLP's hidden layers."""
    dropout: Rate = 0.0
    """Dropout rate after each activation."""
    softmax: bool = False
    """True: the weights of a row's events are positive and add up to 1."""
    scale: bool = False
    """Whether to divide weights by the root of the target's width before the softmax."""
    length: Positive | None = None
    """Newest events that are read; None: all."""
    kind: Literal["din"] = "din"

    def __post_init__(self) -> None:
        if self.scale and not self.softmax:
            raise ValueError("din: scale divides what goes into the softmax: set softmax = true, or leave out scale")


@dataclass(frozen=True, config=STRICT)
class ASTAHistory:
    """QIN's target attention with ReLU in the place of the softmax (arXiv 2504.17699)."""

    attention_dim: Positive | None = None
    """Width of queries, keys and values; None: twice the target's."""
    residual: bool = True
    """Whether the target is added to the result; then a row without events has the target."""
    divide_by_root_length: bool = False
    """Whether to divide the weighted sum by the root of the number of events, with which it grows."""
    length: Positive | None = None
    """Newest events that are read; None: all."""
    kind: Literal["asta"] = "asta"


@dataclass(frozen=True, config=STRICT)
class TransformerHistory:
    """Transformer layers over the newest events, with the target as the last one's query; like BST (arXiv 1905.06874).

    Layers normalise before attention and MLP; each position, counted from the newest event, has a learnt vector.
    """

    num_layers: Layers = 1
    """The last one is the target's; those before it are of the events among each other."""
    num_heads: Positive = 2
    attention_dim: Positive = 32
    """Width of all heads together, and of an event between layers."""
    feed_forward_dim: Positive = 64
    """Hidden units of each layer's MLP."""
    dropout: Rate = 0.0
    """Dropout rate of each layer's two results."""
    length: Positive = 50
    """Newest events that are read."""
    kind: Literal["transformer"] = "transformer"

    def __post_init__(self) -> None:
        if self.attention_dim % self.num_heads:
            raise ValueError(
                f"transformer: attention_dim ({self.attention_dim}) must be a multiple of num_heads ({self.num_heads})"
            )


_ShortHistories = MeanHistory | DINHistory | ASTAHistory | TransformerHistory
ShortHistoryConfig = Annotated[_ShortHistories, Field(discriminator="kind"), HISTORY_KINDS.opened(_ShortHistories)]


@dataclass(frozen=True, config=STRICT)
class SDIMHistory:
    """SDIM's sums of the events whose SimHash is the target's, for long histories (arXiv 2205.10249)."""

    num_hashes: Positive = 48
    """Bits of a hash."""
    bits: Annotated[int, Field(ge=1, le=16)] = 3
    """Bits of a signature: num_hashes / bits signatures are compared, each on its own."""
    normalize: bool = True
    """Whether each signature's sum has the length 1."""
    short: ShortHistoryConfig | None = None
    """Encoder whose result stands beside SDIM's, for example of the newest events alone (its ``length``)."""
    length: Positive | None = None
    """Newest events that are read; None: all."""
    kind: Literal["sdim"] = "sdim"

    def __post_init__(self) -> None:
        if self.num_hashes % self.bits:
            raise ValueError(f"sdim: num_hashes ({self.num_hashes}) must be a multiple of bits ({self.bits})")


_Histories = _ShortHistories | SDIMHistory
HistoryConfig = Annotated[_Histories, Field(discriminator="kind"), HISTORY_KINDS.opened(_Histories)]

# ------------------------------------------------------------------------------------------------------------- vectors


@dataclass(frozen=True, config=STRICT, kw_only=True)
class VectorsConfig(VectorSource):
    """Fixed vectors of a feature's values, such as of text or images: one more field of each stream.

    They are not trained; a matrix without bias projects them to the stream's width, and a value without a vector has a
    learnt one, which starts as zeros.
    """

    feature: str
    """Single-valued sparse feature whose raw values the file has."""
    normalise: bool = False
    """Whether each vector is divided by its length (L2)."""
    in_sequences: bool = True
    """Whether events of sequences that have the feature as a part have the vectors as one more part."""
    precision: Literal["float32", "float16"] = "float32"
    """Precision in which they are kept."""


@dataclass(frozen=True, config=STRICT, kw_only=True)
class PretrainedConfig(VectorSource):
    """Vectors of a feature's values that its tables start with; they are trained from there."""

    stream: Literal["easy", "hard", "shared"] | None = None
    """Stream whose table starts with them; None: that of every stream. Its width must be theirs."""
    normalise: bool = False
    """Whether each vector is divided by its length (L2)."""


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


@dataclass(frozen=True, config=STRICT)
class BilinearFusion:
    """FinalMLP's: the sum of the branch logits and a bilinear form of the two outputs, cut into heads."""

    num_heads: Positive = 1
    """Divides both encoders' output widths; more heads, fewer parameters."""
    kind: Literal["bilinear"] = "bilinear"


@dataclass(frozen=True, config=STRICT)
class SingleFusion:
    """One stream only: the hard branch's logit; goes with easy encoder "none"."""

    kind: Literal["single"] = "single"


_Fusions = WeightedSumFusion | VotingFusion | ConcatFusion | MoEFusion | SumFusion | BilinearFusion | SingleFusion
FusionConfig = Annotated[_Fusions, Field(discriminator="kind"), FUSION_KINDS.opened(_Fusions)]

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

    reads_branch_logits: ClassVar[bool] = True
    """Whether the loss reads the logits of the branches beside the fused one."""


@dataclass(frozen=True, config=STRICT)
class BCEObjective:
    """Binary cross entropy of the fused logit alone."""

    kind: Literal["bce"] = "bce"

    reads_branch_logits: ClassVar[bool] = False
    """Whether the loss reads the logits of the branches beside the fused one."""


_Objectives = TwinFocusObjective | BCEObjective
ObjectiveConfig = Annotated[_Objectives, Field(discriminator="kind"), OBJECTIVE_KINDS.opened(_Objectives)]


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Two streams: embeddings -> selection -> (easy, hard) encoders -> fusion -> objective."""

    embedding_dim: Positive = 16
    embedding_init_std: Annotated[float, Field(ge=0)] = 1e-4
    base_logit: float = 0.0
    """Constant part of every logit: a model that has learnt nothing predicts sigmoid(base_logit)."""
    selection: SelectionConfig = field(default_factory=SeparateSelection)
    easy: EasyEncoderConfig = field(default_factory=lambda: MLPEncoder(hidden_units=(400, 400)))
    hard: EncoderConfig = field(default_factory=MLPEncoder)
    sequences: dict[str, HistoryConfig] = field(default_factory=dict)
    """Sequence -> encoder of its events, in each stream one of its own; the others' is ``mean``."""
    vectors: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], VectorsConfig] = field(
        default_factory=dict
    )
    """Name -> fixed vectors of a feature's values, a field of each stream."""
    pretrained: dict[str, PretrainedConfig] = field(default_factory=dict)
    """Feature -> vectors that its tables start with."""
    fusion: FusionConfig = field(default_factory=WeightedSumFusion)
    objective: ObjectiveConfig = field(default_factory=TwinFocusObjective)

    def __post_init__(self) -> None:
        if (self.easy.kind == "none") != (self.fusion.kind == "single"):
            raise ValueError(
                'model: easy.kind = "none" and fusion.kind = "single" go together, for a model of one stream'
            )
        if self.easy.kind == "none" and (self.objective.reads_branch_logits or self.selection.kind != "shared"):
            raise ValueError('model: a model of one stream takes objective.kind = "bce" and selection.kind = "shared"')

    @property
    def easy_dim(self) -> int:
        """Width of one field in the easy stream."""
        if isinstance(self.selection, SeparateSelection):
            return max(1, int(self.embedding_dim * self.selection.easy_ratio))
        return self.embedding_dim


# ----------------------------------------------------------------------------------------------------------- optimizer


_Rate = Annotated[float, Field(gt=0)]
TableOptimizerKind = Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]


@dataclass(frozen=True, config=STRICT)
class TableOptimizer:
    """Optimizer of one feature's tables, where it is not that of the others."""

    optimizer: TableOptimizerKind | None = None
    """None: the lane's. The dense lane knows no other."""
    learning_rate: _Rate | None = None
    """None: the lane's."""


@dataclass(frozen=True, config=STRICT)
class PartOptimizer:
    """Optimizer of one part of the dense net, where it is not that of the others."""

    optimizer: Literal["adam", "adagrad", "sgd"] = "adam"
    learning_rate: _Rate | None = None
    """None: the lane's."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    """None: the lane's. Adagrad's and SGD's is torch's own, a part of the gradient."""


PartName = Literal["embedding", "vectors", "histories", "selection", "easy", "hard", "fusion"]
"""Parts of the dense net: dense features' vectors and projections, projections of fixed vectors, encoders of sequences,
selection, both encoders, fusion with its heads."""


@dataclass(frozen=True, config=STRICT)
class FusedOptimizer:
    """Tables are updated inside FBGEMM's backward, only the looked-up rows; the dense net uses Adam."""

    embedding_optimizer: TableOptimizerKind = "rowwise_adagrad"
    embedding_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    embedding_l2: Annotated[float, Field(ge=0)] = 0.0
    """Adds (embedding_l2 / 2) * |row|^2 / (its id's occurrences in the training split) to the loss for each row that
    the batch looks up, once, whatever the batch and world size; costs a reading pass over the split at the start."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay (AdamW) of the dense net's matrices; biases, normalisation and tables have none."""
    tables: dict[str, TableOptimizer] = field(default_factory=dict)
    """Feature -> optimizer of its tables, in all streams and with the features that share them."""
    parts: dict[PartName, PartOptimizer] = field(default_factory=dict)
    """Part of the dense net -> its optimizer."""
    kind: Literal["fused"] = "fused"

    @property
    def table_kinds(self) -> set[TableOptimizerKind]:
        """Return the optimizers that some table has."""
        return {self.embedding_optimizer, *(t.optimizer for t in self.tables.values() if t.optimizer is not None)}


@dataclass(frozen=True, config=STRICT)
class DenseOptimizer:
    """Adam over everything, every table row at every step, with (embedding_l2 / 2) * |tables|^2 in the loss."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    embedding_l2: Annotated[float, Field(ge=0)] = 0.0
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    embedding_learning_rate: _Rate | None = None
    """Rate of the tables; None: ``learning_rate``."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay (AdamW) of the dense net's matrices; biases, normalisation and tables have none."""
    tables: dict[str, TableOptimizer] = field(default_factory=dict)
    """Feature -> rate of its tables, in all streams and with the features that share them."""
    parts: dict[PartName, PartOptimizer] = field(default_factory=dict)
    """Part of the dense net -> its optimizer."""
    kind: Literal["dense"] = "dense"

    def __post_init__(self) -> None:
        if any(table.optimizer is not None for table in self.tables.values()):
            raise ValueError(
                "training.optimizer.tables: in the dense lane a table may have a learning_rate of its own, but no "
                'optimizer; leave it out, or set training.optimizer.kind = "fused"'
            )

    @property
    def table_kinds(self) -> set[TableOptimizerKind]:
        """Return the optimizers that some table has."""
        return {"adam"}


Optimizer = Annotated[FusedOptimizer | DenseOptimizer, Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class ScheduleSpan:
    """ScheduleSpan: a length in optimizer steps or in epochs, one of the two."""

    steps: Positive | None = None
    epochs: _Rate | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a span of a schedule is { steps = ... } or { epochs = ... }, one of the two")


@dataclass(frozen=True, config=STRICT)
class NoDecay:
    """Constant rates, but for the plateau rule."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, config=STRICT)
class CosineDecay:
    """Half a cosine from the rate down to ``final_factor`` of it, where it stays."""

    over: ScheduleSpan | None = None
    """Length; None: up to the end of ``max_epochs``."""
    final_factor: Annotated[float, Field(ge=0, le=1)] = 0.0
    kind: Literal["cosine"] = "cosine"


@dataclass(frozen=True, config=STRICT)
class ExponentialDecay:
    """The rate times ``factor`` in each ``every``, a little at each step."""

    factor: Annotated[float, Field(gt=0, le=1)] = 0.9
    every: ScheduleSpan = field(default_factory=lambda: ScheduleSpan(epochs=1))
    kind: Literal["exponential"] = "exponential"


@dataclass(frozen=True, config=STRICT)
class StepDecay:
    """The rate times ``factor`` at the end of each ``every``, at once."""

    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    every: ScheduleSpan = field(default_factory=lambda: ScheduleSpan(epochs=1))
    kind: Literal["step"] = "step"


@dataclass(frozen=True, config=STRICT)
class OneCycleDecay:
    """One cycle (arXiv 1708.07120): up by half a cosine, then down by another, as torch's OneCycleLR goes."""

    over: ScheduleSpan | None = None
    """Length; None: up to the end of ``max_epochs``."""
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the length in which the rate rises."""
    start_divisor: Annotated[float, Field(ge=1)] = 25.0
    """The first rate is the highest over this."""
    final_divisor: Annotated[float, Field(ge=1)] = 1e4
    """The last rate is the first one over this."""
    kind: Literal["one_cycle"] = "one_cycle"


DecayConfig = Annotated[
    NoDecay | CosineDecay | ExponentialDecay | StepDecay | OneCycleDecay, Field(discriminator="kind")
]


@dataclass(frozen=True, config=STRICT)
class ScheduleConfig:
    """Plateau rule, warm-up and decay of the learning rates, each a factor of every rate.

    At each evaluation without improvement the rates fall; enough in a row end the run. Warm-up and decay go by the step
    alone, whatever is evaluated.
    """

    warmup: ScheduleSpan | None = None
    """Length of a rise from next to nothing to the rates, in equal steps; a decay begins after it. None: none."""
    decay: DecayConfig = field(default_factory=NoDecay)
    factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the rates at an evaluation without improvement; 1: they do not fall."""
    min_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    min_delta: float = 1e-6
    patience: Positive = 2
    """Evaluations in a row without improvement after which training stops, inside an epoch too."""

    def __post_init__(self) -> None:
        if self.warmup is not None and self.decay.kind == "one_cycle":
            raise ValueError("training.schedule: one_cycle has a rise of its own; leave out warmup")


ShardingKind = Literal["auto", "data_parallel", "table_wise", "row_wise", "column_wise"]


@dataclass(frozen=True, config=STRICT)
class ShardingConfig:
    """Sharding of the tables; ``auto`` leaves the choice to TorchRec's planner. A single rank has every table whole."""

    default: ShardingKind = "auto"
    features: dict[str, ShardingKind] = field(default_factory=dict)
    """Sharding of single features, for each table of the feature; the others have the default."""
    device_memory: Annotated[float, Field(gt=0)] | None = None
    """GiB of a GPU that a rank may fill. Tables that do not fit lie in host memory, with a cache of their rows on the
    GPU (FBGEMM's UVM caching); the planner chooses them. None: all of the GPU, and no table in host memory."""
    cache_load_factor: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of a table's rows that the cache of one in host memory holds."""


@dataclass(frozen=True, config=STRICT)
class ReaderConfig:
    """Reading of the dataset's files as batches."""

    num_streams: Positive = 4
    """Row streams an epoch is cut into; every rank reads num_streams / world_size of them, so the batches do not
    depend on the world size."""
    shuffle: bool = True
    shuffle_row_groups: Positive = 2
    """Row groups of one stream in its shuffle buffer."""
    prefetch_batches: Positive = 8
    cache_bytes: Annotated[int, Field(ge=1)] = 32 * 2**30
    """Local copies that a rank keeps of a split in an object store, below TMPDIR; files being read count, and stay."""


@dataclass(frozen=True, config=STRICT)
class EvaluationConfig:
    """Evaluations on validation while a run trains: at each epoch's end, and inside it as often as this says.

    Each one counts for the schedule's ``patience``, may be the best, and lowers the rates where it is none.
    """

    every_steps: Positive | None = None
    """Optimizer steps from one evaluation to the next, counted from the run's start."""
    every_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes from one evaluation to the next. A clock decides at which step, so two runs may differ."""
    per_epoch: Positive = 1
    """Evaluations in an epoch, evenly spaced; the last is at its end."""
    sample_rows: Positive | None = None
    """Rows of validation that are evaluated while training: row groups drawn with ``seed``, the same each time. None:
    all of them. Metrics and calibration of the finished run are of all rows."""


@dataclass(frozen=True, config=STRICT)
class CheckpointConfig:
    """Checkpoints of a run; one is also written at the end of an epoch and at each evaluation that is the best."""

    every_steps: Positive = 1_000
    keep: Positive = 2
    """Newest checkpoints kept, besides the best."""
    folder: str | None = None
    """Folder of this run's checkpoints alone; may be in an object store. None: in the run's folder."""


@dataclass(frozen=True, config=STRICT)
class TrackingConfig:
    """Tracking of a run's history by other programs, beside the run's own files."""

    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder."""
    mlflow: Annotated[str, Field(pattern=r"^(sqlite:///.+|https?://[^@]+)$")] | None = None
    """Store of MLflow runs: sqlite:///FILE, or a server's http:// or https:// address."""
    experiment: Annotated[str, Field(min_length=1)] = "twinfocus"
    """MLflow experiment of the runs."""


# --------------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True, config=STRICT)
class NoCalibration:
    """The model's own probabilities are served."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True, config=STRICT)
class PlattCalibration:
    """sigmoid(scale * logit + offset) is served; both numbers are fitted on validation when training ends."""

    only_where_it_helps: bool = False
    """True: the model's own probabilities are served where validation rows that a fit has not seen do not gain by it,
    or where nothing can be fitted."""
    kind: Literal["platt"] = "platt"


CalibrationConfig = Annotated[NoCalibration | PlattCalibration, Field(discriminator="kind")]


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """Everything ``jobs.train`` needs besides the dataset's own schema."""

    dataset: str
    """Folder of a built dataset; a config that leaves it out means pipeline.output."""
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: Optimizer = field(default_factory=FusedOptimizer)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 2023
    max_epochs: Positive = 100
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Minutes of steps, evaluations and checkpoints, over all starts of the run. Training ends after them with the
    best checkpoint; --resume with more goes on from there as if it had not ended. None: no limit."""
    window_rows: Positive | None = None
    """Training rows after which AUC, logloss, NE and calibration of them are told, in the bar, history and report: each
    row as its step's forward pass scores it, before it is trained on, with dropout and with batch norm by the batch. A
    window is whole steps and ends with its epoch; after --resume the first one may be shorter. None: not measured."""
    global_batch_size: Positive = 4096
    evaluation_batch_size: Positive = 16_384
    clip_gradient_norm: Annotated[float, Field(gt=0)] | None = 10.0
    """Norm over every gradient of the dense net, and of the tables in the dense lane; None: no clipping."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """bfloat16: autocast of selection and encoders in training. Fusion, loss, weights and scoring stay float32.
    tf32, on CUDA alone: matrix products of training see 10 of the 23 bits of their factors' fractions."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Evaluate and ship an exponential moving average of the replicated weights, over about 1 / (1 - decay) steps;
    0: the last weights. Sharded tables are not averaged."""
    monitor: dict[str, float] = field(default_factory=lambda: {"auc": 1.0})
    """Weighted sum of validation metrics to maximise (a negative weight minimises, as logloss needs)."""
    num_workers: Positive | tuple[Positive, Positive] = 1
    """Processes that train together. [least, most] is elastic: as many as the cluster of RAY_ADDRESS has cores or GPUs
    for, also when nodes are lost or come back; the workers then start again from the newest checkpoint."""
    resize_seconds: Positive = 60
    """Seconds between two looks at the cluster for more room, of an elastic training."""
    threads_per_worker: Positive | None = None
    """Torch threads of a worker; None: the machine's cores shared out."""
    device: Literal["cpu", "cuda"] = "cpu"
    pipelined: bool | None = None
    """Exchange the next batch's ids between ranks, and copy the one after it to the device, while this one is trained
    with (TorchRec's sparse-dist train pipeline); the weights are the same. None: on CUDA alone."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """Worker crashes Ray Train recovers from before giving up."""
    stall_seconds: Positive = 600
    """A worker that is silent, or missing in an exchange between workers, for so long counts as crashed. More than any
    wait that is none: for the slowest worker's first batch, or for one to finish a checkpoint."""
    calibration: CalibrationConfig = field(default_factory=NoCalibration)
    sampled_negatives: Literal["logit", "weights"] = "logit"
    """Way to probabilities of all rows where a build kept a rate r of negatives (pipeline.sample). logit:
    ln r is added to every logit after training, which is exact; weights: each kept negative counts 1 / r in the loss.
    """
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    plugins: tuple[Annotated[str, Field(pattern=MODULE_PATTERN)], ...] = ()
    """Modules of your own that register blocks of a model or metrics (docs/extending.md); imported wherever this config
    is."""
    from_data: tuple[str, ...] = ()
    """Keys of this section that are chosen from the dataset when training starts (``training.from_data``). A config
    file that does not name this key leaves to the data what it does not set; ``[]`` keeps the defaults that stand
    here."""
    warm_start: str | None = None
    """Folder of a finished run to begin from, with the weights and the optimizer state of its best checkpoint. The
    dataset's vocabularies must be that run's or go on with them (pipeline.base); new values start untrained."""
    warm_start_other_features: bool = False
    """Whether that run may have other features or vocabularies: then this one begins with what it knows of those that
    are the same, and the rest starts untrained."""

    def __post_init__(self) -> None:
        streams = self.reader.num_streams
        if not self.worker_counts:
            raise ValueError(f"training.num_workers ({self.num_workers}): the least is above the most")
        if any(streams % count for count in self.worker_counts):
            each = "each number of " if len(self.worker_counts) > 1 else ""
            raise ValueError(
                f"training.reader.num_streams ({streams}) must be a multiple of {each}training.num_workers "
                f"({', '.join(map(str, self.worker_counts))}): {math.lcm(*self.worker_counts)} is one"
            )
        for name in ("global_batch_size", "evaluation_batch_size"):
            if name not in self.from_data and getattr(self, name) % streams:
                raise ValueError(
                    f"training.{name} ({getattr(self, name)}) must be a multiple of reader.num_streams ({streams})"
                )
        if not self.monitor:
            raise ValueError("training.monitor is empty: name at least one metric")
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError(
                'training.precision: tf32 is a format of GPUs; set training.device = "cuda", or float32 or bfloat16'
            )

    @property
    def worker_counts(self) -> range:
        """Numbers of workers that may train together, ascending."""
        least, most = self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)
        return range(least, most + 1)

    @property
    def is_pipelined(self) -> bool:
        """``pipelined``, or what it is when it is not set."""
        return self.device == "cuda" if self.pipelined is None else self.pipelined

    @property
    def pads_tables(self) -> bool:
        """Tell whether tables are padded: FBGEMM's fused kernels take only multiples of 4."""
        return isinstance(self.optimizer, FusedOptimizer)


def read_saved_training(training: Any, source: object) -> TrainingConfig:
    """Check the training section of a config that a run or an artifact holds.

    Args:
        training: the section as it was read.
        source: file or folder of the section, for messages.

    Raises:
        PluginError: it needs a plugin that the user has not named.
        ValidationError: it is no training section.
    """
    load_saved_plugins(training, source)
    return TypeAdapter(TrainingConfig).validate_python(training)
