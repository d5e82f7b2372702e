"""CTRModel: the whole network, from a batch to logits, independent of sharding, reading and training.

Shapes: B rows, F fields, D width of a field, H width of an encoder's output.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from features.schema import FeatureSchema
from training.config import MeanHistory, ModelConfig, StreamGatesSelection
from training.data.batch import Batch
from training.model.dwell_weights import DwellWeights
from training.model.embedding import (
    HISTORY_STREAMS,
    EmbeddingTable,
    EventStreams,
    FieldEmbedding,
    ModelError,
    StreamName,
    Streams,
    stable_seed,
)
from training.model.encoders import ENCODERS, Nothing
from training.model.frozen_vectors import FrozenVectors
from training.model.fusion import FUSIONS, TwinLogits
from training.model.histories import HISTORY_ENCODERS, BucketTables, HistoryEncoders
from training.model.selection import SELECTIONS

if TYPE_CHECKING:  # it needs pyarrow
    from features.vector_table import VectorTable

EMBEDDING = "embedding"
"""Name of the submodule whose parameters are embeddings; all others are the dense net."""


class CTRModel(nn.Module):
    """CTRModel: embeddings -> selection -> two encoders -> fusion (TF4CTR, arXiv 2405.03167).

    Args:
        schema: the fields.
        num_embeddings: sparse feature -> rows of its tables.
        config: blocks of the model.
        seed: initial weights are a function of it, whatever the device and the padding.
        pad_tables: see FieldEmbedding.
        device: device of the parameters. ``meta``: DistributedModelParallel makes the tables later, the dense net is
            made on CPU.
        mean_lengths: key of a sequence -> mean number of events a row, for plans; absent: the most there can be.
        vectors: name -> the fixed vectors of ``config.vectors``, by id; None: zeros, which somebody replaces.
        dwell_cut_offs: sequence with dwell weights -> largest id of a dwell time that counts; absent: all do.

    Raises:
        ModelError: a block needs what the schema lacks.
    """

    def __init__(
        self,
        schema: FeatureSchema,
        num_embeddings: Mapping[str, int],
        config: ModelConfig,
        *,
        seed: int = 0,
        pad_tables: bool = False,
        device: torch.device | str | None = None,
        mean_lengths: Mapping[str, float] | None = None,
        vectors: Mapping[str, "VectorTable"] | None = None,
        dwell_cut_offs: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.base_logit = config.base_logit
        self.mean_lengths = {
            key: (mean_lengths or {}).get(key, float(sequence.max_length))
            for sequence in schema.sequence
            for key in sequence.keys
        }
        self.mean_events = {sequence.name: self.mean_lengths[sequence.keys[0]] for sequence in schema.sequence}
        device = torch.device(device or "cpu")
        widths = stream_widths(config)
        gaps = gaps_read(schema, config)
        with torch.random.fork_rng(devices=[]):
            self.embedding = FieldEmbedding(
                schema,
                num_embeddings,
                widths,
                embedding_dim=config.embedding_dim,
                features=context_features(config),
                init_std=config.embedding_init_std,
                gaps=gaps,
                seed=seed,
                pad_tables=pad_tables,
                device=device,
            )
            of_encoders: dict[StreamName, int] = {s: widths[s] for s in HISTORY_STREAMS if s in widths}
            self.vectors = FrozenVectors(
                config.vectors, schema, num_embeddings, of_encoders, tables=vectors, seed=seed, device=device
            )
            torch.default_generator.manual_seed(stable_seed(seed, "dense net"))
            self.histories = HistoryEncoders(
                config.sequences,
                {s.name: len(s.parts) + len(self.vectors.parts_of(s.name)) for s in schema.sequence},
                of_encoders if schema.sequence else {},
                gaps=gaps,
                seed=seed,
            )
            self.dwell_weights = DwellWeights(schema, dwell_cut_offs)
            num_fields = self.embedding.num_fields + len(self.vectors.names) + self.histories.num_fields
            self.selection = SELECTIONS[config.selection.kind](config.selection, num_fields, widths.get("shared", 0))
            self.easy_encoder = ENCODERS[config.easy.kind](config.easy, num_fields, config.easy_dim)
            self.hard_encoder = ENCODERS[config.hard.kind](config.hard, num_fields, config.embedding_dim)
            for side, encoder in (("easy", self.easy_encoder), ("hard", self.hard_encoder)):
                if encoder.output_dim < 1 and not isinstance(encoder, Nothing):
                    raise ModelError(
                        f"the {side} encoder ({type(encoder).__name__}) does not say how wide its output is: its "
                        "__init__ must set output_dim"
                    )
            self.fusion = FUSIONS[config.fusion.kind](
                config.fusion, self.easy_encoder.output_dim, self.hard_encoder.output_dim
            )
            self.apply(_initialize_linear)
        if not config.objective.reads_branch_logits and not self.fusion.reads_branch_logits:
            # Nothing trains these heads, and replication takes a parameter without a gradient for an error.
            self.fusion.easy_head.requires_grad_(False)
            self.fusion.hard_head.requires_grad_(False)
        if device.type != "meta":
            self.to(device)

    def forward(self, batch: Batch, tables: Mapping[str, BucketTables] | None = None) -> TwinLogits:
        """Compute the logits of the batch's real rows, each (num_rows,).

        Args:
            batch: the rows.
            tables: sequence -> bucket tables that stand for the events of some rows; None: all rows have their events.
        """
        streams, histories = self._look_up(batch)
        fields = self.histories(histories, self.dwell_weights(batch.sparse_features))
        if tables:
            fields = self.histories.with_tables(fields, histories, tables)
        for stream, fields_BFD in fields.items():
            streams[stream] = torch.cat([streams[stream], fields_BFD], dim=1)
        easy_BFD, hard_BFD = self.selection(streams)
        easy_BH = self.easy_encoder(easy_BFD, streams["first_order_easy"])
        hard_BH = self.hard_encoder(hard_BFD, streams["first_order_hard"])
        # A bfloat16 logit has three digits: ties among rows, and a coarse gradient. The fusion costs next to nothing.
        with torch.autocast(easy_BH.device.type, enabled=False):
            return self.fuse(_full_precision(easy_BH), _full_precision(hard_BH))

    def bucket_tables(self, batch: Batch) -> dict[str, dict[StreamName, torch.Tensor]]:
        """Add up the events of each sequence whose encoder is ``sdim``: sequence -> stream -> (B, S, 2^bits, K)."""
        _, histories = self._look_up(batch)
        return self.histories.bucket_tables(histories, self.dwell_weights(batch.sparse_features))

    def _look_up(self, batch: Batch) -> tuple[Streams, EventStreams]:
        streams, histories = self.embedding(batch.sparse_features, batch.dense_features, batch.num_rows)
        if self.vectors.names:
            streams, histories = self.vectors(batch.sparse_features, streams, histories)
        return streams, histories

    def fuse(self, easy_BH: torch.Tensor, hard_BH: torch.Tensor) -> TwinLogits:
        """Fuse the encoders' outputs, and add the constant part to every logit."""
        logits = self.fusion(easy_BH, hard_BH)
        return TwinLogits(*(logit + self.base_logit for logit in logits)) if self.base_logit else logits

    @property
    def tables(self) -> tuple[EmbeddingTable, ...]:
        """List all embedding tables."""
        return self.embedding.tables

    @property
    def num_parameters(self) -> int:
        """Parameters as papers count them: no pads of tables, no untrained heads, but biases before a batch norm."""
        pads = sum(table.num_embeddings * (table.padded_width - table.width) for table in self.tables)
        untrained_heads = sum(p.numel() for p in self.fusion.parameters() if not p.requires_grad)
        return sum(p.numel() for p in self.parameters()) - untrained_heads - pads

    def embedding_parameter_names(self) -> list[str]:
        """List the names of the parameters under the embedding L2, as in ``named_parameters``."""
        return [name for name, _ in self.named_parameters() if name.split(".")[0] == EMBEDDING]


def stream_widths(config: ModelConfig) -> dict[StreamName, int]:
    """Map each stream of embeddings that the model reads to the width of a field in it.

    Raises:
        ModelError: a selection splits one embedding between two encoders of which one reads none, or two views.
    """
    sides: tuple[tuple[str, Any], ...] = (("easy", config.easy), ("hard", config.hard))
    easy, hard = (ENCODERS[encoder.kind].reads(encoder) for _, encoder in sides)
    kind = config.selection.kind
    widths: dict[StreamName, int] = {}
    if kind == "separate":
        widths["easy"] = config.easy_dim * easy.views
        widths["hard"] = config.embedding_dim * hard.views
    else:
        widths["shared"] = config.embedding_dim * max(easy.views, hard.views)
    for (side, encoder), reads in zip(sides, (easy, hard), strict=True):
        if kind in ("gate", "moe", "stream_gates") and not reads.views:
            raise ModelError(
                f"selection {kind!r} shares an embedding out between both encoders, but the {side} encoder "
                f"({encoder.kind}) reads none: use selection separate or shared"
            )
        if kind != "separate" and reads.views > 1 and config.easy.kind != "none":
            raise ModelError(
                f"the {side} encoder ({encoder.kind}) has a second view of its own, which selection {kind!r} cannot "
                "share: use selection separate or share_embedding = true"
            )
    widths["first_order_easy"] = int(easy.first_order)
    widths["first_order_hard"] = int(hard.first_order)
    widths |= dict.fromkeys(context_features(config), config.embedding_dim)
    return {stream: width for stream, width in widths.items() if width}


def gaps_read(schema: FeatureSchema, config: ModelConfig) -> tuple[str, ...]:
    """List the sequences with gaps whose encoder reads them: another encoder would leave their table untrained."""
    with_gaps = [sequence.name for sequence in schema.sequence if sequence.gaps]
    encoders = {name: config.sequences.get(name, MeanHistory()) for name in with_gaps}
    return tuple(name for name, own in encoders.items() if HISTORY_ENCODERS[own.kind].reads_gaps(own))


def context_features(config: ModelConfig) -> dict[StreamName, tuple[str, ...]]:
    """Map each context stream of the gates to its features."""
    if not isinstance(config.selection, StreamGatesSelection):
        return {}
    contexts: dict[StreamName, tuple[str, ...]] = {
        "context_easy": config.selection.easy_context,
        "context_hard": config.selection.hard_context,
    }
    return {stream: names for stream, names in contexts.items() if names}


def _full_precision(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _initialize_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
